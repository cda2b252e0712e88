"""nearest_class_mean against cdist and the expanded square."""

from __future__ import annotations

import torch

import ncops

from ..backends.dtypes import compute_dtype
from .case import Bench, Case, Goal, labels, numpy, randn


def make(sizes, dtype, data, generator):
    n, d, c = sizes["N"], sizes["D"], sizes["C"]
    means = randn(generator, c, d, dtype=compute_dtype(dtype))
    return (means[labels(generator, n, c, data)] + randn(generator, n, d)).to(dtype), means


def ours(x, means):
    nearest = ncops.nearest_class_mean(x, means)
    return nearest.sqdist, nearest.index


def eager(x, means):
    x = x.to(means.dtype)
    squares = x.square().sum(1, keepdim=True) - 2 * (x @ means.T) + means.square().sum(1)
    return squares.min(1)


def with_numpy(x, means):
    squares = (x**2).sum(1, keepdims=True) - 2 * (x @ means.T) + (means**2).sum(1)
    return squares.min(1), squares.argmin(1)


FORWARD = Bench(
    op="nearest_class_mean", make=make, ours=ours, eager=eager, other="matmul",
    peers={
        "matmul": lambda x, means: x.to(means.dtype) @ means.T,
        "cdist": lambda x, means: torch.cdist(x.to(means.dtype), means).min(1),
        "numpy": numpy(with_numpy),
    },
    flops=lambda s: 2 * s["N"] * s["D"] * s["C"],
    bytes=lambda s, item: item * s["N"] * s["D"] + 4 * s["C"] * s["D"],
    base={"N": 4096, "D": 512, "C": 1000},
    axes={"N": (64, 1024, 4096, 16384), "D": (64, 256, 512, 1024), "C": (10, 100, 1000, 10000, 50257)},
    accuracy={"N": 1024, "C": 1000},
)  # fmt: skip
BENCHES = (FORWARD,)
CASES = (Case(FORWARD, "1000 classes", {"N": 16384, "D": 512, "C": 1000}, goal=Goal(0.80)),)
