"""Rows minus their class centre, tile by tile: what the kernels of the class ops load."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Deviations(NamedTuple):
    """Where features and their centres lie, which may be None."""

    x: tl.tensor
    center: tl.tensor
    stride_xn: tl.tensor
    stride_xd: tl.tensor
    stride_cc: tl.tensor
    stride_cd: tl.tensor


@triton.jit
def row_classes(labels, rows, inside, num_classes, ignore_index, stride):
    """``(class of each row, whether the row counts)``; one class for all, 0, without labels."""
    if labels is not None:
        y = tl.load(labels + rows * stride, mask=inside, other=-1)
        keep = inside & (y >= 0) & (y < num_classes) & (y != ignore_index)
    else:
        y = tl.zeros_like(rows)
        keep = inside
    return y, keep


@triton.jit
def load_deviations(of, rows, classes, keep, columns, inside, DTYPE: tl.constexpr):
    """``(rows, columns)`` tile of ``x - center[class]`` in ``DTYPE``; zero where a row or column does not count."""
    mask = keep[:, None] & inside[None, :]
    wide = columns.to(tl.int64)[None, :]
    tile = tl.load(of.x + rows[:, None] * of.stride_xn + wide * of.stride_xd, mask=mask, other=0).to(DTYPE)
    if of.center is not None:
        tile -= tl.load(of.center + classes[:, None] * of.stride_cc + wide * of.stride_cd, mask=mask, other=0)
    return tile


def row_arguments(x: Tensor, labels: Tensor | None, center: Tensor | None) -> dict:
    """Features, labels and centres with their strides; a lone centre ``(D,)`` is class 0 of every row."""
    lone = center is not None and center.ndim == 1
    return {
        "x": x,
        "labels": labels,
        "center": center,
        "num_classes": center.shape[0] if labels is not None and center is not None else 1,
        "stride_y": 0 if labels is None else labels.stride(0),
        "stride_xn": x.stride(0),
        "stride_xd": x.stride(1),
        "stride_cc": 0 if center is None or lone else center.stride(0),
        "stride_cd": 0 if center is None else center.stride(-1),
    }


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """What products and sums of ``dtype`` are formed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32
