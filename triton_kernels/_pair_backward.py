"""Gradients of pair_stats through mean and row_max.

Products have a closed form: every row takes a share of the sum of all rows, and row maxima reach along sorted partner
lists. With labels a class has a sum of its own, formed for some columns at a time. The distance kernels and the angle
go by strips of rows: one kernel fills a strip of factors (weight times slope), another multiplies it with the rows,
with close pairs by their differences. Workspace: a strip of at most 64 MB, and for dot and cosine a gradient in the
compute dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import Launch, capability, device_of, input_precision, launch, split_count
from ._pair_values import (
    ANGLE,
    CDNV,
    CODES,
    close_angles,
    close_pairs,
    exponent_class,
    good_rows,
    inverse_power,
    launch_row,
    pair_slopes,
    pair_sums,
    refine,
    same_class,
    set_bits,
    split_power,
    tile_products,
    wanted_pairs,
)
from ._rows import column_mean, row_norms

STRIP_BYTES = 64 << 20
SUM_BYTES = 64 << 20  # of the sums of classes at a time


@triton.jit
def _factors(
    rows, stride_row, stride_column, valid, labels, origin, norms, variances, power, power_rest, share, g_row, partner,
    factors, signs, close_bits, by_variance, first_row, count, dim, tiles,
    SIDES: tl.constexpr, KERNEL: tl.constexpr, TWICE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of a strip of rows: factors[i, j] multiply x_i - x_j; close_bits name columns with close pairs.

    An angle's multiply differences of unit rows; where signs[i, j] is -1 the two are nearly opposite, and -x_i - x_j
    has the digits: what it differs by lies along x_i and goes with the norm.
    """
    i, j = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = factors.dtype.element_ty
    full_power = tl.full((), power, tl.float64) + tl.full((), power_rest, tl.float64)
    exponent = full_power if KERNEL == CDNV else full_power * 0.5
    first_a, first_b = first_row + i * BLOCK, j * BLOCK
    product = tile_products(
        rows, stride_row, stride_column, origin, first_a, first_b, count, dim, PRECISION, dtype, BLOCK, BLOCK_D
    )
    wanted = wanted_pairs(first_a, first_b, valid, count, False, BLOCK)
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    if KERNEL == ANGLE:
        product = product * tl.load(norms + a, mask=a < count, other=0).to(dtype)[:, None]
        product = product * tl.load(norms + b, mask=b < count, other=0).to(dtype)[None, :]
        d2, close = close_angles(product, wanted)
        d2 = refine(d2, close, rows, stride_row, stride_column, norms, first_a, first_b, count, dim, dtype, BLOCK)
    else:
        d2, close = close_pairs(product, norms, wanted, first_a, first_b, count, BLOCK)
        d2 = refine(d2, close, rows, stride_row, stride_column, None, first_a, first_b, count, dim, dtype, BLOCK)
    columns_close = tl.max(close.to(tl.int32), 0)

    # The weight of a pair: its share of the mean, and the row maxima that it gives.
    if labels is None:
        weight = tl.zeros((BLOCK, BLOCK), dtype) + tl.load(share)
    else:
        weight = tl.where(same_class(labels, first_a, first_b, count, BLOCK), tl.load(share), tl.load(share + 1))
    for side in tl.static_range(SIDES):
        at_a, at_b = side * count + a, side * count + b
        of_a, of_b = tl.load(g_row + at_a, mask=a < count, other=0), tl.load(g_row + at_b, mask=b < count, other=0)
        from_a = tl.load(partner + at_a, mask=a < count, other=-1)
        from_b = tl.load(partner + at_b, mask=b < count, other=-1)
        weight += tl.where(from_a[:, None] == b[None, :], of_a[:, None], 0)
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
    if signs is not None:
        tl.store(signs + row[:, None] * (tiles * BLOCK) + b[None, :], tl.where(product < 0, -1, 1).to(tl.int8))
    PARTS: tl.constexpr = (BLOCK + 63) // 64
    for part in tl.static_range(PARTS):
        tl.store(close_bits + (i * tiles + j).to(tl.int64) * PARTS + part, set_bits(columns_close, part, BLOCK))


