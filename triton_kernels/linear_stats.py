"""Logit statistics of a linear classifier: logits live in registers, tile by tile, and never in memory.

One program owns a block of rows and a contiguous part of the vocabulary. It forms a tile of logits (the products run
on tensor cores), folds it into the rows' share of its classes (``_logit_state.py``) and goes on; a second kernel
merges the parts in order. Programs of one block of rows stand side by side in the grid: 132 of them then share about
8 blocks of x and 17 streams of weight rows, which stay in the L2 cache, where 132 blocks of x (132 MB at D = 4096 in
bfloat16) would not, and the tensor cores would wait for memory.

The target's logit is needed before its rivals are counted. A first kernel forms it as the diagonal of a tile of the
same shape, with the targets' weight rows gathered, so target and rivals come from the same sequence of operations.
Where one tile holds all classes it is there already, and that kernel does not run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import planes
from ..backends.dtypes import compute_dtype
from . import _descriptor_splits as descriptors
from ._candidates import CHOSEN
from ._launch import (
    CLASS_TILES,
    Launch,
    capability,
    device_of,
    input_precision,
    launch,
    row_for_classes,
    split_count,
    tuned,
)
from ._logit_columns import TRITON, Planes, empty_columns, empty_splits, merge_splits, rows_of
from ._logit_state import add_tile, empty_share, halves, store_split
from ._logits_tile import Classifier, capped, logits_tile
from .linear_stats_backward import linear_stats_backward

__all__ = ["linear_stats", "linear_stats_backward", "linear_stats_share", "linear_stats_targets"]

ROWS_AT_ONCE = 32768  # bounds the shares of splits: at 17 of them 22 MB
ROWS_OF_ONE_TILE = 1 << 19  # the same for rows that are not split
FEW_CLASSES = CLASS_TILES[-1]  # up to so many one tile holds them all
ROW_BLOCKS_SIDE_BY_SIDE = 16


@triton.jit(do_not_specialize=["num_rows", "num_classes"])
def _target_logits(
    x, weight, bias, target, target_logit, num_rows, num_classes, num_features, scale: "fp64",  # noqa: F821
    stride_xn, stride_xd, stride_wv, stride_wd, stride_b, stride_target,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The logit of each row's target: the diagonal of the tiles of BLOCK_N rows and the classes of BLOCK_V of them."""
    of = Classifier(x, weight, bias, num_features, scale, stride_xn, stride_xd, stride_wv, stride_wd, stride_b)
    first = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N
    in_block = tl.arange(0, BLOCK_N)
    row = tl.minimum(first + in_block, num_rows - 1)
    z = tl.zeros([BLOCK_N], DTYPE)
    for start in range(0, BLOCK_N, BLOCK_V):
        other = start + tl.arange(0, BLOCK_V)
        y = tl.load(target + tl.minimum(first + other, num_rows - 1) * stride_target).to(tl.int64)
        y = tl.minimum(tl.maximum(y, 0), num_classes - 1)  # targets outside are dropped when the columns are written
        tile = logits_tile(of, row, y, EVEN_D, PRECISION, DTYPE, BLOCK_D)
        z += tl.sum(tl.where(in_block[:, None] == other[None, :], tile, 0), 1)
    tl.store(target_logit + first + in_block, capped(z, SOFTCAP), first + in_block < num_rows)


