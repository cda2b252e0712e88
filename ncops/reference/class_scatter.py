"""Sum of outer products of deviations, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._deviations import add_center_gradient, deviations, empty_or_zeros


def class_scatter(
    x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool
) -> Tensor:
    """``sum_i r_i r_i^T (D, D)`` of ``r = x - center[label]``, exactly symmetric."""
    total = x.new_zeros((x.shape[1], x.shape[1]), dtype=compute_dtype(x.dtype))
    for _, _, r in deviations(x, labels, center, ignore_index, x.shape[1]):
        total.addmm_(r.t(), r)
    return total.tril() + total.tril(-1).t()


def class_scatter_backward(
    g: Tensor, x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool,
    need_x: bool, need_center: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``r (g + g^T)`` for ``x``, minus its sums per class for ``center``; size 0 where not needed."""
    g = g + g.t()
    g_x = empty_or_zeros(x, need_x)
    g_center = empty_or_zeros(g if center is None else center, need_center, torch.float64)
    for rows, y, r in deviations(x, labels, center, ignore_index, x.shape[1]):
        g_rows = r @ g
        if need_x:
            g_x[rows] = g_rows.to(x.dtype)
        if need_center:
            add_center_gradient(g_center, y, g_rows)
    return g_x, g_center.to(g.dtype)
