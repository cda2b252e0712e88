"""Statistics of a kernel over all pairs of rows: upper-triangle tiles of the row product, reduced where they arise.

The tiles are cut into at most about 32 x 32 groups, one program each. A program keeps the moments of its pairs and the
best partner of each of its rows and columns; the groups are merged in order by two small kernels. With labels, pairs of
one class and pairs of different classes have a program each, which passes over tiles without such pairs. Workspace: 8
bytes (12 for float64 rows) per row and group, so about 0.3 KB per row, twice with labels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import INTERPRETED_MULTIPROCESSORS, MULTIPROCESSORS, Launch, capability, input_precision, tuned
from ._pair_backward import counted, pair_stats_backward
from ._pair_values import (
    ANGLE,
    CDNV,
    CODES,
    COSINE,
    DISTANCE,
    angles,
    close_angles,
    close_pairs,
    exponent_class,
    launch_row,
    pair_number,
    pair_sums,
    pair_values,
    refine,
    same_class,
    split_power,
    tile_products,
    wanted_pairs,
)
from ._rows import column_mean, row_norms

__all__ = ["pair_stats", "pair_stats_backward"]
NO_PARTNER = tl.constexpr(2**31 - 1)
# Rows of the partial moments.
COUNT, MEAN, SQUARES, LOW, HIGH, POISONED = (tl.constexpr(row) for row in range(6))


@triton.jit
def _better(value, index, other_value, other_index):
    """The larger value, the lower index on ties. A NaN is (inf, -1) and no partner (-inf, NO_PARTNER)."""
    other = (other_value > value) | ((other_value == value) & (other_index < index))
    return tl.where(other, other_value, value), tl.where(other, other_index, index)


@triton.jit
def _best_along(value, wanted, partner, AXIS: tl.constexpr):
    """The best partner of each row (AXIS 1) or column (AXIS 0) of a tile; ``partner`` broadcasts along the other."""
    key = tl.where(value != value, float("inf"), value)
    key = tl.where(wanted, key, float("-inf"))
    top = tl.max(key, AXIS)
    index = tl.where(value != value, -1, partner)
    return top, tl.min(tl.where(wanted & (key == tl.expand_dims(top, AXIS)), index, NO_PARTNER), AXIS)


@triton.jit
def _pairs(
    rows, stride_row, stride_column, valid, labels, origin, norms, variances, power, power_rest,
    moments, best_value, best_index, count, dim, tiles, group, groups,
    KERNEL: tl.constexpr, TWICE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One group of tiles: moments[side, :, group], and per row and column its best partner among the group's pairs.

    With labels side 0 has the pairs of one class and side 1 the others.
    """
    row_group, column_group = tl.program_id(0), tl.program_id(1)
    if column_group < row_group:
        return
    dtype: tl.constexpr = best_value.dtype.element_ty
    full_power = tl.full((), power, tl.float64) + tl.full((), power_rest, tl.float64)
    exponent = full_power if KERNEL == CDNV else full_power * 0.5
    power = full_power.to(dtype)
    seen, mean, squares = tl.full((), 0, tl.float64), tl.full((), 0, tl.float64), tl.full((), 0, tl.float64)
    low, high = tl.full((BLOCK,), float("inf"), dtype), tl.full((BLOCK,), float("-inf"), dtype)
    poisoned = tl.zeros((BLOCK,), tl.int32)
    # Plane g of best_* holds each row's best partner in group g; a group of the diagonal has two planes.
    column_plane = row_group.to(tl.int64) * count
    row_plane = tl.where(row_group == column_group, groups, column_group).to(tl.int64) * count
    step = groups * groups
    place = moments + row_group * groups + column_group
    if labels is not None:
        side = tl.program_id(2)
        place += side * 6 * step
        best_value += side.to(tl.int64) * (groups + 1) * count
        best_index += side.to(tl.int64) * (groups + 1) * count
    first_row = row_group * group
    for i in range(first_row, tl.minimum(first_row + group, tiles)):
        first_a = tl.full((), BLOCK, tl.int32) * i
        row_value = tl.full((BLOCK,), float("-inf"), dtype)
        row_index = tl.full((BLOCK,), NO_PARTNER, tl.int32)
        for j in range(tl.maximum(i, column_group * group), tl.minimum(column_group * group + group, tiles)):
            first_b = tl.full((), BLOCK, tl.int32) * j
            depth = dim
            if labels is not None:
                wanted = wanted_pairs(first_a, first_b, valid, count, True, BLOCK)
                wanted = wanted & (same_class(labels, first_a, first_b, count, BLOCK) == (side == 0))
                pairs = tl.sum(tl.sum(wanted.to(tl.int32), 1))
                depth = tl.where(pairs == 0, 0, dim)
            value = tile_products(
                rows, stride_row, stride_column, origin, first_a, first_b, count, depth, PRECISION, dtype,
                BLOCK, BLOCK_D,
            )  # fmt: skip
            a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
            if labels is None:
                wanted = wanted_pairs(first_a, first_b, valid, count, True, BLOCK)
            if KERNEL == COSINE or KERNEL == ANGLE:
                value = value * tl.load(norms + a, mask=a < count, other=0).to(dtype)[:, None]
                value = value * tl.load(norms + b, mask=b < count, other=0).to(dtype)[None, :]
            if KERNEL == ANGLE:
                d2, close = close_angles(value, wanted)
                d2 = refine(
                    d2, close, rows, stride_row, stride_column, norms, first_a, first_b, count, dim, dtype, BLOCK
                )
                value = angles(d2, value < 0)
            elif KERNEL >= DISTANCE:
                d2, close = close_pairs(value, norms, wanted, first_a, first_b, count, BLOCK)
                d2 = refine(
                    d2, close, rows, stride_row, stride_column, None, first_a, first_b, count, dim, dtype, BLOCK
                )
                sums = pair_sums(variances, first_a, first_b, count, BLOCK) if KERNEL == CDNV else d2
                value = pair_values(d2, sums, power, exponent, KERNEL, TWICE)
            # Chan's rule for the moments of a union.
            if labels is None:
                pairs = pair_number(first_a, first_b, valid, count, BLOCK)
            number = pairs.to(tl.float64)
            tile_mean = tl.sum(tl.sum(tl.where(wanted, value, 0), 1).to(tl.float64)) / tl.maximum(number, 1.0)
            apart = tl.where(wanted, value - tile_mean.to(dtype), 0)
            tile_squares = tl.sum(tl.sum(apart * apart, 1).to(tl.float64))
            delta, together = tile_mean - mean, tl.maximum(seen + number, 1.0)
            mean += delta * (number / together)
            squares += tile_squares + delta * delta * (seen * number / together)
            seen += number
            low = tl.minimum(low, tl.min(tl.where(wanted, value, float("inf")), 1))

            value_along, index_along = _best_along(value, wanted, b[None, :], 1)
            high = tl.maximum(high, value_along)
            poisoned = tl.maximum(poisoned, (index_along < 0).to(tl.int32))
            row_value, row_index = _better(row_value, row_index, value_along, index_along)
            value_along, index_along = _best_along(value, wanted, a[:, None], 0)
            # The program's own earlier row tiles: same plane, same addresses, same threads.
            earlier = b < tl.where(first_a > first_row * BLOCK, count, 0)
            old_value = tl.load(best_value + column_plane + b, mask=earlier, other=float("-inf"))
            old_index = tl.load(best_index + column_plane + b, mask=earlier, other=NO_PARTNER)
            value_along, index_along = _better(old_value, old_index, value_along, index_along)
            tl.store(best_value + column_plane + b, value_along, mask=b < count)
            tl.store(best_index + column_plane + b, index_along, mask=b < count)
            tl.debug_barrier()
        a = first_a + tl.arange(0, BLOCK)
        tl.store(best_value + row_plane + a, row_value, mask=a < count)
        tl.store(best_index + row_plane + a, row_index, mask=a < count)
    tl.store(place + COUNT * step, seen)
    tl.store(place + MEAN * step, mean)
    tl.store(place + SQUARES * step, squares)
    tl.store(place + LOW * step, tl.min(low).to(tl.float64))
    tl.store(place + HIGH * step, tl.max(high).to(tl.float64))
    tl.store(place + POISONED * step, tl.max(poisoned).to(tl.float64))


