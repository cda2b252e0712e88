"""linear_topk: blocks of rows whose logits are kept until the largest of each row are found, exactly and in order.

The product is torch's, as in linear_loss.py. A first kernel turns it into logits where it lies, and leaves what each
tile adds to the log-sum-exp and the maximum of every group of a few neighbouring classes. The k largest logits lie in
the k groups with the largest maxima, of equal ones the first: a logit elsewhere has k maxima before it, larger or equal
and of lower classes. So the kernel that finds the k largest of some numbers runs twice: over the maxima, and over the
logits of those k groups. Of 128256 classes and k = 64 these are 2004 and 4096 numbers.

It finds the k-th largest bit by bit, counting how many numbers reach a threshold. torch.topk has exact values too, from
sixteen passes over all logits; this kernel's counts stay in registers, and they tell how many equal ones are wanted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import capability, device_of, interpreted, launch
from ._logit_state import NOWHERE, log1p
from ._logits_tile import capped, scaled
from .linear_stats_backward import add_product

WORKSPACE_BYTES = 256 << 20
PRODUCT_ROWS = 128  # of a tile of torch's product, of which a block has whole ones
GROUPS = (1, 4, 16, 64)  # classes of a group: few sizes, for each is compiled
ALIGNED = 16  # rows of so many logits begin where a vector does
SHARES_PER_PROGRAM = 512
BOTH = tl.constexpr(1 << 16)  # more than a block has columns: two counts in one integer
INTERPRETED_BLOCKS = 16, 1024


@triton.jit(do_not_specialize=["num_rows", "num_classes", "groups"])
def _logits(
    z, bias, shares, maxima, num_rows, num_classes, groups, scale: "fp64", stride, stride_b,  # noqa: F821
    CHANGED: tl.constexpr, SOFTCAP: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A tile of products becomes logits; its share of the log-sum-exp, and the ``maxima`` of its groups, if any.

    ``shares (2, N, tiles)``: the largest logit, NaN where one is NaN or +inf, and the others' sum of e^(z - max).
    """
    tiles = tl.cdiv(num_classes, BLOCK_V)
    program = tl.cast(tl.program_id(0), tl.int64)
    tile, block = (program % tiles).to(tl.int32), program // tiles
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    here = rows < num_rows
    column = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    there = here[:, None] & (column < num_classes)[None, :]
    at = z + rows[:, None] * stride + column[None, :]
    value = tl.load(at, there, 0.0)
    if CHANGED:
        value = scaled(value, scale)
        if bias is not None:
            value += tl.load(bias + tl.cast(column, tl.int64) * stride_b, column < num_classes, 0.0).to(value.dtype)
        value = capped(value, SOFTCAP)
        tl.store(at, value, there)
    value = tl.where(there, value, float("-inf"))
    top = tl.max(value, 1)
    poisoned = tl.max((value < float("inf")).to(tl.int32) ^ 1, 1) > 0
    peak = tl.where(tl.abs(top) < float("inf"), top, 0)[:, None]
    below = tl.sum(tl.where(value < top[:, None], tl.exp(value - peak), 0), 1)
    rest = below + (tl.sum((value == top[:, None]).to(tl.int32), 1) - 1)
    share = rows * tiles + tile
    tl.store(shares + share, tl.where(poisoned, float("nan"), top), here)
    tl.store(shares + tl.cast(num_rows, tl.int64) * tiles + share, rest, here)
    if GROUP > 1:
        parts: tl.constexpr = BLOCK_V // GROUP
        group = tile * parts + tl.arange(0, parts)
        largest = tl.max(tl.reshape(value, [BLOCK_N, parts, GROUP]), 2)
        tl.store(maxima + rows[:, None] * groups + group[None, :], largest, here[:, None] & (group < groups)[None, :])


@triton.jit(do_not_specialize=["num_rows", "tiles", "plane"])
def _sums(shares, sums, num_rows, tiles, plane, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr):
    """``sums (2, plane)`` of BLOCK_N rows from the shares of their tiles, in float64: log-sum-exp, and its gap."""
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = rows < num_rows
    tile = tl.arange(0, BLOCK_S)
    at = shares + rows[:, None] * tiles + tile[None, :]
    there = here[:, None] & (tile < tiles)[None, :]
    tops = tl.load(at, there, float("-inf")).to(tl.float64)
    rests = tl.load(at + tl.cast(num_rows, tl.int64) * tiles, there, 0.0).to(tl.float64)
    poisoned = tl.max((tops != tops).to(tl.int32), 1) > 0
    top = tl.max(tops, 1)
    none = top == float("-inf")
    factors = tl.exp(tops - tl.where(none, 0, top)[:, None])
    winner = tl.min(tl.where(tops == top[:, None], tile[None, :], NOWHERE), 1)
    rest = tl.sum(factors * (rests + tl.where(tile[None, :] == winner[:, None], 0, 1)), 1)
    gap = tl.where(poisoned | none, float("nan"), log1p(tl.where(poisoned | none, 0, rest)))
    tl.store(sums + rows, tl.where(none & (poisoned == 0), float("-inf"), top + gap), here)
    tl.store(sums + tl.cast(plane, tl.int64) + rows, gap, here)


