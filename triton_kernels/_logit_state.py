"""What a row's logits are folded into, tile by tile: the state of linear_stats and logit_stats, and its columns.

A state holds ``top, top_index, second, second_index`` (ties to the lowest index), ``rest`` and ``spread``, the sums of
``e^(z - top)`` and ``e^(z - top) (z - top)`` over all logits but the top one, ``mean`` and ``m2`` (Chan's form) and
``rank``, the number of logits greater than the target's. The top term is 1 and stays out of the sums: at margin 30 a
float32 ``1 + rest`` is 1, while ``rest`` alone keeps every digit.
"""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2**31 - 1)  # an index that loses against every class
UNDERFLOW = tl.constexpr(-1000.0)  # exp of it is 0 in every dtype, and 0 times it is 0: with -inf it would be NaN
FLOATS, INTEGERS = 6, 3  # planes of the partial states in memory


@triton.jit
def empty_state(ROWS: tl.constexpr, DTYPE: tl.constexpr):
    lowest = tl.full([ROWS], float("-inf"), DTYPE)
    nowhere = tl.full([ROWS], NOWHERE, tl.int32)
    zero = tl.zeros([ROWS], DTYPE)
    return lowest, lowest, zero, zero, zero, zero, nowhere, nowhere, tl.zeros([ROWS], tl.int32)


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
def merge_moments(mean, m2, count, other_mean, other_m2, other_count):
    share = other_count / (count + other_count)
    delta = other_mean - mean
    merged = tl.where(
        (mean == float("-inf")) | (other_mean == float("-inf")),
        mean + other_mean,  # -inf stays, a NaN stays NaN; -inf - -inf would turn the mean into NaN
        mean + delta * share,
    )
    return merged, m2 + other_m2 + delta * delta * (count * share)