@triton.jit
def _merge_moments(moments, scalars, pairs, groups, BLOCK: tl.constexpr):
    """scalars[:, side] = mean, var, min, max of the union of the groups, in two passes; pairs[side] = how many."""
    side, sides = tl.program_id(0), tl.num_programs(0)
    number = groups * groups
    moments += side * 6 * number
    scalars += side
    total, weighted = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    low, high = tl.full((BLOCK,), float("inf"), tl.float64), tl.full((BLOCK,), float("-inf"), tl.float64)
    poisoned = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, number, BLOCK):
        at = moments + start + tl.arange(0, BLOCK)
        inside = start + tl.arange(0, BLOCK) < number
        found = tl.load(at, mask=inside, other=0)
        some = found > 0  # other groups lie below the diagonal or hold no valid pair
        total += found
        weighted += tl.where(some, found * tl.load(at + MEAN * number, mask=some, other=0), 0)
        low = tl.minimum(low, tl.load(at + LOW * number, mask=some, other=float("inf")))
        high = tl.maximum(high, tl.load(at + HIGH * number, mask=some, other=float("-inf")))
        poisoned = tl.maximum(poisoned, tl.load(at + POISONED * number, mask=some, other=0))
    seen = tl.sum(total)
    mean = tl.sum(weighted) / seen
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, number, BLOCK):
        at = moments + start + tl.arange(0, BLOCK)
        inside = start + tl.arange(0, BLOCK) < number
        found = tl.load(at, mask=inside, other=0)
        delta = tl.load(at + MEAN * number, mask=found > 0, other=0) - mean
        own = tl.load(at + SQUARES * number, mask=found > 0, other=0)
        squares += tl.where(found > 0, own + found * delta * delta, 0)
    least, most = tl.min(low), tl.max(high)
    # Infinite values (coincident rows) of one sign have an infinite mean, which differences of means would make NaN.
    infinite = (least == float("-inf")) | (most == float("inf"))
    nothing = (tl.max(poisoned) > 0) | (seen == 0)
    nan = float("nan")
    dtype: tl.constexpr = scalars.dtype.element_ty
    tl.store(scalars, tl.where(nothing, nan, tl.where(infinite, least + most, mean)).to(dtype))
    tl.store(scalars + sides, tl.where(nothing | infinite, nan, tl.sum(squares) / seen).to(dtype))
    tl.store(scalars + 2 * sides, tl.where(nothing, nan, least).to(dtype))
    tl.store(scalars + 3 * sides, tl.where(nothing, nan, most).to(dtype))
    tl.store(pairs + side, seen.to(tl.int64))