@triton.jit
def _numbers(z, chosen, rows, first, count, k, num_classes, stride, GROUP: tl.constexpr, BLOCK_V: tl.constexpr):
    """The next BLOCK_V of a row's ``count`` numbers, where they stand in it, and whether they exist; with ``chosen``
    those of its k groups."""
    at = first + tl.arange(0, BLOCK_V)[None, :]
    there = (at < count) & (rows >= 0)[:, None]
    column = tl.broadcast_to(at, there.shape)
    if chosen is not None:
        group = tl.load(chosen + rows[:, None] * k + at // GROUP, there, 0)
        column = group * GROUP + at % GROUP
        there = there & (column < num_classes)
    return tl.load(z + rows[:, None] * stride + column, there, 0.0), column, there


@triton.jit
def _keys(value, there):
    """Integers in the order of the numbers, NaN with +inf; the lowest of all where there is none."""
    wide: tl.constexpr = tl.int64 if value.dtype == tl.float64 else tl.int32
    bits: tl.constexpr = value.dtype.primitive_bitwidth
    value = tl.where(value < float("inf"), value, float("inf"))
    value = tl.where(value == 0, 0.0, value)  # -0 is equal to 0
    key = value.to(wide, bitcast=True)
    lowest = tl.full([], 1, wide) << (bits - 1)
    return tl.where(there, key ^ ((key >> (bits - 1)) & ~lowest), lowest)


@triton.jit(do_not_specialize=["num_rows", "count", "k", "num_classes"])
def _largest(
    z, chosen, lse, values, places, num_rows, count, k, num_classes, stride,
    WHOLE: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The ``places (N, k)`` of the k largest of a row's ``count`` numbers, in their order, of equal ones the first.

    With ``lse`` their ``values`` too, and those of poisoned rows are NaN and -1.
    """
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    here = rows < num_rows
    rows = tl.minimum(rows, num_rows - 1)
    wide: tl.constexpr = tl.int64 if z.dtype.element_ty == tl.float64 else tl.int32
    bits: tl.constexpr = z.dtype.element_ty.primitive_bitwidth
    one = tl.full([], 1, wide)
    threshold = tl.zeros([BLOCK_N], wide) + (one << (bits - 1))
    above = tl.zeros([BLOCK_N], tl.int32)
    if WHOLE:  # in registers
        value, _, there = _numbers(z, chosen, rows, 0, count, k, num_classes, stride, GROUP, BLOCK_V)
        key = _keys(value, there)
    for step in range(bits):
        tried = threshold ^ (one << (bits - 1 - step))
        if WHOLE:
            reached = tl.sum((key >= tried[:, None]).to(tl.int32), 1)
        else:
            reached = tl.zeros([BLOCK_N], tl.int32)
            for first in range(0, count, BLOCK_V):
                value, _, there = _numbers(z, chosen, rows, first, count, k, num_classes, stride, GROUP, BLOCK_V)
                reached += tl.sum((_keys(value, there) >= tried[:, None]).to(tl.int32), 1)
        threshold = tl.where(reached >= k, tried, threshold)
        above = tl.where(reached >= k, above, reached)  # what has failed last is one above the threshold

    more, equal = tl.zeros([BLOCK_N], tl.int32), tl.zeros([BLOCK_N], tl.int32)
    spare = (k - above)[:, None]  # for equal ones
    for first in range(0, count, BLOCK_V):
        value, column, there = _numbers(z, chosen, rows, first, count, k, num_classes, stride, GROUP, BLOCK_V)
        key = _keys(value, there)
        larger, same = key > threshold[:, None], key == threshold[:, None]
        seen = tl.cumsum(larger.to(tl.int32) + same.to(tl.int32) * BOTH, 1)
        equals = equal[:, None] + seen // BOTH
        place = more[:, None] + seen % BOTH + tl.minimum(equals, spare) - 1
        take = here[:, None] & (larger | (same & (equals <= spare)))
        at = rows[:, None] * k + place
        if lse is not None:
            poisoned = tl.load(lse + rows)
            poisoned = (poisoned != poisoned)[:, None]
            tl.store(values + at, tl.where(poisoned, float("nan"), value), take)
            column = tl.where(poisoned, -1, column)
        tl.store(places + at, column, take)
        if not WHOLE:
            more += tl.sum(larger.to(tl.int32), 1)
            equal += tl.sum(same.to(tl.int32), 1)


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: float, softcap: float, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(values (N, k), sums (2, N), indices (N, k))``: sums are the log-sum-exp, and what it is above the largest.

    Workspace: logits of a block, the maxima of groups and which are chosen, 256 MB or one row's; the results once more,
    to sort them.
    """
    n, v, dtype = x.shape[0], weight.shape[0], compute_dtype(x.dtype)
    values, indices = x.new_empty((n, k), dtype=dtype), x.new_empty((n, k), dtype=torch.int64)
    sums = x.new_empty((2, n), dtype=dtype)
    group = group_size(v, k)
    width = triton.cdiv(v, ALIGNED) * ALIGNED
    kept = width + (triton.cdiv(v, group) + k if group > 1 else 0)
    step = max(1, WORKSPACE_BYTES // (dtype.itemsize * kept))
    if step > PRODUCT_ROWS:
        step -= step % PRODUCT_ROWS
    with device_of(x):
        for start in range(0, n, step):
            rows = slice(start, start + step)
            z = x.new_empty((len(x[rows]), width), dtype=dtype)[:, :v]
            add_product(z, x[rows], weight.mT, True)
            _find(z, bias, k, group, scale, softcap, values[rows], sums[:, rows], indices[rows])
            del z  # before the next one's
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, sums, indices.gather(1, order)


def group_size(num_classes: int, k: int) -> int:
    """With which fewest numbers of a row are looked at, whose groups are then more than k."""
    return min(GROUPS, key=lambda g: num_classes if g == 1 else triton.cdiv(num_classes, g) + k * g)


def _blocks(block: int, n: int, count: int) -> tuple[int, int]:
    """Rows and columns of one of ``block`` numbers: short rows are read together."""
    if interpreted():  # which takes as long for a block of 1 as for a block of 1000
        return INTERPRETED_BLOCKS
    columns = min(block, max(GROUPS[-1], triton.next_power_of_2(count)))
    return min(block // columns, triton.next_power_of_2(n)), columns


def _find(
    z: Tensor, bias: Tensor | None, k: int, group: int, scale: float, softcap: float,
    values: Tensor, sums: Tensor, indices: Tensor,
) -> None:  # fmt: skip
    """Fills results of these rows, in the order of the classes; products ``z`` become logits."""
    (n, v), groups = z.shape, triton.cdiv(z.shape[1], group)
    config = launch("linear_topk", z.dtype, capability(z.device))
    block_n, block_v = _blocks(config["BLOCK_V"], n, v)
    tiles = triton.cdiv(v, block_v)
    shares = z.new_empty((2, n, tiles))
    maxima = z.new_empty((n, groups)) if group > 1 else None
    _logits[(triton.cdiv(n, block_n) * tiles,)](
        z, bias, shares, maxima, n, v, groups, scale, z.stride(0), 0 if bias is None else bias.stride(0),
        CHANGED=bias is not None or scale != 1 or softcap != 0, SOFTCAP=softcap or None, GROUP=group,
        **(config.options | {"BLOCK_N": block_n, "BLOCK_V": block_v}),
    )  # fmt: skip
    block_s = triton.next_power_of_2(tiles)
    merged = max(1, SHARES_PER_PROGRAM // block_s)
    _sums[(triton.cdiv(n, merged),)](shares, sums, n, tiles, sums.stride(0), BLOCK_N=merged, BLOCK_S=block_s)
    chosen = None
    if group > 1:
        chosen = z.new_empty((n, k), dtype=torch.int32)
        _run_largest(maxima, None, None, None, chosen, groups, k, v, 1)
    _run_largest(z, chosen, sums[0], values, indices, v if chosen is None else k * group, k, v, group)


def _run_largest(
    z: Tensor, chosen: Tensor | None, lse: Tensor | None, values: Tensor | None, places: Tensor, count: int, k: int,
    num_classes: int, group: int,
) -> None:  # fmt: skip
    n = z.shape[0]
    config = launch("linear_topk.largest", z.dtype, capability(z.device))
    block_n, block_v = _blocks(config["BLOCK_V"], n, count)
    _largest[(triton.cdiv(n, block_n),)](
        z, chosen, lse, values, places, n, count, k, num_classes, z.stride(0),
        WHOLE=count <= block_v, GROUP=group, **(config.options | {"BLOCK_N": block_n, "BLOCK_V": block_v}),
    )  # fmt: skip
