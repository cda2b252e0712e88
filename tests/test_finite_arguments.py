"""Every floating-point argument of a public call is a finite number: NaN and infinities are refused by name."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import ncops
from ncops import metrics

X, W, VARIANCES = torch.ones(4, 3), torch.ones(5, 3), torch.ones(4)


def decisions(scale: float):
    statistics = ncops.ClassStatistics(5, 3)
    statistics.update(X, torch.arange(4))
    return ncops.DecisionStatistics(statistics.compute(), W, scale=scale)


def torchmetrics_logits(scale: float):
    pytest.importorskip("torchmetrics")
    from ncops.integrations.torchmetrics import LogitStatistics

    return LogitStatistics(scale=scale)


CALLS = {
    "linear_stats": ("scale", lambda value: ncops.linear_stats(X, W, scale=value)),
    "logit_stats": ("scale", lambda value: ncops.logit_stats(X, scale=value)),
    "pair_stats": ("power", lambda value: ncops.pair_stats(X, "riesz", power=value)),
    "pinv_trace": ("rtol", lambda value: ncops.pinv_trace(torch.eye(3), X, rtol=value)),
    "solve_trace": ("rtol", lambda value: ncops.solve_trace(torch.eye(3), X, rtol=value)),
    "nc1_cdnv": ("power", lambda value: metrics.nc1_cdnv(VARIANCES, X, power=value)),
    "DecisionStatistics": ("scale", decisions),
    "LogitStatistics": ("scale", torchmetrics_logits),
    "Convention": ("cdnv_power", lambda value: dataclasses.replace(ncops.conventions.PRESETS["zhu"], cdnv_power=value)),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", CALLS)
def test_a_number_that_is_not_finite_is_refused(call, value):
    name, run = CALLS[call]
    with pytest.raises(ValueError, match=f"{name}: expected .*got {value}"):
        run(value)