@triton.jit
def _merge_partners(best_value, best_index, row_max, row_argmax, count, planes, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    place = row + tl.program_id(1).to(tl.int64) * planes * count
    value = tl.load(best_value + place, mask=inside, other=0)
    index = tl.load(best_index + place, mask=inside, other=0)
    for _ in range(1, planes):
        place += count
        other_value = tl.load(best_value + place, mask=inside, other=0)
        other_index = tl.load(best_index + place, mask=inside, other=0)
        value, index = _better(value, index, other_value, other_index)
    row += tl.program_id(1).to(tl.int64) * count
    none = (index < 0) | (index == NO_PARTNER)
    tl.store(row_max + row, tl.where(none, float("nan"), value), mask=inside)
    tl.store(row_argmax + row, tl.where(none, -1, index).to(tl.int64), mask=inside)


def prepare(rows: Tensor, kernel: str, valid: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """``(origin (D,), norms (K,))`` in the compute dtype: the centre of the distance kernels and squared norms about
    it, for the cosine one over the norms, for the angle those in float64."""
    dtype = compute_dtype(rows.dtype)
    if kernel == "dot":
        return None, None
    if kernel == "cosine":
        return None, row_norms(rows, None, dtype, reciprocal=True)
    if kernel == "angle":
        return None, row_norms(rows, None, torch.float64, reciprocal=True)
    origin = column_mean(rows, valid)[0].to(dtype)
    return origin, row_norms(rows, origin, dtype)


def pair_stats(
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, labels: Tensor | None,
    ignore_index: int, allow_tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(mean, var, min, max, row_max (K,), count, row_argmax (K,))``, as ``ncops.reference.pair_stats``."""
    if rows.shape[0] == 0:
        sides = () if labels is None else (2,)
        scalars = rows.new_full((4, *sides), float("nan"), dtype=compute_dtype(rows.dtype))
        index = torch.empty((*sides, 0), dtype=torch.int64, device=rows.device)
        return *(value.clone() for value in scalars), scalars.new_empty((*sides, 0)), index.new_zeros(sides), index
    valid, labels = counted(valid, labels, ignore_index)

    def run(config: Launch):
        return _run(config, rows, kernel, variances, power, valid, labels, allow_tf32)

    return tuned(launch_row(kernel, power, labels is not None), rows, tuple(rows.shape), run, allow_tf32)


def _run(
    config: Launch, rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None,
    labels: Tensor | None, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    (count, dim), dtype, device = rows.shape, compute_dtype(rows.dtype), rows.device
    sides = 1 if labels is None else 2
    origin, norms = prepare(rows, kernel, valid)
    tiles = triton.cdiv(count, config["BLOCK"])
    # About four groups of the triangle for each multiprocessor of the table's cards.
    multiprocessors = INTERPRETED_MULTIPROCESSORS if capability(device) is None else MULTIPROCESSORS[90]
    group = triton.cdiv(tiles, min(tiles, math.isqrt(8 * multiprocessors)))
    groups = triton.cdiv(tiles, group)
    moments = torch.zeros((sides, 6, groups, groups), dtype=torch.float64, device=device)
    best_value = torch.empty((sides, groups + 1, count), dtype=dtype, device=device)
    best_index = torch.empty((sides, groups + 1, count), dtype=torch.int32, device=device)
    _pairs[(groups, groups, sides)](
        rows, *rows.stride(), valid, labels, origin, norms,
        None if variances is None else variances.contiguous(), *split_power(power),
        moments, best_value, best_index, count, dim, tiles, group, groups,
        KERNEL=CODES[kernel], TWICE=exponent_class(kernel, power), PRECISION=input_precision(tf32), **config.options,
    )  # fmt: skip
    shape = () if labels is None else (2,)
    scalars = torch.empty((4, *shape), dtype=dtype, device=device)
    pairs = torch.empty(shape, dtype=torch.int64, device=device)
    _merge_moments[(sides,)](moments, scalars, pairs, groups, BLOCK=256)
    row_max = torch.empty((*shape, count), dtype=dtype, device=device)
    row_argmax = torch.empty((*shape, count), dtype=torch.int64, device=device)
    blocks = triton.cdiv(count, 256)
    _merge_partners[(blocks, sides)](best_value, best_index, row_max, row_argmax, count, groups + 1, BLOCK=256)
    # Separate storages: the results of an op must not be views of each other.
    return *(value.clone() for value in scalars.unbind()), row_max, pairs, row_argmax