@triton.jit
def add_tile(
    top, second, rest, spread, mean, m2, top_index, second_index, rank,
    z, column, first, start, num_classes, target_logit, LAZY: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The state of the classes from ``first`` on after one more tile, ``z (ROWS, COLUMNS)`` for ``column`` >= start.

    With ``PADDED`` columns from ``num_classes`` on are padding; without, there are none. With ``LAZY`` the top two are
    looked for only in tiles that can hold a new one: with one row per program that is about 2/k of the k-th tile, and
    the search is half of the arithmetic.
    """
    if PADDED:
        z = tl.where((column < num_classes)[None, :], z, float("-inf"))
    before = tl.cast(start - first, z.dtype)
    count = tl.maximum(tl.minimum(num_classes - start, z.shape[1]), 0)
    tile_mean, tile_m2 = _moments(z, count, PADDED)
    mean, m2 = merge_moments(mean, m2, before, tile_mean, tile_m2, tl.cast(count, z.dtype))
    rank += tl.sum((z > target_logit[:, None]).to(tl.int32), 1)
    peak = tl.max(z, 1)
    if LAZY:
        # Classes come in ascending order, so a logit equal to the second does not replace it. -inf never does: where
        # it is all there is, the indices follow from the number of classes alone.
        search = tl.max((peak > second).to(tl.int32), 0) > 0
        if search:
            top, second, rest, spread, top_index, second_index = _search(
                top, second, rest, spread, top_index, second_index, z, peak, column
            )
        else:
            below = tl.maximum(z - top[:, None], UNDERFLOW)
            terms = tl.exp(below)
            rest += tl.sum(terms, 1)
            spread += tl.sum(terms * below, 1)
    else:
        top, second, rest, spread, top_index, second_index = _search(
            top, second, rest, spread, top_index, second_index, z, peak, column
        )
    return top, second, rest, spread, mean, m2, top_index, second_index, rank


@triton.jit
def halves(z):
    """The left and the right half of the columns; a thread keeps its registers."""
    return tl.split(tl.permute(tl.reshape(z, [z.shape[0], 2, z.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def _search(top, second, rest, spread, top_index, second_index, z, peak, column):
    """Finds the tile's own top two, sums the other terms about its top, and merges both with what came before."""
    column = column[None, :]
    index = tl.min(tl.where(z == peak[:, None], column, NOWHERE), 1)
    others = tl.where(column == index[:, None], float("-inf"), z)
    next_peak = tl.max(others, 1)
    next_index = tl.min(tl.where(others == next_peak[:, None], column, NOWHERE), 1)
    below = tl.maximum(others - peak[:, None], UNDERFLOW)
    terms = tl.exp(below)
    tile_rest, tile_spread = tl.sum(terms, 1), tl.sum(terms * below, 1)

    # The earlier classes win ties, for they have the lower indices.
    newer = peak > top
    low, low_index = tl.where(newer, top, peak), tl.where(newer, top_index, index)
    high_second = tl.where(newer, next_peak, second)
    high_second_index = tl.where(newer, next_index, second_index)
    take_low = tl.where(newer, low >= high_second, low > high_second)
    second = tl.where(take_low, low, high_second)
    second_index = tl.where(take_low, low_index, high_second_index)
    top_index = tl.where(newer, index, top_index)
    top = tl.where(newer, peak, top)

    some = low > float("-inf")
    delta = tl.where(some, low - top, 0)
    weight = tl.where(some, tl.exp(delta), 0)
    low_rest = tl.where(newer, rest, tile_rest) + 1  # the lower side's own top is now one of the others
    low_spread = tl.where(newer, spread, tile_spread)
    rest = tl.where(newer, tile_rest, rest) + weight * low_rest
    spread = tl.where(newer, tile_spread, spread) + weight * (low_spread + delta * low_rest)
    return top, second, rest, spread, top_index, second_index


@triton.jit
def store_partial(
    floats, integers, split, splits, row, num_rows,
    top, second, rest, spread, mean, m2, top_index, second_index, rank,
):  # fmt: skip
    """Writes the state of one split into planes ``floats (6, splits, N)`` and ``integers (3, splits, N)``."""
    mask = row < num_rows
    plane = tl.cast(splits, tl.int64) * num_rows
    at = tl.cast(split, tl.int64) * num_rows + row
    tl.store(floats + at, top, mask)
    tl.store(floats + plane + at, second, mask)
    tl.store(floats + 2 * plane + at, rest, mask)
    tl.store(floats + 3 * plane + at, spread, mask)
    tl.store(floats + 4 * plane + at, mean, mask)
    tl.store(floats + 5 * plane + at, m2, mask)
    tl.store(integers + at, top_index, mask)
    tl.store(integers + plane + at, second_index, mask)
    tl.store(integers + 2 * plane + at, rank, mask)


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


@triton.jit(do_not_specialize=["num_rows", "num_classes", "ignore_index"])
def columns_kernel(
    floats, integers, target, target_logit, stride_target,
    lse, gap, max, second, own, nll, entropy, mean, var, argmax, second_index, target_rank, valid,
    num_rows, num_classes, per_split, splits, ignore_index,
    HAS_TARGET: tl.constexpr, OWN_HERE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merges the splits of BLOCK_N rows in a fixed order, in float64, and writes the columns of LinearStats.

    With ``OWN_HERE`` the targets' logits are among these classes; without, they were given, for any class.
    ``per_split`` classes went to every split but the last. float64 here costs nothing: there are N * splits states.
    """
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.arange(0, BLOCK_S)
    at = tl.cast(split, tl.int64)[None, :] * num_rows + row[:, None]
    plane = tl.cast(splits, tl.int64) * num_rows
    here = row < num_rows
    mask = here[:, None] & (split < splits)[None, :]
    INF: tl.constexpr = float("inf")

    tops = tl.load(floats + at, mask, -INF).to(tl.float64)
    tops_index = tl.load(integers + at, mask, NOWHERE)
    top = tl.max(tops, 1)
    top_index = tl.min(tl.where(tops == top[:, None], tops_index, NOWHERE), 1)
    winner = tops_index == top_index[:, None]
    top_index = tl.where(top == -INF, 0, top_index)  # a search for something above -inf has found nothing
    seconds = tl.where(winner, tl.load(floats + plane + at, mask, -INF).to(tl.float64), tops)
    seconds_index = tl.where(winner, tl.load(integers + plane + at, mask, NOWHERE), tops_index)
    runner = tl.max(seconds, 1)
    runner_index = tl.min(tl.where(seconds == runner[:, None], seconds_index, NOWHERE), 1)

    some = tops > -INF
    delta = tl.where(some, tops - top[:, None], 0)
    weight = tl.where(some, tl.exp(delta), 0)
    rests = tl.load(floats + 2 * plane + at, mask, 0).to(tl.float64) + tl.where(winner, 0, 1)
    spreads = tl.load(floats + 3 * plane + at, mask, 0).to(tl.float64) + delta * rests
    rest = tl.sum(weight * rests, 1)
    spread = tl.sum(weight * spreads, 1)

    means = tl.load(floats + 4 * plane + at, mask, 0).to(tl.float64)
    counts = tl.minimum(num_classes - tl.cast(split, tl.int64) * per_split, per_split)[None, :].to(tl.float64)
    counts = tl.where(mask, counts, 0)
    average = tl.sum(tl.where(mask, means * counts, 0), 1) / num_classes
    centre = tl.where(tl.abs(average) < INF, average, 0)
    apart = means - centre[:, None]
    squares = tl.load(floats + 5 * plane + at, mask, 0).to(tl.float64) + tl.where(mask, counts * apart * apart, 0)

    spoilt = (average != average) | (top == INF)  # a NaN or +inf logit
    alone = top == -INF
    NAN: tl.constexpr = float("nan")
    row_gap = tl.where(spoilt | alone, NAN, log1p(tl.where(spoilt, 0, rest)))
    row_lse = tl.where(alone, -INF, top + row_gap)
    runner_index = tl.where(runner == -INF, tl.where(top_index == 0, 1, 0), runner_index)
    runner_index = tl.where(num_classes == 1, -1, runner_index)
    tl.store(lse + row, tl.where(spoilt, NAN, row_lse), here)
    tl.store(gap + row, row_gap, here)
    tl.store(max + row, tl.where(spoilt, NAN, top), here)
    tl.store(second + row, tl.where(spoilt, NAN, runner), here)
    tl.store(entropy + row, row_gap - spread / (1 + rest), here)
    tl.store(mean + row, tl.where(spoilt, NAN, average), here)
    tl.store(var + row, tl.where(spoilt | (average == -INF), NAN, tl.sum(squares, 1) / num_classes), here)
    tl.store(argmax + row, tl.where(spoilt, -1, top_index).to(tl.int64), here)
    tl.store(second_index + row, tl.where(spoilt, -1, runner_index).to(tl.int64), here)

    if HAS_TARGET:
        y = tl.load(target + row * stride_target, here, ignore_index).to(tl.int64)
        counted = y != ignore_index
        inside = (y >= 0) & (y < num_classes)
        # The target's logit comes from a tile of the same shape and has the same bits. Where it is one of the top two
        # their own value is taken all the same: one last place of a logit of 30 is 10^7 times the nll at that margin.
        t = tl.load(target_logit + row, here & inside, 0).to(tl.float64)
        ranks = tl.sum(tl.load(integers + 2 * plane + at, mask, 0), 1)
        if OWN_HERE:
            t = tl.where(y == top_index, top, tl.where(y == runner_index, runner, t))
            ranks = tl.where(y == top_index, 0, ranks)
        good = inside & (spoilt == 0)
        tl.store(own + row, tl.where(counted, tl.where(good, t, NAN), 0), here)
        tl.store(nll + row, tl.where(counted, tl.where(good, (top - t) + row_gap, NAN), 0), here)
        tl.store(target_rank + row, tl.where(counted & good, ranks, -1).to(tl.int64), here)
        tl.store(valid + row, counted, here)
