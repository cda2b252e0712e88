"""What a row's logits are folded into, tile by tile: its share of some classes, for linear_stats and logit_stats, and
what becomes of the shares of all classes: the columns.

The argmax's own term is 1 and stays out of the sums: at margin 30 a float32 ``1 + rest`` is 1, while ``rest`` alone
keeps every digit.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ._products import INTERPRETED

NOWHERE = tl.constexpr(2**31 - 1)  # an index that loses against every class
UNDERFLOW = tl.constexpr(-1000.0)  # exp of it is 0 in every dtype, and 0 times it is 0: with -inf it would be NaN
LOG2E = tl.constexpr(1.4426950408889634)
# Planes of the shares of splits in memory.
MAX, SECOND, REST, WEIGHTED, SQUARED, MEAN, SQUARES = (tl.constexpr(plane) for plane in range(7))
ARGMAX, SECOND_INDEX, RANK = (tl.constexpr(plane) for plane in range(3))


class LogitShare(NamedTuple):
    """Rows' share of some classes; ties go to the lowest index. A row with a NaN or +inf logit has a NaN or +inf mean,
    one with a -inf logit the mean -inf. ``rest``, ``weighted`` and ``squared`` leave out the argmax's own term."""

    max: tl.tensor
    second: tl.tensor  # the runner-up
    rest: tl.tensor  # sum of e^(z - max)
    weighted: tl.tensor  # sum of e^(z - max) (z - max)
    squared: tl.tensor  # sum of e^(2 (z - max))
    mean: tl.tensor
    squares: tl.tensor  # squared deviations from the mean
    argmax: tl.tensor
    second_index: tl.tensor
    rank: tl.tensor  # how many logits are greater than the target's


@triton.jit
def empty_share(ROWS: tl.constexpr, DTYPE: tl.constexpr):
    lowest = tl.full([ROWS], float("-inf"), DTYPE)
    nowhere = tl.full([ROWS], NOWHERE, tl.int32)
    zero = tl.zeros([ROWS], DTYPE)
    return LogitShare(lowest, lowest, zero, zero, zero, zero, zero, nowhere, nowhere, tl.zeros([ROWS], tl.int32))


@triton.jit
def _moments(z, count, PADDED: tl.constexpr):
    """Mean and sum of squared deviations of ``count`` logits; a -inf among them makes the mean -inf.

    Padding is -inf too. Telling it by its number, not by its columns, keeps 32 predicates out of the registers.
    """
    if PADDED:
        masked = tl.sum((z == float("-inf")).to(tl.int32), 1) + count > z.shape[1]
        mean = tl.sum(tl.where(z == float("-inf"), 0, z), 1) / tl.maximum(count, 1)
        mean = tl.where(masked, mean + float("-inf"), mean)
    else:
        mean = tl.sum(z, 1) / count
    centre = tl.where(tl.abs(mean) < float("inf"), mean, 0)
    deviation = z - centre[:, None]
    if PADDED:
        deviation = tl.where(z == float("-inf"), 0, deviation)
    return mean, tl.sum(deviation * deviation, 1)


@triton.jit
def _merge_moments(mean, squares, count, other_mean, other_squares, other_count):
    """Chan's rule."""
    part = other_count / tl.maximum(count + other_count, 1)
    delta = other_mean - mean
    merged = tl.where(
        (mean == float("-inf")) | (other_mean == float("-inf")),
        mean + other_mean,  # -inf stays, a NaN stays NaN; -inf - -inf would turn the mean into NaN
        mean + delta * part,
    )
    return merged, squares + other_squares + delta * delta * (count * part)


@triton.jit
def _power(x):
    """e^x; compiled for float32 it is 0 below 2^-126, which saves three of five instructions."""
    if x.dtype == tl.float32 and not INTERPRETED:
        return tl.exp2(x * LOG2E)
    else:
        return tl.exp(x)


@triton.jit
def add_tile(share, z, column, first, start, num_classes, target_logit, LAZY: tl.constexpr, PADDED: tl.constexpr):
    """The share of the classes from ``first`` on after one more tile, ``z (ROWS, COLUMNS)`` for ``column`` >= start.

    With ``PADDED`` columns from ``num_classes`` on are padding; without, there are none.
    """
    if PADDED:
        z = tl.where((column < num_classes)[None, :], z, float("-inf"))
    count = tl.maximum(tl.minimum(num_classes - start, z.shape[1]), 0)
    return add_logits(share, z, column, 0, start - first, count, target_logit, LAZY, PADDED)


