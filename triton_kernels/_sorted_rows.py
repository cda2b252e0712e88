"""Rows in the order of their labels: what every sum per class starts from. Sorts once and never synchronises."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import device_of

_BLOCK = 1024


class SortedRows(NamedTuple):
    """``order (N,)`` lists the rows by class, ``keys (N,)`` their classes, ``starts (C + 2,)`` where each class begins.

    Rows with an invalid label follow the last class under key C, ignored rows follow those under key C + 1: so
    ``starts[C]`` rows count, and ``starts[C + 1] - starts[C]`` are invalid.
    """

    order: Tensor
    keys: Tensor
    starts: Tensor


@triton.jit
def _label_keys(labels, keys, n, num_classes, ignore_index, stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(labels + rows * stride, mask=rows < n, other=0)
    key = tl.where((y >= 0) & (y < num_classes), y, num_classes)
    key = tl.where(y == ignore_index, num_classes + 1, key)
    tl.store(keys + rows, key.to(keys.dtype.element_ty), mask=rows < n)


@triton.jit
def _class_starts(keys, starts, n, steps, count, BLOCK: tl.constexpr):
    """Binary search for the first row of each class in the sorted keys."""
    wanted = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), tl.int64)
    high = low + n
    for _ in range(steps):
        middle = (low + high) // 2
        searching = low < high
        key = tl.load(keys + middle, mask=searching & (wanted < count), other=0).to(tl.int64)
        above = searching & (key < wanted)
        high = tl.where(searching & (key >= wanted), middle, high)
        low = tl.where(above, middle + 1, low)
    tl.store(starts + wanted, low, mask=wanted < count)


def key_dtype(num_classes: int) -> torch.dtype:
    """The narrowest signed dtype that holds the keys: a radix sort takes a pass per byte."""
    for dtype in (torch.int16, torch.int32):
        if num_classes + 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64


def sort_rows(
    labels: Tensor | None, rows: int, num_classes: int, ignore_index: int, device: torch.device
) -> SortedRows:
    """Rows by label; ``labels`` None puts all of them into class 0, in their order."""
    starts = torch.empty(num_classes + 2, dtype=torch.int64, device=device)
    if labels is None:
        order = torch.arange(rows, device=device)
        starts.fill_(rows)[:1].zero_()
        return SortedRows(order, torch.zeros(rows, dtype=torch.int16, device=device), starts)
    keys = torch.empty(rows, dtype=key_dtype(num_classes), device=device)
    with device_of(labels):
        if rows:
            _label_keys[(triton.cdiv(rows, _BLOCK),)](
                labels, keys, rows, num_classes, ignore_index, labels.stride(0), BLOCK=_BLOCK
            )
        keys, order = torch.sort(keys, stable=True)
        count = num_classes + 2
        _class_starts[(triton.cdiv(count, _BLOCK),)](keys, starts, rows, rows.bit_length(), count, BLOCK=_BLOCK)
    return SortedRows(order, keys, starts)
