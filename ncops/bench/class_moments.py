"""class_moments against index_add_, scatter_add_, NumPy and the accumulators of neural_collapse."""

from __future__ import annotations

import numpy as np
import torch

import ncops

from ..backends.dtypes import compute_dtype
from .case import EVERYTHING, Bench, Case, Goal, full, labels, numpy, randn


def make(sizes, dtype, data, generator):
    n, d, c = sizes["N"], sizes["D"], sizes["C"]
    center = randn(generator, c, d, dtype=compute_dtype(dtype))
    y = labels(generator, n, c, data)
    return (center[y] + 0.5 * randn(generator, n, d)).to(dtype), y, center


def ours(x, y, center):
    moments = ncops.class_moments(x, y, center.shape[0], center=center)
    return moments.sums, moments.sqnorms, moments.counts


def eager(x, y, center):
    deviation = x - center[y]
    sums = torch.zeros_like(center).index_add_(0, y, deviation)
    sqnorms = center.new_zeros(center.shape[0]).index_add_(0, y, deviation.square().sum(1))
    return sums, sqnorms, torch.bincount(y, minlength=center.shape[0])


def with_numpy(x, y, center):
    order = np.argsort(y, kind="stable")
    deviation = (x - center[y])[order]
    counts = np.bincount(y, minlength=len(center))
    seen = np.flatnonzero(counts)
    starts = np.concatenate([[0], counts.cumsum()[:-1]])[seen]
    sums, sqnorms = np.zeros_like(center), np.zeros(len(center))
    sums[seen] = np.add.reduceat(deviation, starts)
    sqnorms[seen] = np.add.reduceat(np.square(deviation).sum(1, dtype=np.float64), starts)
    return sums, sqnorms, counts


def neural_collapse(x, y, center):
    from neural_collapse.accumulate import MeanAccumulator, VarNormAccumulator

    means, variances = (kind(center.shape[0], x.shape[1]) for kind in (MeanAccumulator, VarNormAccumulator))
    return means.accumulate(x, y)[1], variances.accumulate(x, y, center)[1]


FORWARD = Bench(
    op="class_moments", make=make, ours=ours, eager=eager, other="index_add_",
    peers={
        "index_add_": lambda x, y, center: torch.zeros_like(center, dtype=x.dtype).index_add_(0, y, x),
        "scatter_add_": lambda x, y, center: (
            torch.zeros_like(center, dtype=x.dtype).scatter_add_(0, y[:, None].expand_as(x), x)
        ),
        "numpy": numpy(with_numpy),
        "neural_collapse": neural_collapse,
    },
    flops=lambda s: 4 * s["N"] * s["D"],
    bytes=lambda s, item: item * s["N"] * s["D"],  # the goal is a pure read of x
    base={"N": 50000, "D": 512, "C": 1000},
    axes={
        "N": (1000, 10000, 50000, 200000),
        "D": (64, 256, 512, 1024, 2048),
        "C": (10, 100, 1000, 10000, 50257),
    },
    accuracy={"N": 20000}, data=("uniform", "zipf"),
)  # fmt: skip
FULL = full(
    FORWARD, lambda outputs: sum(t.double().square().mean() for t in outputs[:2]), 0,
    flops=lambda s: 7 * s["N"] * s["D"],
    bytes=lambda s, item: 3 * item * s["N"] * s["D"],  # x twice, and its gradient
    axes={"N": (1000, 10000, 50000), "C": (10, 1000, 50257)},
)  # fmt: skip
BENCHES = (FORWARD, FULL)

CASES = (
    Case(FORWARD, "1000 classes", {"N": 100000, "D": 512, "C": 1000}, goal=Goal(0.60), measures=EVERYTHING),
    # Sums and anchors of so many classes are as much memory again as x, which alone counts.
    Case(FORWARD, "50257 classes, Zipf", {"N": 100000, "D": 512, "C": 50257}, data="zipf", goal=Goal(0.35)),
)  # fmt: skip