@triton.jit
def add_logits(share, z, column, base, before, count, target_logit, LAZY: tl.constexpr, PADDED: tl.constexpr):
    """The share of ``before`` classes after ``count`` more, ``z (ROWS, COLUMNS)`` for classes ``base`` (by row, or one
    for all) ``+ column``.

    With ``PADDED`` the others of ``z`` are -inf; without, there are none. With ``LAZY`` the top two are looked for only
    in tiles that can hold a new one: with one row per program that is about 2/k of the k-th tile, and the search is
    half of the arithmetic.
    """
    before = tl.cast(before, z.dtype)
    mean, squares = _moments(z, count, PADDED)
    mean, squares = _merge_moments(share.mean, share.squares, before, mean, squares, tl.cast(count, z.dtype))
    rank = share.rank + tl.sum((z > target_logit[:, None]).to(tl.int32), 1)
    share = LogitShare(
        share.max, share.second, share.rest, share.weighted, share.squared, mean, squares,
        share.argmax, share.second_index, rank,
    )  # fmt: skip
    peak = tl.max(z, 1)
    if LAZY:
        # Classes come in ascending order, so a logit equal to the second does not replace it. -inf never does: where
        # it is all there is, the indices follow from the number of classes alone.
        search = tl.max((peak > share.second).to(tl.int32), 0) > 0
        if search:
            share = _search(share, z, peak, column, base)
        else:
            below = tl.maximum(z - share.max[:, None], UNDERFLOW)
            terms = _power(below)
            rest, weighted = share.rest + tl.sum(terms, 1), share.weighted + tl.sum(terms * below, 1)
            squared = share.squared + tl.sum(terms * terms, 1)
            share = LogitShare(
                share.max, share.second, rest, weighted, squared, mean, squares,
                share.argmax, share.second_index, rank,
            )  # fmt: skip
    else:
        share = _search(share, z, peak, column, base)
    return share


