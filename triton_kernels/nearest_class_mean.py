"""The nearest class mean of each row: the arg-max of x.m - |m|^2 / 2 over centred rows, classes split over programs.

Workspace: the centred means ``(C, D)`` in the compute dtype, and a best value and index per row and split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..reference.center import row_center
from ._launch import Launch, capability, input_precision, launch, split_count, tuned
from ._products import add_products
from ._rows import centred_rows, column_mean

NO_CLASS = tl.constexpr(2**31 - 1)


@triton.jit
def _nearest(
    x, stride_row, stride_column, centred, half, origin, rest, best_value, best_index,
    count, classes, dim, row_tiles, tiles_per_split,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The best class of one split for BLOCK_N rows: best_value[split, row] (NaN if any score was) and best_index."""
    # Neighbouring programs share the split, and so read the same means at the same time.
    program = tl.program_id(0)
    split, tile = program // row_tiles, program % row_tiles
    dtype: tl.constexpr = centred.dtype.element_ty
    row = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < count
    best = tl.full((BLOCK_N,), float("-inf"), dtype)
    index = tl.full((BLOCK_N,), NO_CLASS, tl.int32)
    poisoned = tl.zeros((BLOCK_N,), tl.int32)
    first = split * tiles_per_split * BLOCK_C
    last = tl.minimum(first + tiles_per_split * BLOCK_C, classes)
    for start in range(first, last, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        known = c < classes
        score = tl.zeros((BLOCK_N, BLOCK_C), dtype)
        for depth in range(0, dim, BLOCK_D):
            d = depth + tl.arange(0, BLOCK_D)
            deep = d < dim
            place = x + row[:, None] * stride_row + d[None, :].to(tl.int64) * stride_column
            left = tl.load(place, mask=inside[:, None] & deep[None, :], other=0).to(dtype)
            # The float64 centre in two parts: the first difference is exact for rows near it.
            left -= tl.load(origin + d, mask=deep, other=0)[None, :]
            left -= tl.load(rest + d, mask=deep, other=0)[None, :]
            place = centred + c[None, :].to(tl.int64) * dim + d[:, None]
            right = tl.load(place, mask=known[None, :] & deep[:, None], other=0)
            score = add_products(score, left, right, PRECISION)
        bias = tl.load(half + c, mask=known, other=float("-inf"))
        allowed = bias > float("-inf")  # false for a NaN bias too, see below
        score = tl.where(allowed[None, :], score + bias[None, :], float("-inf"))
        # A valid mean with a NaN has made the centre NaN, and with it every bias.
        bad = (score != score) | (bias != bias)[None, :]
        poisoned = poisoned | tl.max(bad.to(tl.int32), 1)
        top = tl.max(tl.where(bad, float("-inf"), score), 1)
        where = tl.min(tl.where(score == top[:, None], c[None, :], NO_CLASS), 1)
        better = top > best
        best = tl.where(better, top, best)
        index = tl.where(better, where, index)
    best = tl.where(poisoned != 0, float("nan"), best)
    out = split.to(tl.int64) * count + row
    tl.store(best_value + out, best, mask=inside)
    tl.store(best_index + out, index, mask=inside)


@triton.jit
def _distance(
    x, stride_row, stride_column, means, stride_mean, stride_mean_column, best_value, best_index, sqdist, index,
    count, dim, splits, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merges the splits in order and forms |x - m|^2 in float64 from the rows as they came."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < count
    best = tl.load(best_value + row, mask=inside, other=0)
    at = tl.load(best_index + row, mask=inside, other=0)
    later = row
    for _ in range(1, splits):
        later += count
        value = tl.load(best_value + later, mask=inside, other=0)
        better = (value > best) | (value != value)
        at = tl.where(better, tl.load(best_index + later, mask=inside, other=0), at)
        best = tl.where(better & (best == best), value, best)
    good = inside & (tl.abs(best) < float("inf"))
    at = tl.where(good, at, 0).to(tl.int64)
    total = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = good[:, None] & (d < dim)[None, :]
        left = tl.load(x + row[:, None] * stride_row + d[None, :] * stride_column, mask=mask, other=0)
        place = means + at[:, None] * stride_mean + d[None, :] * stride_mean_column
        apart = left.to(tl.float64) - tl.load(place, mask=mask, other=0).to(tl.float64)
        total += tl.sum(apart * apart, 1)
    tl.store(sqdist + row, tl.where(good, total, float("nan")).to(sqdist.dtype.element_ty), mask=inside)
    tl.store(index + row, tl.where(good, at, -1), mask=inside)


def nearest_class_mean(x: Tensor, means: Tensor, valid: Tensor | None, allow_tf32: bool) -> tuple[Tensor, Tensor]:
    """``(sqdist (N,), index (N,) int64)``, as ``ncops.reference.nearest_class_mean``."""
    count, classes = x.shape[0], means.shape[0]
    if count == 0 or classes == 0:
        sqdist = x.new_full((count,), float("nan"), dtype=compute_dtype(x.dtype))
        return sqdist, torch.full((count,), -1, dtype=torch.int64, device=x.device)
    shape = (count, classes, x.shape[1])
    return tuned("nearest_class_mean", x, shape, lambda config: _run(config, x, means, valid, allow_tf32), allow_tf32)


def best_scores(config: Launch, x: Tensor, means: Tensor, valid: Tensor | None, tf32: bool) -> tuple[Tensor, Tensor]:
    """``(value, index int32)``, both ``(splits, N)``: the arg-max over each split of the classes, rows and means taken
    about ``row_center``."""
    (count, dim), classes, dtype = x.shape, means.shape[0], compute_dtype(x.dtype)
    exact = row_center(means, valid, column_mean(means, valid)[0])
    centred, half = centred_rows(means, valid, exact, dtype)
    origin = exact.to(dtype)
    rest = (exact - origin).to(dtype)

    row_tiles, tiles = triton.cdiv(count, config["BLOCK_N"]), triton.cdiv(classes, config["BLOCK_C"])
    splits = split_count(capability(x.device), row_tiles, tiles, least=4)
    best_value = torch.empty((splits, count), dtype=dtype, device=x.device)
    best_index = torch.empty((splits, count), dtype=torch.int32, device=x.device)
    _nearest[(row_tiles * splits,)](
        x, *x.stride(), centred, half, origin, rest, best_value, best_index,
        count, classes, dim, row_tiles, triton.cdiv(tiles, splits), PRECISION=input_precision(tf32), **config.options,
    )  # fmt: skip
    return best_value, best_index


def _run(config: Launch, x: Tensor, means: Tensor, valid: Tensor | None, tf32: bool) -> tuple[Tensor, Tensor]:
    count, dim = x.shape
    best_value, best_index = best_scores(config, x, means, valid, tf32)
    sqdist = torch.empty(count, dtype=best_value.dtype, device=x.device)
    index = torch.empty(count, dtype=torch.int64, device=x.device)
    config = launch("nearest_distance", x.dtype, capability(x.device))
    _distance[(triton.cdiv(count, config["BLOCK_R"]),)](
        x, *x.stride(), means, *means.stride(), best_value, best_index, sqdist, index, count, dim, best_value.shape[0],
        **config.options,
    )  # fmt: skip
    return sqdist, index
