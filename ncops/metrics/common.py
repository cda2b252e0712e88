"""Small pieces that several metrics need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import check_floating, check_shape
from ..stats.blocks import blocks


def check_rows(rows: Tensor, name: str, like: Tensor | None = None) -> None:
    check_floating(rows, name, 2)
    if like is not None:
        check_shape(rows, name, tuple(like.shape), "the shape of means, (K, D)")


def global_mean_of(means: Tensor, global_mean: Tensor | None) -> Tensor:
    """``(D,) float64``: the given point, or the unweighted mean of the rows."""
    check_floating(means, "means", 2)
    if global_mean is None:
        return means.mean(0, dtype=torch.float64)
    check_floating(global_mean, "global_mean", 1)
    check_shape(global_mean, "global_mean", (means.shape[1],), "(D,)")
    return global_mean.double()


def centred(means: Tensor, global_mean: Tensor | None) -> Tensor:
    """``(K, D) float64``: means about the given point, or about their own unweighted mean."""
    return means.double() - global_mean_of(means, global_mean)


def nan_like(means: Tensor) -> Tensor:
    """What a statistic of nothing is: a float64 NaN on the device of ``means``."""
    return torch.full((), math.nan, dtype=torch.float64, device=means.device)


def between_trace(means: Tensor, global_mean: Tensor | None) -> Tensor:
    """``tr Sigma_B``, the mean squared norm of the centred means, in blocks of 8 MB."""
    origin = global_mean_of(means, global_mean)
    total = sum((means[rows].double() - origin).square().sum() for rows in blocks(*means.shape))
    return total / means.shape[0]


def spread(values: Tensor, ddof: int, relative: bool = True) -> Tensor:
    """Standard deviation of ``values``, relative to the magnitude of their mean unless asked otherwise."""
    values = values.double()
    if values.numel() <= ddof:
        return nan_like(values)
    mean = values.mean()
    deviation = ((values - mean).square().sum() / (values.numel() - ddof)).sqrt()
    return deviation / mean.abs() if relative else deviation
