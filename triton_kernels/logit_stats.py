"""Logit statistics of stored logits: one read forward, one read and one write backward.

One program folds a part of the vocabulary of a few rows into their share of it (``_logit_state.py``), a second
kernel merges the parts in order. Few rows are cut into parts so that they fill the machine; many rows are not, and the
shares are then 40 bytes per row. Rows that lie contiguous are read one per program, 4096 logits at a time:
only then can a whole tile skip the search for the top two, without which the arithmetic, not memory, is the limit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import Launch, capability, interpreted, split_count, tuned
from ._logit_columns import TRITON, Planes, empty_columns, empty_splits, merge_splits, rows_of
from ._logit_gradient import logit_gradient, row_coefficients
from ._logit_state import add_tile, empty_share, store_split
from ._logits_tile import capped, scaled

INTERPRETED_BLOCKS = 16, 32
ROWS_AT_ONCE = 1 << 20  # bounds the shares at 40 MB where rows are not split


@triton.jit(do_not_specialize=["num_rows", "num_classes", "tiles_per_split", "splits"])
def _splits(
    logits, target, target_logit, floats, indices, num_rows, num_classes, scale: "fp64",  # noqa: F821
    tiles_per_split, splits, stride_n, stride_v, stride_target,
    DTYPE: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The share of BLOCK_N rows of the blocks of BLOCK_V logits of one split; also the logits of their targets."""
    program = tl.cast(tl.program_id(0), tl.int64)
    split, block = program % splits, program // splits
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    line = logits + row * stride_n
    z = tl.full([BLOCK_N], float("inf"), DTYPE)
    if target is not None:
        y = tl.load(target + row * stride_target).to(tl.int64)
        y = tl.minimum(tl.maximum(y, 0), num_classes - 1)  # targets outside are dropped when the columns are written
        z = capped(scaled(tl.load(line + y * stride_v).to(DTYPE), scale), SOFTCAP)
        if split == 0:
            tl.store(target_logit + rows, z, rows < num_rows)
    first = (split * tiles_per_split * BLOCK_V).to(tl.int32)
    end = tl.minimum(first + tiles_per_split * BLOCK_V, num_classes)
    whole = tl.minimum(end, num_classes // BLOCK_V * BLOCK_V)
    share = empty_share(BLOCK_N, DTYPE)
    # Loads run ahead of the arithmetic (cp.async); Triton pipelines by itself only loads that feed a product.
    for start in tl.range(first, whole, BLOCK_V, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK_V)
        tile = scaled(tl.load(line[:, None] + tl.cast(column, tl.int64)[None, :] * stride_v).to(DTYPE), scale)
        share = add_tile(share, capped(tile, SOFTCAP), column, first, start, num_classes, z, True, False)
    if whole < end:
        start = tl.maximum(first, whole)
        column = start + tl.arange(0, BLOCK_V)
        there = (column < num_classes)[None, :]
        tile = tl.load(line[:, None] + tl.cast(column, tl.int64)[None, :] * stride_v, there, 0.0)
        tile = capped(scaled(tile.to(DTYPE), scale), SOFTCAP)
        share = add_tile(share, tile, column, first, start, num_classes, z, True, True)
    store_split(floats, indices, split, splits, rows, num_rows, share)


@triton.jit(do_not_specialize=["num_rows", "num_classes"])
def _gradient(
    logits, gradient, coefficients, indices, num_rows, num_classes, scale: "fp64",  # noqa: F821
    stride_n, stride_v, out_n, out_v,
    DTYPE: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A (BLOCK_N, BLOCK_V) block of the gradient of the stored logits."""
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask = (rows < num_rows)[:, None] & (column < num_classes)[None, :]
    wide = tl.cast(column, tl.int64)[None, :]
    z = scaled(tl.load(logits + rows[:, None] * stride_n + wide * stride_v, mask, 0.0).to(DTYPE), scale)
    row = tl.minimum(rows, num_rows - 1)
    grad = scaled(logit_gradient(z, column, row, coefficients, indices, num_rows, SOFTCAP), scale)
    tl.store(gradient + rows[:, None] * out_n + wide * out_v, grad, mask)


def blocks_of(config: Launch, *logits: Tensor) -> tuple[int, int]:
    """Rows and columns per block: rows that do not lie contiguous are read in square blocks, short ones together."""
    n, v = logits[0].shape
    if interpreted():  # which takes as long for a block of 1 as for a block of 1000
        return INTERPRETED_BLOCKS
    area = config["BLOCK_N"] * config["BLOCK_V"]
    if v > 1 and any(t.stride(1) != 1 for t in logits):
        side = 1 << (area.bit_length() - 1) // 2
        return area // side, side
    block_v = min(config["BLOCK_V"], max(2, triton.next_power_of_2(v)))
    return min(area // block_v, max(1, triton.next_power_of_2(n))), block_v


def logit_stats(logits: Tensor, target: Tensor | None, scale: float, softcap: float, ignore_index: int) -> Planes:
    """``(floats, indices)``: the columns, as ``ncops.backends.planes`` lists them.

    Workspace: 40 bytes per row and split (68 in float64), of at most 2^20 rows at a time.
    """
    columns = empty_columns(logits)
    for start in range(0, logits.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        y = None if target is None else target[rows]
        arguments = (rows_of(columns, rows), logits[rows], y, scale, softcap, ignore_index)
        shape = (min(ROWS_AT_ONCE, logits.shape[0] - start), logits.shape[1])
        tuned("logit_stats", logits, shape, lambda config, a=arguments: _run(config, *a))
    return columns


def _run(
    config: Launch, columns: Planes, logits: Tensor, target: Tensor | None, scale: float, softcap: float,
    ignore_index: int,
) -> None:  # fmt: skip
    n, v = logits.shape
    block_n, block_v = blocks_of(config, logits)
    row_blocks, tiles = triton.cdiv(n, block_n), triton.cdiv(v, block_v)
    splits = split_count(capability(logits.device), row_blocks, tiles, waves=4)
    per_split = triton.cdiv(tiles, splits)
    dtype = compute_dtype(logits.dtype)
    target_logit = None if target is None else logits.new_empty(n, dtype=dtype)
    parts = empty_splits(logits, splits)
    _splits[(row_blocks * splits,)](
        logits, target, target_logit, *parts, n, v, scale, per_split, splits, *logits.stride(),
        0 if target is None else target.stride(0),
        DTYPE=TRITON[dtype], SOFTCAP=softcap or None, STAGES=config.num_stages,
        **(config.options | {"BLOCK_N": block_n, "BLOCK_V": block_v}),
    )  # fmt: skip
    merge_splits(columns, parts, v, per_split * block_v, target, target_logit, ignore_index)


def logit_stats_backward(
    grad: Tensor, floats: Tensor, indices: Tensor, logits: Tensor, target: Tensor | None, scale: float,
    softcap: float, ignore_index: int, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Gradient of the stored logits, in ``dtype`` or their own. Workspace: 60 bytes per row (104 in float64)."""
    n, v = logits.shape
    gradient = logits.new_empty(logits.shape, dtype=dtype)
    if n == 0:
        return gradient
    columns = floats.contiguous(), indices.contiguous()

    def run(config: Launch) -> None:
        rows = row_coefficients(grad, columns, target, v, ignore_index)
        block_n, block_v = blocks_of(config, logits)
        _gradient[(triton.cdiv(n, block_n), triton.cdiv(v, block_v))](
            logits, gradient, *rows, n, v, scale, *logits.stride(), *gradient.stride(),
            DTYPE=TRITON[compute_dtype(logits.dtype)], SOFTCAP=softcap or None,
            **(config.options | {"BLOCK_N": block_n, "BLOCK_V": block_v}),
        )  # fmt: skip

    tuned("logit_stats_backward", logits, (n, v), run)
    return gradient
