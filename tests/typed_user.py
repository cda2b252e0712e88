"""What a user of ncops with a type checker writes; tests/test_types.py has it checked, nothing runs it."""

from __future__ import annotations

from typing import Any, assert_type  # Python 3.11; the checker takes it from typing_extensions before

import torch
from torch import Tensor

import ncops

x, y, weight = torch.randn(8, 3), torch.arange(8) % 4, torch.randn(4, 3)

stats = ncops.ClassStatistics(4, 3, scatter=True, nonfinite="skip")
assert_type(stats.update(x, y), None)
assert_type(stats.merge(stats), ncops.ClassStatistics)
geometry = stats.compute(min_count=1)
assert_type(geometry, ncops.ClassGeometry)
decisions = ncops.DecisionStatistics(geometry, weight, convention="papyan")
report = ncops.collapse(geometry, weight, decisions=decisions, convention=ncops.conventions.PRESETS["papyan"])
assert_type(report["nc1_pinv"], float)

measured = ncops.measure(x, y, weight, convention="papyan", nonfinite="skip", min_count=2)
assert_type(measured, ncops.CollapseReport)
assert_type(measured.classes("count", descending=True, limit=3), ncops.report.ClassTable)
assert_type(measured.classes()["count"], list[Any])
ncops.measure(x.numpy(), y.numpy())
ncops.report.compare([measured]).plot(panels="papyan")
with ncops.watch(torch.nn.Linear(3, 4), [""], 4, pool=lambda h: h) as watched:
    watched.update(y)
assert_type(watched.reports(convention="zhu"), dict[str, ncops.CollapseReport])

logits = ncops.linear_stats(x, weight, None, y)
assert_type(logits.loss("nll", reduction="none"), Tensor)
assert_type(logits.loss("nll", label_smoothing=0.1, weight=torch.ones(4)), Tensor)
assert_type(logits.logprob, Tensor)
assert_type(logits.nll, Tensor | None)
ncops.pair_stats(x, "cosine")
assert_type(ncops.nn.LinearHead.from_linear(torch.nn.Linear(3, 4)), ncops.nn.LinearHead)
with ncops.use_backend("reference"):
    pass

stats.update(x)  # type: ignore[call-arg]
stats.update(x, y, 3)  # type: ignore[call-arg]
stats.update(x, labels="cat")  # type: ignore[arg-type]
ncops.ClassStatistics(4, 3, nonfinite="drop")  # type: ignore[arg-type]
logits.loss("nil")  # type: ignore[arg-type]
ncops.pair_stats(x, "cosin")  # type: ignore[arg-type]
ncops.watch(torch.nn.Linear(3, 4), [""], 4, pool="max")  # type: ignore[arg-type]
ncops.use_backend("gpu")  # type: ignore[arg-type]
ncops.collapse(geometry, weight, convention="nocps")  # type: ignore[arg-type]
ncops.measure(x, y, convention="nocps")  # type: ignore[arg-type]
ncops.measure(x, y, None, None, 10)  # type: ignore[call-arg]
ncops.report.compare([measured]).plot(panels="zhu")  # type: ignore[arg-type]