@triton.jit
def _apply(
    rows, stride_row, stride_column, valid, origin, scale, factors, signs, close_bits, partial,
    first_row, strip_rows, count, dim, tiles, tiles_per_split,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """partial[split, i, d] = sum over the split's j of factors[i, j] (x_i - x_j)[d], of unit rows with a ``scale``."""
    i, split = tl.program_id(0), tl.program_id(2)
    dtype: tl.constexpr = factors.dtype.element_ty
    PARTS: tl.constexpr = (BLOCK + 63) // 64
    TILES: tl.constexpr = (FOLD + BLOCK - 1) // BLOCK
    place = tl.arange(0, BLOCK)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    deep = d < dim
    column = d.to(tl.int64) * stride_column
    centre = tl.zeros((BLOCK_D,), dtype)
    if origin is not None:
        centre = tl.load(origin + d, mask=deep, other=0)
    a = first_row + i * BLOCK + place
    mask = good_rows(first_row + i * BLOCK, valid, count, BLOCK)[:, None] & deep[None, :]
    mine = tl.load(rows + a.to(tl.int64)[:, None] * stride_row + column[None, :], mask=mask, other=0).to(dtype)
    line = (i.to(tl.int64) * BLOCK + place)[:, None] * (tiles * BLOCK)
    strip = factors + line
    if scale is not None:
        size = tl.load(scale + a, mask=a < count, other=0)
    total, near = tl.zeros((BLOCK, BLOCK_D), dtype), tl.zeros((BLOCK, BLOCK_D), dtype)
    weight = tl.zeros((BLOCK,), dtype)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    for fold in range(first, last, TILES):  # in one chain over many rows the late ones lose their digits
        part = tl.zeros((BLOCK, BLOCK_D), dtype)
        for j in range(fold, tl.minimum(fold + TILES, last)):
            b = j * BLOCK + place
            good = good_rows(j * BLOCK, valid, count, BLOCK)
            mask = good[:, None] & deep[None, :]
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
                            if scale is None:
                                near += own * (mine - one.to(dtype)[None, :])
                            else:  # the ratio of the norms is rounded along the row, and goes with its norm
                                ratio = (tl.load(scale + other) / size)[:, None]
                                turned = tl.load(signs + line + other).to(dtype) * mine
                                near += own * size[:, None] * tl.fma(-ratio, one.to(dtype)[None, :], turned)
            weight += tl.sum(factor, 1)
            if scale is None:
                theirs = tl.where(mask, theirs - centre[None, :], 0)
            else:
                factor = factor * tl.load(scale + b, mask=good, other=0)[None, :]
            part = tl.dot(factor, theirs, part, input_precision="ieee", out_dtype=dtype)
        total += part
    if scale is None:
        mine = mine - centre[None, :]
    else:
        mine = mine * size[:, None]
    result = weight[:, None] * mine - total + near
    out = split.to(tl.int64) * strip_rows * dim + (i.to(tl.int64) * BLOCK + place)[:, None] * dim + d[None, :]
    tl.store(partial + out, result, mask=(i * BLOCK + place < strip_rows)[:, None] & deep[None, :])


@triton.jit
def _partners(
    rows, stride_row, stride_column, scale, sums, class_sums, home, share, g_row, partner, order, starts, partial,
    count, dim, first_column, last_column,
    SIDES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial[i] = share (sum of rows - x_i) + g_i x_partner(i) + sum of g_k x_k over rows k whose partner is i.

    With labels shares are of the sum of the class, which is class_sums[home[i]], and of what that leaves of all rows.
    """
    i = tl.program_id(0).to(tl.int64)
    d = first_column + tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    deep = d < last_column
    dtype: tl.constexpr = partial.dtype.element_ty
    column = d.to(tl.int64) * stride_column
    total = tl.zeros((BLOCK_R, BLOCK_D), dtype)
    last = tl.load(starts + i + 1)
    for start in range(tl.load(starts + i), last, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        owner = tl.load(order + at, mask=at < last, other=0)
        factor = tl.load(g_row + owner, mask=at < last, other=0)
        row = owner % count
        if scale is not None:
            factor = factor * tl.load(scale + row, mask=at < last, other=0)
        mask = (at < last)[:, None] & deep[None, :]
        value = tl.load(rows + row[:, None] * stride_row + column[None, :], mask=mask, other=0)
        total += factor[:, None] * value.to(dtype)
    result = tl.sum(total, 0)
    mine = tl.load(rows + i * stride_row + column, mask=deep, other=0).to(dtype)
    if scale is not None:
        mine = mine * tl.load(scale + i)
    wide = mine.to(tl.float64)
    everything = tl.load(sums + d, mask=deep, other=0)
    if class_sums is None:
        mean_part = (everything - wide) * tl.load(share).to(tl.float64)
    else:
        width = (last_column - first_column).to(tl.int64)
        own = tl.load(class_sums + tl.load(home + i) * width + d - first_column, mask=deep, other=0)
        mean_part = (own - wide) * tl.load(share).to(tl.float64)
        mean_part += (everything - own) * tl.load(share + 1).to(tl.float64)
    result += mean_part.to(dtype)
    for side in tl.static_range(SIDES):
        friend = tl.load(partner + side * count + i).to(tl.int64)
        known = friend >= 0
        friend = tl.where(known, friend, 0)
        factor = tl.load(g_row + side * count + i)
        inside = d < tl.where(known, last_column, 0)
        theirs = tl.load(rows + friend * stride_row + column, mask=inside, other=0).to(dtype)
        if scale is not None:
            theirs = theirs * tl.load(scale + friend)
        result += factor * theirs
    tl.store(partial + i * dim + d, result, mask=deep)


@triton.jit
def _class_sums(
    rows, stride_row, stride_column, scale, order, home, ends, class_sums, first_column, last_column,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """class_sums[p] = sum of the rows of the class whose first row is order[p]; nothing for other p."""
    first = tl.program_id(0).to(tl.int64)
    row = tl.load(order + first)
    if tl.load(home + row) != first:
        return
    d = first_column + tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    deep = d < last_column
    column = d.to(tl.int64) * stride_column
    last = tl.load(ends + row)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    for start in range(first, last, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        member = tl.load(order + at, mask=at < last, other=0)
        mask = (at < last)[:, None] & deep[None, :]
        value = tl.load(rows + member[:, None] * stride_row + column[None, :], mask=mask, other=0).to(tl.float64)
        if scale is not None:
            value = value * tl.load(scale + member, mask=at < last, other=0).to(tl.float64)[:, None]
        total += value
    width = (last_column - first_column).to(tl.int64)
    tl.store(class_sums + first * width + d - first_column, tl.sum(total, 0), mask=deep)


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


def counted(valid: Tensor | None, labels: Tensor | None, ignore_index: int) -> tuple[Tensor | None, Tensor | None]:
    """``(rows that count, their labels)``, contiguous: valid ones with a class."""
    if labels is not None:
        known = (labels >= 0) & (labels != ignore_index)
        valid, labels = known if valid is None else known & valid, labels.contiguous()
    return None if valid is None else valid.contiguous(), labels


class _Problem(NamedTuple):
    """What the gradient is formed from, one after the other for each side."""

    share: Tensor
    g_row: Tensor
    partner: Tensor
    rows: Tensor
    kernel: str
    valid: Tensor | None
    labels: Tensor | None

    @property
    def sides(self) -> int:
        return 1 if self.labels is None else 2


def pair_stats_backward(
    g_mean: Tensor, g_row_max: Tensor, count: Tensor, row_argmax: Tensor,
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, labels: Tensor | None,
    ignore_index: int, allow_tf32: bool,
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
        p = _Problem(share, g_row, row_argmax.contiguous(), rows, kernel, *counted(valid, labels, ignore_index))
        if kernel in ("dot", "cosine"):
            _products(grad, p)
        else:
            _distances(grad, g_variances, p, variances, power, allow_tf32)
    return grad, g_variances


def _products(grad: Tensor, p: _Problem) -> None:
    rows, (count, dim), dtype, device = p.rows, p.rows.shape, p.share.dtype, p.rows.device
    scale = row_norms(rows, None, dtype, reciprocal=True) if p.kernel == "cosine" else None
    mean, number = column_mean(rows, p.valid, scale)
    total = mean * number
    ordered, owners = torch.sort(p.partner.flatten(), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, device=device))
    partial = torch.empty((count, dim), dtype=dtype, device=device)
    config = launch("pair_partners", rows.dtype, capability(device))
    width, class_sums, home = dim, None, None
    if p.labels is not None:  # the rows that are left out are a class of their own
        labels = torch.where(p.valid, p.labels, -1)
        ordered, order = torch.sort(labels, stable=True)
        home, ends = (torch.searchsorted(ordered, labels, right=right) for right in (False, True))
        block = config["BLOCK_D"]
        width = min(dim, max(1, SUM_BYTES // (8 * count * block)) * block)
        class_sums = torch.empty((count, width), dtype=torch.float64, device=device)
    for first in range(0, dim, max(1, width)):
        last = min(dim, first + width)
        grid = (count, triton.cdiv(last - first, config["BLOCK_D"]))
        if class_sums is not None:
            _class_sums[grid](
                rows, *rows.stride(), scale, order, home, ends, class_sums, first, last, **config.options
            )
        _partners[grid](
            rows, *rows.stride(), scale, total, class_sums, home, p.share, p.g_row, p.partner, owners, starts, partial,
            count, dim, first, last, SIDES=p.sides, **config.options,
        )  # fmt: skip
    _finish[(count,)](rows, *rows.stride(), p.valid, scale, partial, grad, 0, count, dim, 1, BLOCK_D=256)


def _tile_row(p: _Problem, power: float) -> str:
    if p.kernel == "cdnv" and p.labels is not None:  # tiles of 64 x 64 spill 600 registers at 100, and 20 at 90
        return "pair_distances_power"
    name = launch_row(p.kernel, power)
    return "pair_factors" if name == "pair_distances" else name


def _distances(
    grad: Tensor, g_variances: Tensor, p: _Problem, variances: Tensor | None, power: float, tf32: bool
) -> None:
    rows, (count, dim), dtype, device = p.rows, p.rows.shape, p.share.dtype, p.rows.device
    there = capability(device)
    tile: Launch = launch(_tile_row(p, power), rows.dtype, there, tf32)
    chunk: Launch = launch("pair_gradient", rows.dtype, there)
    block, tiles, chunks = tile["BLOCK"], triton.cdiv(count, tile["BLOCK"]), triton.cdiv(dim, chunk["BLOCK_D"])
    angle = p.kernel == "angle"
    if angle:
        origin, norms = None, row_norms(rows, None, torch.float64, reciprocal=True)
    else:
        origin = column_mean(rows, p.valid)[0].to(dtype)
        norms = row_norms(rows, origin, dtype)
    scale = norms.to(dtype) if angle else None
    variances = None if variances is None else variances.contiguous()
    strip_tiles = max(1, min(tiles, STRIP_BYTES // (dtype.itemsize * block * block * tiles)))
    splits = split_count(there, strip_tiles * chunks, tiles, least=4)
    strip_rows = strip_tiles * block
    factors = torch.empty((strip_rows, tiles * block), dtype=dtype, device=device)
    signs = torch.empty((strip_rows, tiles * block), dtype=torch.int8, device=device) if angle else None
    close_bits = torch.empty((strip_tiles, tiles, -(-block // 64)), dtype=torch.int64, device=device)
    by_variance = None
    if variances is not None:
        by_variance = torch.empty((tiles, count), dtype=torch.float64, device=device)
    partial = torch.empty((splits, strip_rows, dim), dtype=dtype, device=device)
    # Triton 3.7 lays the factors of a product out by the narrowest load that they depend on, and fails for float64.
    wide_valid = None if p.valid is None else p.valid.to(torch.int64)
    for first in range(0, count, strip_rows):
        here = min(strip_tiles, triton.cdiv(count - first, block))
        _factors[(here, tiles)](
            rows, *rows.stride(), p.valid, p.labels, origin, norms, variances, *split_power(power),
            p.share, p.g_row, p.partner, factors, signs, close_bits, by_variance, first, count, dim, tiles,
            SIDES=p.sides, KERNEL=CODES[p.kernel], TWICE=exponent_class(p.kernel, power),
            PRECISION=input_precision(tf32), **tile.options,
        )  # fmt: skip
        _apply[(here, chunks, splits)](
            rows, *rows.stride(), wide_valid, origin, scale, factors, signs, close_bits, partial,
            first, strip_rows, count, dim, tiles, triton.cdiv(tiles, splits), BLOCK=block, **chunk.options,
        )  # fmt: skip
        _finish[(min(strip_rows, count - first),)](
            rows, *rows.stride(), p.valid, scale, partial, grad, first, strip_rows,
            dim, splits, BLOCK_D=256,
        )  # fmt: skip
    if by_variance is not None:
        g_variances.copy_(by_variance.sum(0))