@triton.jit
def halves(z):
    """The left and the right half of the columns; a thread keeps its registers."""
    return tl.split(tl.permute(tl.reshape(z, [z.shape[0], 2, z.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def _search(share, z, peak, column, base):
    """Finds the tile's own top two, sums the other terms about its top, and merges both with what came before."""
    column = column[None, :]
    index = tl.min(tl.where(z == peak[:, None], column, NOWHERE), 1)
    others = tl.where(column == index[:, None], float("-inf"), z)
    next_peak = tl.max(others, 1)
    next_index = tl.min(tl.where(others == next_peak[:, None], column, NOWHERE), 1)
    index, next_index = base + index, base + next_index
    below = tl.maximum(others - peak[:, None], UNDERFLOW)
    terms = _power(below)
    tile_rest, tile_weighted, tile_squared = tl.sum(terms, 1), tl.sum(terms * below, 1), tl.sum(terms * terms, 1)

    # The earlier classes win ties, for they have the lower indices.
    newer = peak > share.max
    low, low_index = tl.where(newer, share.max, peak), tl.where(newer, share.argmax, index)
    second = tl.where(newer, next_peak, share.second)
    second_index = tl.where(newer, next_index, share.second_index)
    take_low = tl.where(newer, low >= second, low > second)
    second = tl.where(take_low, low, second)
    second_index = tl.where(take_low, low_index, second_index)
    argmax = tl.where(newer, index, share.argmax)
    max = tl.where(newer, peak, share.max)

    some = low > float("-inf")
    delta = tl.where(some, low - max, 0)
    factor = tl.where(some, _power(delta), 0)
    low_rest = tl.where(newer, share.rest, tile_rest) + 1  # the lower side's own top is now one of the others
    low_weighted = tl.where(newer, share.weighted, tile_weighted)
    low_squared = tl.where(newer, share.squared, tile_squared) + 1
    rest = tl.where(newer, tile_rest, share.rest) + factor * low_rest
    weighted = tl.where(newer, tile_weighted, share.weighted) + factor * (low_weighted + delta * low_rest)
    squared = tl.where(newer, tile_squared, share.squared) + factor * factor * low_squared
    return LogitShare(
        max, second, rest, weighted, squared, share.mean, share.squares, argmax, second_index, share.rank
    )


@triton.jit
def store_planes(out, at, plane, mask, values):
    for k in tl.static_range(len(values)):
        tl.store(out + k * plane + at, values[k], mask)


@triton.jit
def store_share(floats, indices, at, plane, mask, share, count):
    """Writes planes of ``plane`` numbers; ``indices`` has one for the number of classes where ``count`` is given."""
    floating = (share.max, share.second, share.rest, share.weighted, share.squared, share.mean, share.squares)
    store_planes(floats, at, plane, mask, floating)
    if count is None:
        store_planes(indices, at, plane, mask, (share.argmax, share.second_index, share.rank))
    else:
        store_planes(indices, at, plane, mask, (share.argmax, share.second_index, count, share.rank))


@triton.jit
def _load_share(floats, indices, at, plane, mask):
    """That of no class where ``mask`` is false."""
    lowest: tl.constexpr = float("-inf")
    return LogitShare(
        max=tl.load(floats + MAX * plane + at, mask, lowest),
        second=tl.load(floats + SECOND * plane + at, mask, lowest),
        rest=tl.load(floats + REST * plane + at, mask, 0),
        weighted=tl.load(floats + WEIGHTED * plane + at, mask, 0),
        squared=tl.load(floats + SQUARED * plane + at, mask, 0),
        mean=tl.load(floats + MEAN * plane + at, mask, 0),
        squares=tl.load(floats + SQUARES * plane + at, mask, 0),
        argmax=tl.load(indices + ARGMAX * plane + at, mask, NOWHERE),
        second_index=tl.load(indices + SECOND_INDEX * plane + at, mask, NOWHERE),
        rank=tl.load(indices + RANK * plane + at, mask, 0),
    )


@triton.jit
def store_split(floats, indices, split, splits, row, num_rows, share):
    """Writes the share of one split into ``floats (7, splits, N)`` and ``indices (3, splits, N)``."""
    mask = row < num_rows
    plane = tl.cast(splits, tl.int64) * num_rows
    store_share(floats, indices, tl.cast(split, tl.int64) * num_rows + row, plane, mask, share, None)


@triton.jit
def merge(parts, counts, num_classes):
    """The share of all ``num_classes`` from ``parts (ROWS, SPLITS)`` of ``counts`` classes each, in float64.

    A poisoned row, one with a NaN or +inf logit, gets the maximum NaN, one of nothing but -inf the argmax 0 and the
    rest -1: not even the argmax has a term.
    """
    INF: tl.constexpr = float("inf")
    max = tl.max(parts.max, 1)
    argmax = tl.min(tl.where(parts.max == max[:, None], parts.argmax, NOWHERE), 1)
    winner = parts.argmax == argmax[:, None]
    seconds = tl.where(winner, parts.second, parts.max)
    second = tl.max(seconds, 1)
    second_index = tl.where(winner, parts.second_index, parts.argmax)
    second_index = tl.min(tl.where(seconds == second[:, None], second_index, NOWHERE), 1)
    max, second = max.to(tl.float64), second.to(tl.float64)

    some = parts.max > -INF
    delta = tl.where(some, parts.max.to(tl.float64) - max[:, None], 0)
    factor = tl.where(some, tl.exp(delta), 0)
    rests = parts.rest.to(tl.float64) + tl.where(winner, 0, 1)
    rest = tl.sum(factor * rests, 1)
    weighted = tl.sum(factor * (parts.weighted.to(tl.float64) + delta * rests), 1)
    squared = tl.sum(factor * factor * (parts.squared.to(tl.float64) + tl.where(winner, 0, 1)), 1)

    counts, means = counts.to(tl.float64), parts.mean.to(tl.float64)
    mean = tl.sum(tl.where(counts > 0, means * counts, 0), 1) / num_classes
    apart = means - tl.where(tl.abs(mean) < INF, mean, 0)[:, None]
    squares = tl.sum(parts.squares.to(tl.float64) + tl.where(counts > 0, counts * apart * apart, 0), 1)

    poisoned, none = (mean != mean) | (max == INF), max == -INF
    return LogitShare(
        max=tl.where(poisoned, float("nan"), max),
        second=second,
        rest=tl.where(none, -1, rest),
        weighted=weighted,
        squared=tl.where(none, -1, squared),
        mean=mean,
        squares=tl.where(mean == -INF, 0, squares),
        argmax=tl.where(none, 0, argmax),  # a search for something above -inf has found nothing
        second_index=second_index,
        rank=tl.sum(parts.rank, 1),
    )


@triton.jit
def log1p(x):
    """log(1 + x) of a float64 >= 0 to full precision: the error of 1 + x cancels in the quotient."""
    one_more = 1 + x
    lost = one_more - 1
    return tl.where(lost == 0, x, tl.log(one_more) * (x / tl.where(lost == 0, 1, lost)))


@triton.jit
def expm1(x):
    """e^x - 1 of a finite float64 <= 0 to full precision, by the same cancellation."""
    power = tl.exp(x)
    near = (power == 1) | (power == 0)
    return tl.where(power == 1, x, tl.where(power == 0, -1, (power - 1) * (x / tl.log(tl.where(near, 2, power)))))


@triton.jit
def _finish(share, target, target_logit, num_classes, ignore_index):
    """The columns, in the order of ``planes.FLOATS`` and of ``planes.INDICES``, from the share of all classes.

    ``target_logit``, any number where the target is no class, comes from a tile of the same shape as its rivals and
    has the same bits. Where the target is one of the top two their own value is taken all the same: one last place of
    a logit of 30 is 10^7 times the nll at that margin.
    """
    NAN: tl.constexpr = float("nan")
    poisoned, none = share.max != share.max, share.max == float("-inf")
    gap = tl.where(poisoned | none, NAN, log1p(tl.where(poisoned | none, 0, share.rest)))
    lse = tl.where(none, float("-inf"), share.max + gap)
    entropy = gap - share.weighted / (1 + share.rest)
    sum_squared_prob = (1 + share.squared) / ((1 + share.rest) * (1 + share.rest))
    sum_squared_prob = tl.where(poisoned | none, NAN, sum_squared_prob)
    second = tl.where(poisoned, NAN, share.second)
    mean = tl.where(poisoned, NAN, share.mean)
    var = tl.where(poisoned | (share.mean == float("-inf")), NAN, share.squares / num_classes)
    second_index = tl.where(share.second == float("-inf"), tl.where(share.argmax == 0, 1, 0), share.second_index)
    second_index = tl.where(num_classes == 1, -1, second_index)

    nll, rank = tl.zeros_like(gap), tl.full(gap.shape, -1, tl.int32)
    if target is None:
        target_logit = tl.zeros_like(gap)
    else:
        counted = target != ignore_index
        good = (target >= 0) & (target < num_classes) & (poisoned == 0)
        z = tl.where(target == second_index, share.second, target_logit.to(tl.float64))
        z = tl.where(target == share.argmax, share.max, z)
        target_logit = tl.where(counted, tl.where(good, z, NAN), 0)
        nll = tl.where(counted, tl.where(good, (share.max - z) + gap, NAN), 0)
        rank = tl.where(counted & good, tl.where(target == share.argmax, 0, share.rank), -1)
    argmax, second_index = tl.where(poisoned, -1, share.argmax), tl.where(poisoned, -1, second_index)
    floating = (lse, gap, share.max, second, target_logit, nll, entropy, mean, var, sum_squared_prob)
    return floating, (argmax, second_index, rank)


@triton.jit(do_not_specialize=["out_plane", "num_rows", "num_classes", "per_split", "ignore_index"])
def merge_kernel(
    floats, indices, target, target_logit, stride_target, out_floats, out_indices, out_plane,
    num_rows, num_classes, per_split, splits, ignore_index,
    FINISH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merges the splits of BLOCK_N rows, in float64, into planes of columns or, without ``FINISH``, of their share.

    ``per_split`` classes went to every split but the last. float64 here costs nothing: there are N * splits shares.
    """
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.arange(0, BLOCK_S)
    at = tl.cast(split, tl.int64)[None, :] * num_rows + row[:, None]
    here = row < num_rows
    mask = here[:, None] & (split < splits)[None, :]
    counts = tl.minimum(num_classes - tl.cast(split, tl.int64) * per_split, per_split)[None, :]
    parts = _load_share(floats, indices, at, tl.cast(splits, tl.int64) * num_rows, mask)
    share = merge(parts, tl.where(mask, counts, 0), num_classes)
    out_plane = tl.cast(out_plane, tl.int64)
    if FINISH:
        y, z = None, None
        if target is not None:
            y = tl.load(target + row * stride_target, here, ignore_index).to(tl.int64)
            z = tl.load(target_logit + row, here & (y >= 0) & (y < num_classes), 0)
        floating, integer = _finish(share, y, z, num_classes, ignore_index)
        store_planes(out_floats, row, out_plane, here, floating)
        store_planes(out_indices, row, out_plane, here, integer)
    else:
        store_share(out_floats, out_indices, row, out_plane, here, share, num_classes)
