"""logit_stats against the expressions that read stored logits once per column."""

from __future__ import annotations

import torch.nn.functional as F

import ncops

from . import _rows
from .case import EVERYTHING, Bench, Case, Goal, labels, numpy, randn


def make(sizes, dtype, data, generator):
    n, v = sizes["N"], sizes["V"]
    return (2 * randn(generator, n, v)).to(dtype), labels(generator, n, v, data)


FORWARD = Bench(
    op="logit_stats", make=make, other="cross_entropy", eager=_rows.columns,
    ours=lambda logits, target: _rows.ours(ncops.logit_stats(logits, target)),
    peers={
        "cross_entropy": lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
        "numpy": numpy(_rows.numpy_columns),
    },
    flops=lambda s: 2 * s["N"] * s["V"],  # so that the limit is the read, whatever the columns cost
    bytes=lambda s, item: item * s["N"] * s["V"],
    base={"N": 1024, "V": 32768},
    axes={"N": (1, 16, 64, 256, 1024, 4096), "V": (10, 100, 1000, 4096, 32768, 131072)},
    accuracy={"N": 256, "V": 8192}, averages=_rows.AVERAGES, data=("uniform", "zipf"),
)  # fmt: skip
BENCHES = (FORWARD,)
CASES = (Case(FORWARD, "float32", {"N": 1024, "V": 50257}, goal=Goal(0.75), measures=EVERYTHING),)
