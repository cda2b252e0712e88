"""Sum of outer products of features about their class centres: within-class, total or uncentred scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from .checks import (
    check_floating,
    check_integer,
    check_label_values,
    flatten_labels,
    flatten_rows,
    refuse_forward_mode,
)
from .class_moments import check_center
from .op import define, differentiable
from .precision import allow_tf32


def class_scatter(
    x: Tensor, labels: Tensor | None = None, center: Tensor | None = None, *, ignore_index: int = -100
) -> Tensor:
    """``sum_i (x_i - center[label_i]) (x_i - center[label_i])^T``, not divided by the count.

    With class means as centres this is the within-class scatter (``Sigma_W`` times N); with anchors near the means it
    is exact in the collapsed regime, after the correction of :class:`ClassStatistics`.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        labels: ``(...)`` integer class of each row, which needs ``center``; None: every row counts.
        center: ``(C, D)`` with labels; without labels ``(D,)``, one centre, or None, the origin. In float32 (float64
            for float64 ``x``).
        ignore_index: the label to skip.

    Returns:
        ``(D, D)`` float32 (float64 for float64 ``x``), exactly symmetric. A NaN spreads to its row and column.

    Raises:
        ValueError: shape, dtype or device mismatch; labels without center; on CPU also a label outside ``[0, C)``,
            naming row and value (elsewhere such a row is skipped).

    Gradients flow to ``x`` and ``center``. The workspace is one block of rows.

    The cross scatter ``sum_i x_i other_i^T`` of two sides, ``(N, D1)`` and ``(N, D2)``, is a block of one scatter of
    both: ``class_scatter(torch.cat([x, other], 1))[:D1, D1:]``, with centres laid side by side likewise. Where both
    layers together are too much memory, add up the scatters of batches. :func:`ncops.metrics.linear_cka` takes the
    whole.
    """
    flat, y = check_labelled(x, labels, center)
    ignore_index = check_integer(ignore_index, "ignore_index")
    refuse_forward_mode("class_scatter", x, center)
    return torch.ops.ncops.class_scatter(flat, y, center, ignore_index, allow_tf32(x))


def check_labelled(x: Tensor, labels: Tensor | None, center: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Checks features, labels and their centres; flattens the leading dimensions."""
    flat = flatten_rows(x)
    y = None if labels is None else flatten_labels(labels, "labels", x, "x")
    if labels is not None and center is None:
        raise ValueError("center: expected shape (C, D) with labels, got None")
    if center is not None:
        check_floating(center, "center")
        if labels is None:
            check_center(center, flat, (x.shape[-1],), "(D,) without labels")
        else:
            rows = center.shape[0] if center.ndim else 0
            check_center(center, flat, (rows, x.shape[-1]), "(C, D) with labels")
    return flat, y


def _check(x, labels, center, ignore_index, allow_tf32):
    if labels is not None:
        check_label_values(labels, center.shape[0], ignore_index, "labels")


def _fake(x, *_):
    return x.new_empty((x.shape[1], x.shape[1]), dtype=compute_dtype(x.dtype))


_INPUTS = "Tensor x, Tensor? labels, Tensor? center, int ignore_index, bool allow_tf32"
define(f"class_scatter({_INPUTS}) -> Tensor sum", _fake, check=_check)
define(
    f"class_scatter_backward(Tensor g_sum, {_INPUTS}, bool need_x, bool need_center) -> (Tensor g_x, Tensor g_center)"
)
differentiable("class_scatter")
