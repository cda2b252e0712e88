"""Gradients of pair_stats through mean and row_max.

Products have a closed form: every row takes a share of the sum of all rows, and row maxima reach along sorted partner
lists. The distance kernels go by strips of rows: one kernel fills a strip of factors (weight times slope), another
multiplies it with the rows, with close pairs by their differences. Workspace: a strip of at most 64 MB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import Launch, capability, device_of, input_precision, launch, split_count
from ._pair_values import (
    CDNV,
    CODES,
    close_pairs,
    exponent_class,
    good_rows,
    inverse_power,
    launch_row,
    pair_slopes,
    pair_sums,
    refine,
    set_bits,
    split_power,
    tile_products,
    wanted_pairs,
)
from ._rows import column_mean, row_norms

STRIP_BYTES = 64 << 20


@triton.jit
def _factors(
    rows, stride_row, stride_column, valid, origin, norms, variances, power, power_rest, share, g_row, partner,
    factors, close_bits, by_variance, first_row, count, dim, tiles,
    KERNEL: tl.constexpr, TWICE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of a strip of rows: factors[i, j] multiply x_i - x_j; close_bits name columns with close pairs."""
    i, j = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = factors.dtype.element_ty
    full_power = tl.full((), power, tl.float64) + tl.full((), power_rest, tl.float64)
    exponent = full_power if KERNEL == CDNV else full_power * 0.5
    first_a, first_b = first_row + i * BLOCK, j * BLOCK
    product = tile_products(
        rows, stride_row, stride_column, origin, first_a, first_b, count, dim, PRECISION, dtype, BLOCK, BLOCK_D
    )
    wanted = wanted_pairs(first_a, first_b, valid, count, False, BLOCK)
    d2, close = close_pairs(product, norms, wanted, first_a, first_b, count, BLOCK)
    d2 = refine(d2, close, rows, stride_row, stride_column, first_a, first_b, count, dim, dtype, BLOCK)
    columns_close = tl.max(close.to(tl.int32), 0)

    # The weight of a pair: its share of the mean, and the row maxima that it gives.
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    of_a, of_b = tl.load(g_row + a, mask=a < count, other=0), tl.load(g_row + b, mask=b < count, other=0)
    from_a, from_b = tl.load(partner + a, mask=a < count, other=-1), tl.load(partner + b, mask=b < count, other=-1)
    weight = tl.load(share) + tl.where(from_a[:, None] == b[None, :], of_a[:, None], 0)
    weight += tl.where(from_b[None, :] == a[:, None], of_b[None, :], 0)
    weight = tl.where(wanted, weight, 0)
    sums = d2
    if KERNEL == CDNV:
        sums = pair_sums(variances, first_a, first_b, count, BLOCK)
        own = tl.where(weight == 0, 0, weight * 0.5 * inverse_power(d2, exponent, TWICE))
        own = tl.sum(own.to(tl.float64), 1)
        tl.store(by_variance + j.to(tl.int64) * count + a, own, mask=a < count)
    factor = tl.where(weight == 0, 0, weight * pair_slopes(d2, sums, full_power.to(dtype), exponent, KERNEL, TWICE))
    row = i.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(factors + row[:, None] * (tiles * BLOCK) + b[None, :], factor)
    PARTS: tl.constexpr = (BLOCK + 63) // 64
    for part in tl.static_range(PARTS):
        tl.store(close_bits + (i * tiles + j).to(tl.int64) * PARTS + part, set_bits(columns_close, part, BLOCK))


