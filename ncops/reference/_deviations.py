"""Rows minus their class centre, block by block: what the ops on classes are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks


def in_range(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Which labels are classes."""
    return (labels != ignore_index) & (labels >= 0) & (labels < num_classes)


def deviations(
    x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, width: int,
    num_classes: int | None = None,
) -> Iterator[tuple[slice | Tensor, Tensor | None, Tensor]]:  # fmt: skip
    """Yields ``(row indices, labels of these rows, x - center[label])`` without ignored and out-of-range rows.

    ``num_classes``: for labels without ``center``, which stands for the origin.
    """
    dtype = compute_dtype(x.dtype)
    for rows in row_blocks(x.shape[0], width):
        if labels is None:
            r = x[rows].to(dtype)
            yield rows, None, r if center is None else r - center
            continue
        y = labels[rows]
        keep = in_range(y, num_classes if center is None else center.shape[0], ignore_index).nonzero().squeeze(1)
        y, r = y[keep], x[rows][keep].to(dtype)
        yield keep + rows.start, y, r if center is None else r - center[y]


def add_center_gradient(g_center: Tensor, labels: Tensor | None, g_rows: Tensor) -> None:
    """Every row pulls its centre the other way."""
    if labels is None:
        g_center -= g_rows.sum(0, dtype=g_center.dtype)
    else:
        g_center.index_add_(0, labels, g_rows.to(g_center.dtype), alpha=-1)


def empty_or_zeros(like: Tensor, needed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """A gradient buffer in row-major order; size 0 where nobody asks for it."""
    return torch.zeros(like.shape if needed else 0, dtype=dtype or like.dtype, device=like.device)
