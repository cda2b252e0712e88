"""Rows minus their class centre, tile by tile: what the kernels of the class ops load."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def row_classes(labels, rows, inside, num_classes, ignore_index, stride, HAS_LABELS: tl.constexpr):
    """``(class of each row, whether the row counts)``; one class for all, 0, without labels."""
    if HAS_LABELS:
        y = tl.load(labels + rows * stride, mask=inside, other=-1)
        keep = inside & (y >= 0) & (y < num_classes) & (y != ignore_index)
    else:
        y = tl.zeros_like(rows)
        keep = inside
    return y, keep


@triton.jit
def load_deviations(
    x, center, rows, classes, keep, columns, inside, stride_xn, stride_xd, stride_cc, stride_cd,
    HAS_CENTER: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """``(rows, columns)`` tile of ``x - center[class]`` in ``DTYPE``; zero where a row or column does not count."""
    mask = keep[:, None] & inside[None, :]
    wide = columns.to(tl.int64)[None, :]
    tile = tl.load(x + rows[:, None] * stride_xn + wide * stride_xd, mask=mask, other=0).to(DTYPE)
    if HAS_CENTER:
        tile -= tl.load(center + classes[:, None] * stride_cc + wide * stride_cd, mask=mask, other=0)
    return tile


def row_arguments(x: Tensor, labels: Tensor | None, center: Tensor | None) -> dict:
    """Strides and flags of features, labels and centres; a lone centre ``(D,)`` is class 0 of every row."""
    lone = center is not None and center.ndim == 1
    return {
        "labels": labels,
        "center": center,
        "num_classes": center.shape[0] if labels is not None and center is not None else 1,
        "stride_y": 0 if labels is None else labels.stride(0),
        "stride_xn": x.stride(0),
        "stride_xd": x.stride(1),
        "stride_cc": 0 if center is None or lone else center.stride(0),
        "stride_cd": 0 if center is None else center.stride(-1),
        "HAS_LABELS": labels is not None,
        "HAS_CENTER": center is not None,
    }


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """What products and sums of ``dtype`` are formed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32
