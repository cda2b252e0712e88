"""Errors of our op and of the eager expression against float64, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from .case import EAGER, OURS, Case


def errors(case: Case) -> dict[str, float]:
    """Per contestant, the largest error of a column over the largest value of that column, in the worst column.

    A mean is held against the size of what was averaged: of logits that nearly cancel, no sum keeps relative digits.
    The truth is the eager expression in float64 on the very values that the contestants get; sizes are cut to what the
    comparison needs.
    """
    inputs = case.at_most(case.bench.accuracy).inputs()
    truth = case.bench.contestants[EAGER](*map(_double, inputs))
    scales = [t.abs().max().item() if t.is_floating_point() and t.numel() else 0.0 for t in truth]
    for mean, variance in case.bench.averages.items():
        scales[mean] = math.hypot(scales[mean], math.sqrt(scales[variance]))
    return {
        name: _worst(case.bench.contestants[name](*inputs), truth, scales)
        for name in (OURS, EAGER)
        if name in case.names(everything=False)
    }


def allowed(eager: float, dtype: torch.dtype) -> float:
    """Ours may be twice the eager error and a few roundings of the compute dtype."""
    return 2 * eager + 8 * torch.finfo(compute_dtype(dtype)).eps


def _double(value):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def _worst(found: Sequence[Tensor], truth: Sequence[Tensor], scales: Sequence[float]) -> float:
    worst = 0.0
    for mine, exact, scale in zip(found, truth, scales, strict=True):
        if not exact.is_floating_point() or exact.numel() == 0:
            continue
        error = (mine.double() - exact).abs().max().item()
        error = error / scale if scale else error
        worst = error if math.isnan(error) else max(worst, error)
    return worst
