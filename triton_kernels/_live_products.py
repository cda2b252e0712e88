"""Products of a chunk of logit gradients with rows of x or of the weight, over the tiles that hold a gradient."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Launch
from ._logits_tile import dot


@triton.jit
def compact(live, tiles, counts, blocks, stride_owner, stride_block, BLOCK: tl.constexpr):
    """The numbers of one owner's live tiles, in order, and how many there are."""
    owner = tl.program_id(0)
    block = tl.arange(0, BLOCK)
    flag = tl.load(live + owner * stride_owner + block * stride_block, block < blocks, 0)
    tl.store(tiles + tl.cast(owner, tl.int64) * blocks + tl.cumsum(flag, 0) - flag, block, flag != 0)
    tl.store(counts + owner, tl.sum(flag, 0))


@triton.jit(do_not_specialize=["num_owned", "num_inner", "blocks", "splits"])
def live_product(
    chunk, other, active, sums, out, tiles, counts, num_owned, num_inner, num_features, blocks, splits,
    stride_owned, stride_inner, stride_other, stride_feature, stride_split, stride_sum, stride_out,
    HAS_ACTIVE: tl.constexpr, ADD: tl.constexpr, FINISH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A (BLOCK_M, BLOCK_D) tile of ``chunk @ other``: one part of the owner's list, added in the list's order.

    ``ADD``: to what ``sums`` holds. ``FINISH``: the result goes to ``out`` in its dtype, else to ``sums``.
    """
    feature_blocks = tl.cdiv(num_features, BLOCK_D)
    owner, block_d = tl.program_id(0) // feature_blocks, tl.program_id(0) % feature_blocks
    split = tl.program_id(1)
    count = tl.load(counts + owner)
    share = tl.cdiv(count, splits)
    begin = split * share
    end = tl.minimum(count, begin + share)
    own = tl.cast(owner, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = block_d * BLOCK_D + tl.arange(0, BLOCK_D)
    wanted = feature < num_features
    rows = chunk + own[:, None] * stride_owned
    columns = other + tl.cast(feature, tl.int64)[None, :] * stride_feature
    lists = tiles + tl.cast(owner, tl.int64) * blocks
    steps: tl.constexpr = BLOCK_I // BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in range(begin * steps, end * steps):
        tile = tl.cast(tl.load(lists + i // steps), tl.int64)
        k = tile * BLOCK_I + (i % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        a = tl.load(rows + k[None, :] * stride_inner)
        there = k < num_inner
        if HAS_ACTIVE:  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
            there = there & (tl.load(active + k, there, 0) != 0)
        b = tl.load(columns + k[:, None] * stride_other, there[:, None] & wanted[None, :], 0.0)
        total = dot(a, b.to(chunk.dtype.element_ty), total, PRECISION)
    mask = (own < num_owned)[:, None] & wanted[None, :]
    if ADD or not FINISH:
        place = sums + tl.cast(split, tl.int64) * stride_split + own[:, None] * stride_sum + feature[None, :]
    if ADD:
        total += tl.load(place, mask, 0.0)
    if FINISH:
        tl.store(out + own[:, None] * stride_out + feature[None, :], total.to(out.dtype.element_ty), mask)
    else:
        tl.store(place, total, mask)


class Live(NamedTuple):
    """Per owner the list ``tiles (owners, blocks)`` of its live tiles, their ``counts``, and the sizes behind both."""

    tiles: Tensor
    counts: Tensor
    owned: int
    inner: int


def live_tiles(live: Tensor, owned: int, inner: int, block_owned: int, block_inner: int) -> Live:
    """Lists for ``owned`` rows (of ``live``) and ``inner`` columns, cut into tiles of the given sizes."""
    owners, blocks = triton.cdiv(owned, block_owned), triton.cdiv(inner, block_inner)
    tiles = live.new_empty((owners, blocks))
    counts = live.new_empty(owners)
    compact[(owners,)](live, tiles, counts, blocks, *live.stride(), BLOCK=triton.next_power_of_2(blocks), num_warps=1)
    return Live(tiles, counts, owned, inner)


def product(
    config: Launch, live: Live, chunk: Tensor, other: Tensor, active: Tensor | None, sums: Tensor | None, out: Tensor,
    first: bool, last: bool, block_owned: int, block_inner: int,
) -> None:  # fmt: skip
    """``out = chunk @ other`` over the live tiles; over several calls, from the ``first`` to the ``last``, their sum.

    ``chunk (owned, inner)``, padded to whole tiles; ``other (inner, D)``, whose rows count where ``active`` is not 0;
    ``sums (splits, owned, D)`` float32 keeps the parts in between, None where one call with one part does it all.
    """
    splits = 1 if sums is None else sums.shape[0]
    finish = last and splits == 1
    stride_split, stride_sum = (0, 0) if sums is None else sums.stride()[:2]
    d = other.shape[1]
    half = chunk.dtype == other.dtype  # else float16 rows and float32 gradients
    precision = "ieee" if half or torch.version.hip is not None else "tf32"
    live_product[(live.tiles.shape[0] * triton.cdiv(d, config["BLOCK_D"]), splits)](
        chunk, other, active, sums, out, *live, d, live.tiles.shape[1], splits,
        *chunk.stride(), *other.stride(), stride_split, stride_sum, out.stride(0),
        HAS_ACTIVE=active is not None, ADD=not first, FINISH=finish, PRECISION=precision,
        BLOCK_M=block_owned, BLOCK_I=block_inner,
        **(config.options | {"BLOCK_K": min(config["BLOCK_K"], block_inner)}),
    )  # fmt: skip
    if last and not finish:
        out.copy_(sums.sum(0))