@triton.jit
def _next_tile(
    share, of, row, start, first, num_classes, target_logit,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, HALVES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The rows' share after the tile of classes from ``start`` on."""
    column = start + tl.arange(0, BLOCK_V)
    if PADDED:
        column = tl.minimum(column, num_classes - 1)
    z = logits_tile(of, row, column, EVEN_D, PRECISION, DTYPE, BLOCK_D)
    return _add_tile(share, z, start, first, num_classes, target_logit, SOFTCAP, BLOCK_V, HALVES, PADDED)


@triton.jit
def _add_tile(
    share, z, start, first, num_classes, target_logit, SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr, HALVES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    if HALVES:  # half the temporaries at a time: on Hopper 128 x 128 logits spill without
        left, right = halves(z)
        column = start + tl.arange(0, BLOCK_V // 2)
        share = _add_part(share, left, column, first, start, num_classes, target_logit, SOFTCAP, BLOCK_V // 2, PADDED)
        column += BLOCK_V // 2
        start += BLOCK_V // 2
        return _add_part(share, right, column, first, start, num_classes, target_logit, SOFTCAP, BLOCK_V // 2, PADDED)
    else:
        column = start + tl.arange(0, BLOCK_V)
        return _add_part(share, z, column, first, start, num_classes, target_logit, SOFTCAP, BLOCK_V, PADDED)


@triton.jit
def _add_part(
    share, z, column, first, start, num_classes, target_logit,
    SOFTCAP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    if SOFTCAP is None:
        return add_tile(share, z, column, first, start, num_classes, target_logit, False, PADDED)
    else:  # half of them again, for the cap has its own
        left, right = halves(z)
        column = start + tl.arange(0, WIDTH // 2)
        share = add_tile(share, capped(left, SOFTCAP), column, first, start, num_classes, target_logit, False, PADDED)
        column += WIDTH // 2
        start += WIDTH // 2
        return add_tile(share, capped(right, SOFTCAP), column, first, start, num_classes, target_logit, False, PADDED)


@triton.jit(do_not_specialize=["num_rows", "num_classes"])
def _one_tile(
    x, weight, bias, target, target_logit, floats, indices,
    num_rows, num_classes, num_features, scale: "fp64",  # noqa: F821
    stride_xn, stride_xd, stride_wv, stride_wd, stride_b, stride_target,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The share of BLOCK_N rows of one tile that holds all classes, and the logits of the rows' targets."""
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    column = tl.arange(0, BLOCK_V)
    of = Classifier(x, weight, bias, num_features, scale, stride_xn, stride_xd, stride_wv, stride_wd, stride_b)
    tile = logits_tile(of, row, tl.minimum(column, num_classes - 1), EVEN_D, PRECISION, DTYPE, BLOCK_D)
    z = tl.full([BLOCK_N], float("inf"), DTYPE)
    if target is not None:
        y = tl.load(target + row * stride_target).to(tl.int64)
        y = tl.minimum(tl.maximum(y, 0), num_classes - 1)  # targets outside are dropped when the columns are written
        z = capped(tl.sum(tl.where(column[None, :] == y[:, None], tile, 0), 1), SOFTCAP)
        tl.store(target_logit + rows, z, rows < num_rows)
    share = _add_tile(empty_share(BLOCK_N, DTYPE), tile, 0, 0, num_classes, z, SOFTCAP, BLOCK_V, HALVES, True)
    store_split(floats, indices, 0, 1, rows, num_rows, share)


@triton.jit(do_not_specialize=["num_rows", "num_classes", "tiles_per_split", "splits"])
def _splits(
    x, weight, bias, target_logit, floats, indices, num_rows, num_classes, num_features, scale: "fp64",  # noqa: F821
    tiles_per_split, splits, stride_xn, stride_xd, stride_wv, stride_wd, stride_b,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The share of BLOCK_N rows of the vocabulary tiles of one split."""
    program = tl.cast(tl.program_id(0), tl.int64)
    split, block = program % splits, program // splits
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    z = tl.full([BLOCK_N], float("inf"), DTYPE)
    if target_logit is not None:
        z = tl.load(target_logit + row)
    first = (split * tiles_per_split * BLOCK_V).to(tl.int32)
    end = tl.minimum(first + tiles_per_split * BLOCK_V, num_classes)
    of = Classifier(x, weight, bias, num_features, scale, stride_xn, stride_xd, stride_wv, stride_wd, stride_b)
    share = empty_share(BLOCK_N, DTYPE)
    whole = tl.minimum(end, num_classes // BLOCK_V * BLOCK_V)
    for start in range(first, whole, BLOCK_V):
        share = _next_tile(
            share, of, row, start, first, num_classes, z,
            EVEN_D, PRECISION, DTYPE, SOFTCAP, BLOCK_V, BLOCK_D, HALVES, False,
        )  # fmt: skip
    if whole < end:  # the vocabulary's last tile alone pays for masks
        start = tl.maximum(first, whole)
        share = _next_tile(
            share, of, row, start, first, num_classes, z,
            EVEN_D, PRECISION, DTYPE, SOFTCAP, BLOCK_V, BLOCK_D, HALVES, True,
        )  # fmt: skip
    store_split(floats, indices, split, splits, rows, num_rows, share)


def table_row(num_rows: int, num_classes: int | None = None) -> str:
    """Few rows are bound by the reading of the weight: a tall tile would multiply padding, as a wide one would for few
    classes. Shards of the classes leave their number out: tiles must be those of the targets, of whichever shard."""
    if num_classes is not None and num_classes <= FEW_CLASSES:
        return row_for_classes("linear_stats", num_classes)
    return next((f"linear_stats_{most}" for most in (16, 32, 64) if num_rows <= most), "linear_stats")


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, softcap: float,
    ignore_index: int, allow_tf32: bool,
) -> Planes:  # fmt: skip
    """``(floats, indices)``: the columns, as ``ncops.backends.planes`` lists them.

    Workspace: 40 bytes per row and split (68 in float64), of at most 32768 rows at a time, 2^19 of up to 64 classes.
    """
    columns = empty_columns(x)
    step = ROWS_OF_ONE_TILE if weight.shape[0] <= FEW_CLASSES else ROWS_AT_ONCE
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        y = None if target is None else target[rows]
        arguments = (rows_of(columns, rows), x[rows], weight, bias, y, scale, softcap, ignore_index, allow_tf32)
        shape = (min(step, x.shape[0] - start), *weight.shape)
        run = lambda config, a=arguments: _run(config, *a)  # noqa: E731
        tuned(table_row(shape[0], shape[1]), x, shape, run, allow_tf32)
    return columns


def _run(
    config: Launch, columns: Planes, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None,
    scale: float, softcap: float, ignore_index: int, allow_tf32: bool,
) -> None:  # fmt: skip
    n, v = x.shape[0], weight.shape[0]
    z = None
    if v <= config["BLOCK_V"]:
        flags, strides = _problem(config, x, weight, bias, softcap, allow_tf32)
        parts, per_split = empty_splits(x, 1), v
        z = None if target is None else torch.empty(n, dtype=compute_dtype(x.dtype), device=x.device)
        _one_tile[(triton.cdiv(n, config["BLOCK_N"]),)](
            x, weight, bias, target, z, *parts, n, v, x.shape[1], scale, *strides,
            0 if target is None else target.stride(0), **flags, **config.options,
        )  # fmt: skip
    else:
        if target is not None:
            z = _run_targets(config, x, weight, bias, target, scale, softcap, allow_tf32)
        parts, per_split = _run_splits(config, x, weight, bias, z, scale, softcap, allow_tf32)
    merge_splits(columns, parts, v, per_split, target, z, ignore_index)


def _run_splits(
    config: Launch, x: Tensor, weight: Tensor, bias: Tensor | None, target_logit: Tensor | None, scale: float,
    softcap: float, allow_tf32: bool,
) -> tuple[Planes, int]:  # fmt: skip
    """The rows' shares of parts of the classes, and how many classes a part has."""
    n, v = x.shape[0], weight.shape[0]
    if "descriptors" in CHOSEN and table_row(n) == "linear_stats" and descriptors.fits(x, weight, bias):
        return descriptors.descriptor_splits(x, weight, target_logit, scale, softcap)
    flags, strides = _problem(config, x, weight, bias, softcap, allow_tf32)
    row_blocks, tiles = triton.cdiv(n, config["BLOCK_N"]), triton.cdiv(v, config["BLOCK_V"])
    splits = split_count(capability(x.device), min(row_blocks, ROW_BLOCKS_SIDE_BY_SIDE), tiles)
    per_split = triton.cdiv(tiles, splits)
    parts = empty_splits(x, splits)
    _splits[(row_blocks * splits,)](
        x, weight, bias, target_logit, *parts, n, v, x.shape[1], scale, per_split, splits, *strides,
        **flags, **config.options,
    )  # fmt: skip
    return parts, per_split * config["BLOCK_V"]


def _problem(
    config: Launch, x: Tensor, weight: Tensor, bias: Tensor | None, softcap: float, allow_tf32: bool
) -> tuple[dict[str, object], tuple[int, ...]]:
    """The flags and the strides that both kernels take."""
    flags = {
        "EVEN_D": x.shape[1] % config["BLOCK_D"] == 0,
        "PRECISION": input_precision(allow_tf32),
        "DTYPE": TRITON[compute_dtype(x.dtype)],
        "SOFTCAP": softcap or None,
    }
    return flags, (*x.stride(), *weight.stride(), 0 if bias is None else bias.stride(0))


def _run_targets(
    config: Launch, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float,
    allow_tf32: bool,
) -> Tensor:  # fmt: skip
    flags, strides = _problem(config, x, weight, bias, softcap, allow_tf32)
    n, d = x.shape
    out = torch.empty(n, dtype=compute_dtype(x.dtype), device=x.device)
    _target_logits[(triton.cdiv(n, config["BLOCK_N"]),)](
        x, weight, bias, target, out, n, weight.shape[0], d, scale, *strides, target.stride(0),
        **flags, **config.options,
    )  # fmt: skip
    return out


def _untuned(x: Tensor, allow_tf32: bool) -> Launch:
    """The table's parameters: targets and rivals that are formed in separate calls need the same."""
    return launch(table_row(x.shape[0]), x.dtype, capability(x.device), allow_tf32)


def linear_stats_targets(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float, ignore_index: int,
    allow_tf32: bool,
) -> Tensor:  # fmt: skip
    """``(N)`` logits of the targets, any number where one is no class.

    They have the bits of their rivals in ``linear_stats_share`` that is given these.
    """
    parts = []
    for rows in range(0, x.shape[0], ROWS_AT_ONCE):
        part, y = x[rows : rows + ROWS_AT_ONCE], target[rows : rows + ROWS_AT_ONCE]
        with device_of(x):
            parts.append(_run_targets(_untuned(part, allow_tf32), part, weight, bias, y, scale, softcap, allow_tf32))
    return torch.cat(parts) if parts else x.new_empty(0, dtype=compute_dtype(x.dtype))


def linear_stats_share(
    x: Tensor, weight: Tensor, bias: Tensor | None, target_logit: Tensor | None, scale: float, softcap: float,
    allow_tf32: bool,
) -> Planes:  # fmt: skip
    """``(floats, float64, and indices)``: the rows' share of these classes, some of all, as
    ``ncops.backends.planes`` lists it and ``_logit_state.py`` merges it."""
    n = x.shape[0]
    share = (
        x.new_empty((len(planes.SHARE_FLOATS), n), dtype=torch.float64),
        x.new_empty((len(planes.SHARE_INDICES), n), dtype=torch.int64),
    )
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part, z = x[rows], None if target_logit is None else target_logit[rows]
        with device_of(x):
            config = _untuned(part, allow_tf32)
            parts, per_split = _run_splits(config, part, weight, bias, z, scale, softcap, allow_tf32)
            merge_splits(rows_of(share, rows), parts, weight.shape[0], per_split, finish=False)
    return share
