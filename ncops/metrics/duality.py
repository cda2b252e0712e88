"""NC3: how classifier rows relate to the class means."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..stats.blocks import blocks
from .common import centred, check_rows, global_mean_of, nan_like, spread
from .configuration import simplex_error


class Alignment(NamedTuple):
    """Mean and coefficient of variation (std / |mean|) over classes; float64 scalars."""

    mean: Tensor
    cv: Tensor


def _offset(weight: Tensor, means: Tensor, center_weight: bool) -> Tensor | float:
    """What is subtracted from every classifier row; raises where rows and means do not belong together."""
    check_rows(means, "means")
    check_rows(weight, "weight", means)
    return weight.mean(0, dtype=torch.float64) if center_weight else 0.0


def row_similarity(
    weight: Tensor, means: Tensor, *, global_mean: Tensor | None = None, similarity: str = "cosine",
    center_weight: bool = False,
) -> Tensor:  # fmt: skip
    """``(K,) float64`` cosine (or inner product) of each classifier row with its own centred class mean.

    Args:
        weight: ``(K, D)`` classifier rows of the kept classes, in any floating dtype.
        means: ``(K, D)`` class means. global_mean: ``(D,)``, None: the unweighted mean of ``means``.
        similarity: ``"cosine"`` or ``"dot"``.
        center_weight: subtract the mean of the given rows from each.
    """
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity: expected 'cosine' or 'dot', got {similarity!r}")
    offset = _offset(weight, means, center_weight)
    origin = global_mean_of(means, global_mean)
    values = []
    for rows in blocks(*means.shape):
        w, m = weight[rows].double() - offset, means[rows].double() - origin
        dot = (w * m).sum(1)
        values.append(dot / (w.norm(dim=1) * m.norm(dim=1)) if similarity == "cosine" else dot)
    return torch.cat(values) if values else origin.new_zeros(0)


def alignment(
    weight: Tensor, means: Tensor, *, global_mean: Tensor | None = None, similarity: str = "cosine",
    center_weight: bool = False, ddof: int = 0,
) -> Alignment:  # fmt: skip
    """(U)NC3: mean and coefficient of variation of :func:`row_similarity` over classes. Wu and Papyan 2024.

    ``ddof`` is that of the standard deviation. Self-duality has mean cosine 1 and variation 0. NaN for K < 2.
    """
    values = row_similarity(weight, means, global_mean=global_mean, similarity=similarity, center_weight=center_weight)
    if values.numel() < 2:
        return Alignment(nan_like(means), nan_like(means))
    return Alignment(values.mean(), spread(values, ddof))


def duality_error(
    weight: Tensor, means: Tensor, *, global_mean: Tensor | None = None, center_weight: bool = False
) -> Tensor:
    """Distance of ``W M^T``, scaled to norm 1, from a simplex of norm 1. Zhu et al. 2021; library neural-collapse.

    Arguments as in :func:`row_similarity`. float64 scalar in [0, 2], 0 at self-duality; NaN for K < 2.
    """
    offset = _offset(weight, means, center_weight)
    return simplex_error(weight.double() - offset if center_weight else weight, centred(means, global_mean))


def duality_distance(
    weight: Tensor, means: Tensor, *, global_mean: Tensor | None = None, center_weight: bool = False
) -> Tensor:
    """``| W / |W|_F - M / |M|_F |_F^2`` with centred means M. Papyan, Han and Donoho 2020.

    Arguments as in :func:`row_similarity`. float64 scalar in [0, 4], 0 at self-duality; NaN for K < 2.
    """
    offset = _offset(weight, means, center_weight)
    if means.shape[0] < 2:
        return nan_like(means)
    w, m = weight.double() - offset, centred(means, global_mean)
    return (w / w.norm() - m / m.norm()).square().sum()
