"""Means over rows and norms of rows: what is subtracted or scaled by before rows are multiplied."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import capability, launch, split_count


@triton.jit
def _column_sums(
    rows, stride_row, stride_column, valid, stride_valid, scale, partial, stride_split, count, dim, tiles_per_split,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial[split, d] = float64 sum of the split's valid rows (times ``scale``); partial[split, dim] counts them."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(1).to(tl.int64)
    inside = columns < dim
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    found = tl.zeros((BLOCK_R,), tl.float64)
    first = split * tiles_per_split * BLOCK_R
    last = tl.minimum(first + tiles_per_split * BLOCK_R, count)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)
        wanted = row < count
        if valid is not None:
            wanted = wanted & (tl.load(valid + row * stride_valid, mask=wanted, other=0) != 0)
        place = rows + row[:, None] * stride_row + columns[None, :].to(tl.int64) * stride_column
        value = tl.load(place, mask=wanted[:, None] & inside[None, :], other=0).to(tl.float64)
        if scale is not None:
            value = value * tl.load(scale + row, mask=wanted, other=0).to(tl.float64)[:, None]
        total += value
        found += wanted.to(tl.float64)
    tl.store(partial + split * stride_split + columns, tl.sum(total, 0), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(partial + split * stride_split + dim, tl.sum(found, 0))


@triton.jit
def _centred_rows(
    rows, stride_row, stride_column, valid, stride_valid, origin, centred, half, count, dim,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """centred = rows - origin, formed in float64; half[r] = -|centred[r]|^2 / 2, -inf where not valid."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < count
    total = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, dim, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = inside[:, None] & (columns < dim)[None, :]
        value = tl.load(rows + row[:, None] * stride_row + columns[None, :] * stride_column, mask=mask, other=0)
        value = value.to(tl.float64) - tl.load(origin + columns, mask=columns < dim, other=0)[None, :]
        value = value.to(centred.dtype.element_ty)
        tl.store(centred + row[:, None] * dim + columns[None, :], value, mask=mask)
        wide = tl.where(mask, value.to(tl.float64), 0.0)
        total += tl.sum(wide * wide, 1)
    total = -0.5 * total
    if valid is not None:
        good = tl.load(valid + row * stride_valid, mask=inside, other=0) != 0
        total = tl.where(good, total, float("-inf"))
    tl.store(half + row, total.to(half.dtype.element_ty), mask=inside)


@triton.jit
def _row_norms(
    rows, stride_row, stride_column, origin, norms, count, dim,
    RECIPROCAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """norms[r] = |rows[r] - origin|^2, or 1 / |rows[r]| with RECIPROCAL (NaN for a zero row), summed in float64."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < count
    dtype: tl.constexpr = norms.dtype.element_ty
    total = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, dim, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = inside[:, None] & (columns < dim)[None, :]
        value = tl.load(rows + row[:, None] * stride_row + columns[None, :] * stride_column, mask=mask, other=0)
        value = value.to(dtype)
        if origin is not None:
            value = tl.where(mask, value - tl.load(origin + columns, mask=columns < dim, other=0)[None, :], 0.0)
        wide = value.to(tl.float64)
        total += tl.sum(wide * wide, 1)
    if RECIPROCAL:
        total = tl.where(total == 0, float("nan"), 1.0 / tl.sqrt(total))
    tl.store(norms + row, total.to(dtype), mask=inside)


def column_mean(rows: Tensor, valid: Tensor | None, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(mean (D,), count ())`` in float64 of the valid rows, times ``scale (K,)``; NaN and 0 without any."""
    count, dim = rows.shape
    there = capability(rows.device)
    config = launch("row_means", rows.dtype, there)
    columns = triton.cdiv(dim, config["BLOCK_D"])
    tiles = triton.cdiv(count, config["BLOCK_R"])
    splits = split_count(there, columns, tiles, least=4)
    partial = torch.empty((splits, dim + 1), dtype=torch.float64, device=rows.device)
    _column_sums[(max(1, columns), splits)](
        rows, *rows.stride(), valid, 0 if valid is None else valid.stride(0), scale, partial, partial.stride(0),
        count, dim, triton.cdiv(tiles, splits), **config.options,
    )  # fmt: skip
    total = partial.sum(0)
    return total[:dim] / total[dim], total[dim]


def centred_rows(rows: Tensor, valid: Tensor | None, origin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``(rows - origin (K, D), minus half its squared norms (K,))`` in ``dtype``; -inf for rows that are not valid."""
    count, dim = rows.shape
    centred = torch.empty((count, dim), dtype=dtype, device=rows.device)
    half = torch.empty(count, dtype=dtype, device=rows.device)
    config = launch("row_norms", rows.dtype, capability(rows.device))
    _centred_rows[(triton.cdiv(count, config["BLOCK_R"]),)](
        rows, *rows.stride(), valid, 0 if valid is None else valid.stride(0), origin, centred, half, count, dim,
        **config.options,
    )  # fmt: skip
    return centred, half


def row_norms(rows: Tensor, origin: Tensor | None, dtype: torch.dtype, *, reciprocal: bool = False) -> Tensor:
    """Squared norms ``(K,)`` of the rows about ``origin (D,)`` in ``dtype``, or one over their norms."""
    count, dim = rows.shape
    norms = torch.empty(count, dtype=dtype, device=rows.device)
    config = launch("row_norms", rows.dtype, capability(rows.device))
    _row_norms[(triton.cdiv(count, config["BLOCK_R"]),)](
        rows, *rows.stride(), origin, norms, count, dim, RECIPROCAL=reciprocal, **config.options
    )
    return norms
