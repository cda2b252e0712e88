"""Per-class counts, anchored sums and anchored squared norms, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._deviations import deviations, in_range


def class_moments(
    x: Tensor, labels: Tensor, num_classes: int, center: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(sums (C, D), sqnorms (C) float64, counts (C) int64, invalid () int64)`` of ``x - center[label]``."""
    inside = in_range(labels, num_classes, ignore_index)
    invalid = (~inside & (labels != ignore_index)).sum()
    sums = x.new_zeros((num_classes, x.shape[1]), dtype=torch.float64)
    sqnorms = x.new_zeros(num_classes, dtype=torch.float64)
    counts = torch.bincount(labels[inside], minlength=num_classes)
    for _, y, r in deviations(x, labels, center, ignore_index, x.shape[1], num_classes):
        sums.index_add_(0, y, r.double())
        sqnorms.index_add_(0, y, r.double().square().sum(1))
    return sums.to(compute_dtype(x.dtype)), sqnorms, counts, invalid


def accumulate_class_moments_(
    counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor, invalid: Tensor,
    x: Tensor, labels: Tensor, ignore_index: int,
) -> Tensor:  # fmt: skip
    """Adds the moments of ``x`` to a running state in place; classes seen first are anchored at their mean here.

    Returns the number of invalid labels. On the CPU nothing has changed when that number is not zero.
    """
    num_classes = counts.shape[0]
    batch_sums, _, batch_counts, bad = class_moments(x, labels, num_classes, None, ignore_index)
    if x.device.type == "cpu" and bad > 0:
        return bad
    present = batch_counts.nonzero().squeeze(1)
    new = present[counts[present] == 0]
    center[new] = (batch_sums[new] / batch_counts[new, None]).to(center.dtype)
    batch_sums, batch_sqnorms, _, _ = class_moments(x, labels, num_classes, center, ignore_index)
    sums[present] += batch_sums[present]
    sqnorms[present] += batch_sqnorms[present]
    counts[present] += batch_counts[present]
    invalid += bad
    return bad


def class_moments_backward(
    g_sums: Tensor, g_sqnorms: Tensor, x: Tensor, labels: Tensor, num_classes: int, center: Tensor | None,
    ignore_index: int,
) -> Tensor:  # fmt: skip
    """Gradient of ``x``: ``g_sums[y] + 2 g_sqnorms[y] (x - center[y])``; ignored rows get zero."""
    grad = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for rows, y, r in deviations(x, labels, center, ignore_index, x.shape[1], num_classes):
        grad[rows] = (g_sums[y] + 2 * g_sqnorms[y, None].to(g_sums.dtype) * r).to(x.dtype)
    return grad
