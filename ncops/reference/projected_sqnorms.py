"""Squared norms of projected deviations, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._deviations import add_center_gradient, deviations, empty_or_zeros


def projected_sqnorms(
    x: Tensor, basis: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool
) -> Tensor:
    """``|basis (x - center[label])|^2 (N,)``; 0 for ignored rows."""
    out = basis.new_zeros(x.shape[0])
    for rows, _, r in deviations(x, labels, center, ignore_index, max(basis.shape)):
        out[rows] = (r @ basis.t()).square().sum(1, dtype=torch.float64).to(out.dtype)
    return out


def projected_sqnorms_backward(
    g: Tensor, x: Tensor, basis: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int,
    allow_tf32: bool, need_x: bool, need_basis: bool, need_center: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``basis`` and ``center``; size 0 where not needed. A row with ``g = 0`` gives nothing."""
    g_x = empty_or_zeros(x, need_x)
    g_basis = empty_or_zeros(basis, need_basis)
    g_center = empty_or_zeros(basis if center is None else center, need_center, torch.float64)
    for rows, y, r in deviations(x, labels, center, ignore_index, max(basis.shape)):
        factor = 2 * g[rows, None]
        r = torch.where(factor == 0, 0, r)
        projected = factor * (r @ basis.t())
        if need_basis:
            g_basis.addmm_(projected.t(), r)
        if need_x or need_center:
            g_rows = projected @ basis
            if need_x:
                g_x[rows] = g_rows.to(x.dtype)
            if need_center:
                add_center_gradient(g_center, y, g_rows)
    return g_x, g_basis, g_center.to(basis.dtype)
