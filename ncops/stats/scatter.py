"""The scatter of a batch about its classes' anchors, in float64 where float32 sums would lose its small directions.

A float32 sum of outer products errs in entry (i, j) by some eps sqrt(S_ii S_jj). Beside deviations that are wide along
an axis that is nothing; beside wide ones off the axes every entry is large, and directions whose share of the spread is
below eps come out as rounding, negative variances among it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import class_scatter
from .blocks import blocks

SHARE = 1e-3
"""A float32 sum is kept where no direction has less of the variance: its rounding is some 1e-6 of it."""
SEEN = 64
"""Coordinates that are looked at. Whatever is wide off the axes shows in any of them, and the look costs no D^3."""


def batch_scatter(x: Tensor, y: Tensor, center: Tensor, before: Tensor, *, ignore_index: int) -> Tensor:
    """``sum r r^T (D, D)`` of ``r = x - center[y]``, to be added to ``before``, the scatter of all earlier rows.

    Args:
        x: ``(N, D)``. y: ``(N,) int64``; rows of ``ignore_index``, or outside ``[0, C)``, count nowhere.
        center: ``(C, D)`` anchors. before: ``(D, D) float64``.
    """
    batch = class_scatter(x, y, center, ignore_index=ignore_index)
    if batch.dtype == torch.float64 or not _loses_digits(batch, before):
        return batch
    total = torch.zeros_like(before)
    counted = ((y >= 0) & (y < center.shape[0]) & (y != ignore_index)).nonzero()[:, 0]
    for part in blocks(counted.numel(), x.shape[1]):
        rows = counted[part]
        total += class_scatter(x[rows].double() - center[y[rows]].double())
    return total


def _loses_digits(batch: Tensor, before: Tensor) -> bool:
    """Whether the rounding of a float32 ``batch`` reaches the small directions of what it is added to."""
    step = -(-batch.shape[0] // SEEN)
    seen, before = batch[::step, ::step].double(), before[::step, ::step]
    if not before.isfinite().all():
        return False  # lost already
    total = seen + before
    scale = seen.diagonal().rsqrt()  # rounding of the batch is alike in every direction once its variances are 1
    told = scale.isfinite()  # a coordinate that never varies in this batch adds no rounding
    scale = scale.where(told, 0.0)
    total = total * scale[:, None] * scale
    total.diagonal().add_(torch.where(told, -SHARE, 1.0))
    return bool(torch.linalg.cholesky_ex(total).info) or not bool(total.isfinite().all())