@triton.jit
def _apply(
    rows, stride_row, stride_column, valid, origin, factors, close_bits, partial,
    first_row, strip_rows, count, dim, tiles, tiles_per_split,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """partial[split, i, d] = sum over the split's j of factors[i, j] (x_i - x_j)[d]."""
    i, split = tl.program_id(0), tl.program_id(2)
    dtype: tl.constexpr = factors.dtype.element_ty
    PARTS: tl.constexpr = (BLOCK + 63) // 64
    TILES: tl.constexpr = (FOLD + BLOCK - 1) // BLOCK
    place = tl.arange(0, BLOCK)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    deep = d < dim
    column = d.to(tl.int64) * stride_column
    centre = tl.load(origin + d, mask=deep, other=0)
    a = first_row + i * BLOCK + place
    mask = good_rows(first_row + i * BLOCK, valid, count, BLOCK)[:, None] & deep[None, :]
    mine = tl.load(rows + a.to(tl.int64)[:, None] * stride_row + column[None, :], mask=mask, other=0).to(dtype)
    strip = factors + (i.to(tl.int64) * BLOCK + place)[:, None] * (tiles * BLOCK)
    total, near = tl.zeros((BLOCK, BLOCK_D), dtype), tl.zeros((BLOCK, BLOCK_D), dtype)
    weight = tl.zeros((BLOCK,), dtype)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    for fold in range(first, last, TILES):  # in one chain over many rows the late ones lose their digits
        part = tl.zeros((BLOCK, BLOCK_D), dtype)
        for j in range(fold, tl.minimum(fold + TILES, last)):
            b = j * BLOCK + place
            mask = good_rows(j * BLOCK, valid, count, BLOCK)[:, None] & deep[None, :]
            there = rows + b.to(tl.int64)[:, None] * stride_row + column[None, :]
            theirs = tl.load(there, mask=mask, other=0).to(dtype)
            factor = tl.load(strip + b[None, :])
            # Columns with a close pair go by differences: a large factor times a cancelled difference has no digits.
            for word in tl.static_range(PARTS):
                bits = tl.load(close_bits + (i * tiles + j).to(tl.int64) * PARTS + word)
                if bits != 0:
                    flagged = (place // 64 == word) & (((bits >> (place % 64).to(tl.int64)) & 1) != 0)
                    factor = tl.where(flagged[None, :], 0, factor)
                    for bit in range(64):
                        if ((bits >> bit) & 1) != 0:
                            other = tl.full((), 64 * word, tl.int64) + j * BLOCK + bit
                            one = tl.load(rows + other * stride_row + column, mask=deep, other=0)
                            own = tl.load(strip + other)
                            near += own * (mine - one.to(dtype)[None, :])
            theirs = tl.where(mask, theirs - centre[None, :], 0)
            part = tl.dot(factor, theirs, part, input_precision="ieee", out_dtype=dtype)
            weight += tl.sum(factor, 1)
        total += part
    result = weight[:, None] * (mine - centre[None, :]) - total + near
    out = split.to(tl.int64) * strip_rows * dim + (i.to(tl.int64) * BLOCK + place)[:, None] * dim + d[None, :]
    tl.store(partial + out, result, mask=(i * BLOCK + place < strip_rows)[:, None] & deep[None, :])


@triton.jit
def _partners(
    rows, stride_row, stride_column, scale, sums, share, g_row, partner, order, starts, partial, count, dim,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial[i] = share (sum of rows - x_i) + g_i x_partner(i) + sum of g_k x_k over rows k whose partner is i."""
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    deep = d < dim
    dtype: tl.constexpr = partial.dtype.element_ty
    column = d.to(tl.int64) * stride_column
    total = tl.zeros((BLOCK_R, BLOCK_D), dtype)
    last = tl.load(starts + i + 1)
    for start in range(tl.load(starts + i), last, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        row = tl.load(order + at, mask=at < last, other=0)
        factor = tl.load(g_row + row, mask=at < last, other=0)
        if scale is not None:
            factor = factor * tl.load(scale + row, mask=at < last, other=0)
        mask = (at < last)[:, None] & deep[None, :]
        value = tl.load(rows + row[:, None] * stride_row + column[None, :], mask=mask, other=0)
        total += factor[:, None] * value.to(dtype)
    result = tl.sum(total, 0)
    mine = tl.load(rows + i * stride_row + column, mask=deep, other=0).to(dtype)
    friend = tl.load(partner + i).to(tl.int64)
    known = friend >= 0
    friend = tl.where(known, friend, 0)
    factor = tl.load(g_row + i)
    theirs = tl.load(rows + friend * stride_row + column, mask=d < tl.where(known, dim, 0), other=0).to(dtype)
    if scale is not None:
        mine = mine * tl.load(scale + i)
        theirs = theirs * tl.load(scale + friend)
    mean_part = (tl.load(sums + d, mask=deep, other=0) - mine.to(tl.float64)) * tl.load(share).to(tl.float64)
    result += mean_part.to(dtype) + factor * theirs
    tl.store(partial + i * dim + d, result, mask=deep)


@triton.jit
def _finish(
    rows, stride_row, stride_column, valid, scale, partial, grad, first_row, strip_rows, dim, splits,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad[row] = the splits' sum in order; with a scale (cosine) without its part along the row, times the scale."""
    row = tl.program_id(0).to(tl.int64)
    here = first_row + row
    dtype: tl.constexpr = partial.dtype.element_ty
    good = tl.full((), 1, tl.int1)
    if valid is not None:
        good = tl.load(valid + here) != 0
    along = tl.zeros((BLOCK_D,), dtype)
    size = tl.full((), 1, dtype)
    if scale is not None:
        size = tl.load(scale + here)
        for start in range(0, dim, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            value = tl.load(rows + here * stride_row + d.to(tl.int64) * stride_column, mask=d < dim, other=0).to(dtype)
            along += tl.load(partial + row * dim + d, mask=d < dim, other=0) * (value * size)
    projection = tl.sum(along, 0)
    step = tl.full((), strip_rows, tl.int64) * dim
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        result = tl.zeros((BLOCK_D,), dtype)
        place = partial + row * dim + d
        for _ in range(0, splits):
            result += tl.load(place, mask=d < dim, other=0)
            place += step
        if scale is not None:
            value = tl.load(rows + here * stride_row + d.to(tl.int64) * stride_column, mask=d < dim, other=0).to(dtype)
            result = (result - projection * (value * size)) * size
        result = tl.where(good, result, 0)
        tl.store(grad + here * dim + d, result.to(grad.dtype.element_ty), mask=d < dim)


def pair_stats_backward(
    g_mean: Tensor, g_row_max: Tensor, count: Tensor, row_argmax: Tensor,
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(gradient of rows (K, D), of variances (K,), size 0 without)``, as ``ncops.reference.pair_stats_backward``."""
    grad = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    size, dtype = 0 if variances is None else rows.shape[0], compute_dtype(rows.dtype)
    g_variances = torch.zeros(size, dtype=dtype, device=rows.device)
    if rows.shape[0] == 0:
        return grad, g_variances
    with device_of(rows):
        share = torch.where(count > 0, g_mean / count, 0).to(g_variances.dtype)
        g_row = torch.where(row_argmax >= 0, g_row_max, 0).contiguous()
        valid = None if valid is None else valid.contiguous()
        if kernel in ("dot", "cosine"):
            _products(grad, share, g_row, row_argmax.contiguous(), rows, kernel, valid)
        else:
            sources = (share, g_row, row_argmax.contiguous(), rows, kernel, variances, power, valid, allow_tf32)
            _distances(grad, g_variances, *sources)
    return grad, g_variances


def _products(
    grad: Tensor, share: Tensor, g_row: Tensor, partner: Tensor, rows: Tensor, kernel: str, valid: Tensor | None
) -> None:
    (count, dim), dtype, device = rows.shape, share.dtype, rows.device
    scale = row_norms(rows, None, dtype, reciprocal=True) if kernel == "cosine" else None
    mean, number = column_mean(rows, valid, scale)
    ordered, order = torch.sort(partner, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, device=device))
    partial = torch.empty((count, dim), dtype=dtype, device=device)
    config = launch("pair_partners", rows.dtype, capability(device))
    _partners[(count, triton.cdiv(dim, config["BLOCK_D"]))](
        rows, *rows.stride(), scale, mean * number, share, g_row, partner, order, starts, partial, count, dim,
        **config.options,
    )  # fmt: skip
    _finish[(count,)](rows, *rows.stride(), valid, scale, partial, grad, 0, count, dim, 1, BLOCK_D=256)


def _tile_row(kernel: str, power: float) -> str:
    name = launch_row(kernel, power)
    return "pair_factors" if name == "pair_distances" else name


def _distances(
    grad: Tensor, g_variances: Tensor, share: Tensor, g_row: Tensor, partner: Tensor, rows: Tensor, kernel: str,
    variances: Tensor | None, power: float, valid: Tensor | None, tf32: bool,
) -> None:  # fmt: skip
    (count, dim), dtype, device = rows.shape, share.dtype, rows.device
    there = capability(device)
    tile: Launch = launch(_tile_row(kernel, power), rows.dtype, there, tf32)
    chunk: Launch = launch("pair_gradient", rows.dtype, there)
    block, tiles, chunks = tile["BLOCK"], triton.cdiv(count, tile["BLOCK"]), triton.cdiv(dim, chunk["BLOCK_D"])
    origin = column_mean(rows, valid)[0].to(dtype)
    norms = row_norms(rows, origin, dtype)
    variances = None if variances is None else variances.contiguous()
    strip_tiles = max(1, min(tiles, STRIP_BYTES // (dtype.itemsize * block * block * tiles)))
    splits = split_count(there, strip_tiles * chunks, tiles, least=4)
    strip_rows = strip_tiles * block
    factors = torch.empty((strip_rows, tiles * block), dtype=dtype, device=device)
    close_bits = torch.empty((strip_tiles, tiles, -(-block // 64)), dtype=torch.int64, device=device)
    by_variance = None
    if variances is not None:
        by_variance = torch.empty((tiles, count), dtype=torch.float64, device=device)
    partial = torch.empty((splits, strip_rows, dim), dtype=dtype, device=device)
    # Triton 3.7 lays the factors of a product out by the narrowest load that they depend on, and fails for float64.
    wide_valid = None if valid is None else valid.to(torch.int64)
    for first in range(0, count, strip_rows):
        here = min(strip_tiles, triton.cdiv(count - first, block))
        _factors[(here, tiles)](
            rows, *rows.stride(), valid, origin, norms, variances, *split_power(power), share, g_row, partner,
            factors, close_bits, by_variance, first, count, dim, tiles,
            KERNEL=CODES[kernel], TWICE=exponent_class(kernel, power), PRECISION=input_precision(tf32), **tile.options,
        )  # fmt: skip
        _apply[(here, chunks, splits)](
            rows, *rows.stride(), wide_valid, origin, factors, close_bits, partial,
            first, strip_rows, count, dim, tiles, triton.cdiv(tiles, splits), BLOCK=block, **chunk.options,
        )  # fmt: skip
        _finish[(min(strip_rows, count - first),)](
            rows, *rows.stride(), valid, None, partial, grad, first, strip_rows, dim, splits, BLOCK_D=256
        )
    if by_variance is not None:
        g_variances.copy_(by_variance.sum(0))
