"""Squared norms of projected features: Mahalanobis distances, NC1 without a D x D matrix, NECO."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from .checks import check_beside, check_integer, check_label_values, refuse_forward_mode
from .class_scatter import check_labelled
from .op import define, differentiable
from .precision import allow_tf32


def projected_sqnorms(
    x: Tensor, basis: Tensor, labels: Tensor | None = None, center: Tensor | None = None, *, ignore_index: int = -100
) -> Tensor:
    """``|basis (x - center[label])|^2`` per row; the N x r projections never exist.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        basis: ``(r, D)``, not necessarily orthonormal; float32 (float64 for float64 ``x``) or the dtype of ``x``.
        labels: ``(...)`` integer class of each row, which needs ``center``; None: one centre for all.
        center: ``(C, D)`` with labels; without labels ``(D,)`` or None, the origin. In float32 (float64 for float64
            ``x``).
        ignore_index: the label to skip.

    Returns:
        ``(...)`` in float32 (float64 for float64 ``x``); 0 for ignored rows. A NaN touches only its row.

    Raises:
        ValueError: shape, dtype or device mismatch; labels without center; on CPU also a label outside ``[0, C)``,
            naming row and value (elsewhere such a row gives 0).

    Gradients flow to ``x``, ``basis`` and ``center``.
    """
    flat, y = check_labelled(x, labels, center)
    ignore_index = check_integer(ignore_index, "ignore_index")
    check_beside(basis, "basis", (None, x.shape[-1]), "(r, D)", x, "x")
    dtype = compute_dtype(x.dtype)
    if basis.dtype not in (dtype, x.dtype):
        raise ValueError(f"basis: expected {dtype} or the dtype of x, {x.dtype}, got {basis.dtype}")
    refuse_forward_mode("projected_sqnorms", x, basis, center)
    out = torch.ops.ncops.projected_sqnorms(flat, basis.to(dtype), y, center, ignore_index, allow_tf32(x))
    return out.reshape(x.shape[:-1])


def _check(x, basis, labels, center, ignore_index, allow_tf32):
    if labels is not None:
        check_label_values(labels, center.shape[0], ignore_index, "labels")


def _fake(x, *_):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


_INPUTS = "Tensor x, Tensor basis, Tensor? labels, Tensor? center, int ignore_index, bool allow_tf32"
define(f"projected_sqnorms({_INPUTS}) -> Tensor sqnorms", _fake, check=_check)
define(
    f"projected_sqnorms_backward(Tensor g_sqnorms, {_INPUTS}, bool need_x, bool need_basis, bool need_center)"
    " -> (Tensor g_x, Tensor g_basis, Tensor g_center)"
)
differentiable("projected_sqnorms")
