"""The shares of splits of linear_stats in half precision at capability 9.0, another way: tiles of rows and classes are
copied by the tensor memory accelerator, and tiles of classes and blocks of features are one loop.

A program asks for the next tile's blocks before it folds a tile, and two programs share a multiprocessor (128 registers
a thread, 96 KB each): while one folds, the other has the tensor cores. A thread folds the columns of a tile that it
holds anyway: LANES of them hold a row, each keeps a share of its own, and no row is reduced across threads before its
split is done. In Triton's machine code that is 26 (3.6) or 27 (3.9) instructions per logit.

Not measured: linear_stats takes _splits until a GPU has told which is faster, and this one where it is the candidate
(``_candidates.py``; tools/gpu_day measures both).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ._launch import INTERPRETED_MULTIPROCESSORS, MULTIPROCESSORS, capability, launch
from ._logit_columns import Planes, empty_splits
from ._logit_state import LogitShare, add_logits, empty_share, merge, store_split
from ._logits_tile import capped, scaled
from ._products import add_products

PROGRAMS_TOGETHER = 2  # on a multiprocessor
REGISTERS = 65536  # of it
ROW_BLOCKS_SIDE_BY_SIDE = 16  # at most, as in linear_stats.py


@triton.jit
def _lanes(z, LANES: tl.constexpr):
    """``(ROWS, COLUMNS)`` -> ``(ROWS * LANES, COLUMNS / LANES)``, where with LANES = 4 a thread keeps its registers:
    of every eight columns a lane has two beside each other."""
    z = tl.reshape(z, [z.shape[0], z.shape[1] // (2 * LANES), LANES, 2])
    z = tl.permute(z, [0, 2, 1, 3])
    return tl.reshape(z, [z.shape[0] * LANES, z.shape[2] * 2])


@triton.jit
def _each_lane(row, LANES: tl.constexpr):
    return tl.reshape(tl.broadcast_to(row[:, None], [row.shape[0], LANES]), [row.shape[0] * LANES])


@triton.jit
def _lane_count(count, lane, LANES: tl.constexpr):
    """How many of the first ``count`` columns a lane has."""
    return count // (2 * LANES) * 2 + tl.minimum(tl.maximum(count % (2 * LANES) - 2 * lane, 0), 2)


@triton.jit
def _add_tile(
    share, z, scale, start, first, num_classes, target_logit, lane,
    SOFTCAP: tl.constexpr, LANES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The lanes' share after the products ``z`` for classes from ``start`` on."""
    z = capped(scaled(z, scale), SOFTCAP)
    if PADDED:
        z = tl.where((start + tl.arange(0, z.shape[1]) < num_classes)[None, :], z, float("-inf"))
        count = _lane_count(tl.maximum(tl.minimum(num_classes - start, z.shape[1]), 0), lane, LANES)
    else:
        count: tl.constexpr = z.shape[1] // LANES
    k = tl.arange(0, z.shape[1] // LANES)
    column = k // 2 * (2 * LANES) + k % 2  # of lane 0 and the part's first: numbers that are compiled in
    before = (start - first) // LANES
    z = _lanes(z, LANES)
    return add_logits(share, z, column, start + 2 * lane, before, count, target_logit, False, PADDED)


@triton.jit
def _tile(x, weight, row, start, num_features, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):
    products = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for feature in range(0, num_features, BLOCK_D):
        a, b = x.load([row, feature]), weight.load([start, feature])  # zeros outside
        products = add_products(products, a, b.T, "tf32")
    return products


@triton.jit
def _lane_parts(share, lane, count, ROWS: tl.constexpr, LANES: tl.constexpr):
    """``(parts, counts)`` of ``merge``: the lanes' shares ``(ROWS, LANES)``."""
    shape: tl.constexpr = [ROWS, LANES]
    parts = LogitShare(
        tl.reshape(share.max, shape), tl.reshape(share.second, shape), tl.reshape(share.rest, shape),
        tl.reshape(share.weighted, shape), tl.reshape(share.squared, shape), tl.reshape(share.mean, shape),
        tl.reshape(share.squares, shape), tl.reshape(share.argmax, shape), tl.reshape(share.second_index, shape),
        tl.reshape(share.rank, shape),
    )  # fmt: skip
    return parts, tl.reshape(_lane_count(count, lane, LANES), shape)


@triton.jit(do_not_specialize=["num_rows", "num_classes", "tiles_per_split", "splits"])
def _descriptor_splits(
    x, weight, target_logit, floats, indices, num_rows, num_classes, num_features, scale: "fp64",  # noqa: F821
    tiles_per_split, splits,
    SOFTCAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The share of BLOCK_N rows of the vocabulary tiles of one split; ``x`` and ``weight`` are tensor descriptors."""
    split, block = tl.program_id(0) % splits, tl.program_id(0) // splits
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_N * LANES) % LANES
    z = tl.full([BLOCK_N], float("inf"), tl.float32)
    if target_logit is not None:
        z = tl.load(target_logit + tl.minimum(rows, num_rows - 1))
    target = _each_lane(z, LANES)
    first = split * tiles_per_split * BLOCK_V
    end = tl.minimum(first + tiles_per_split * BLOCK_V, num_classes)
    share = empty_share(BLOCK_N * LANES, tl.float32)
    whole = tl.minimum(end, num_classes // BLOCK_V * BLOCK_V)
    for start in tl.range(first, whole, BLOCK_V, flatten=True):
        products = _tile(x, weight, block * BLOCK_N, start, num_features, BLOCK_N, BLOCK_V, BLOCK_D)
        share = _add_tile(share, products, scale, start, first, num_classes, target, lane, SOFTCAP, LANES, False)
    if whole < end:  # the vocabulary's last tile alone pays for masks
        start = tl.maximum(first, whole)
        products = _tile(x, weight, block * BLOCK_N, start, num_features, BLOCK_N, BLOCK_V, BLOCK_D)
        share = _add_tile(share, products, scale, start, first, num_classes, target, lane, SOFTCAP, LANES, True)
    parts, counts = _lane_parts(share, lane, end - first, BLOCK_N, LANES)
    store_split(floats, indices, split, splits, rows, num_rows, merge(parts, counts, end - first))


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel can read them: half precision, rows without gaps that begin at 16 bytes; no bias, for which
    there are no registers left. Blackwell's tensor memory gives a thread a whole row: it spills 473 with Triton 3.9."""
    there = capability(x.device)
    return (
        bias is None
        and x.dtype in (torch.bfloat16, torch.float16)
        and torch.version.hip is None
        and (there is None or there // 10 == 9)
        and x.shape[1] > 0
        and all(t.stride(1) == 1 and t.stride(0) % 8 == 0 and t.data_ptr() % 16 == 0 for t in (x, weight))
    )


def split_count(capability: int | None, row_blocks: int, tiles: int) -> int:
    """Into how many parts to cut the ``tiles`` so that the last round of programs is nearly full, in a time that counts
    one tile for what a part costs beside its own. A function of its arguments alone."""
    known = max((c for c in MULTIPROCESSORS if c <= (capability or 90)), default=90)
    slots = PROGRAMS_TOGETHER * (INTERPRETED_MULTIPROCESSORS if capability is None else MULTIPROCESSORS[known])
    fewest = min(tiles, triton.cdiv(slots, min(row_blocks, ROW_BLOCKS_SIDE_BY_SIDE)))
    rounds = {s: triton.cdiv(row_blocks * s, slots) for s in range(fewest, min(tiles, 2 * fewest) + 1)}
    best = min(rounds, key=lambda s: (rounds[s] * (triton.cdiv(tiles, s) + 1), s))
    return triton.cdiv(tiles, triton.cdiv(tiles, best))


def descriptor_splits(
    x: Tensor, weight: Tensor, target_logit: Tensor | None, scale: float, softcap: float
) -> tuple[Planes, int]:
    """The rows' shares of parts of the classes, and how many classes a part has."""
    n, v = x.shape[0], weight.shape[0]
    config = launch("linear_stats_descriptors", x.dtype, capability(x.device))
    rows, classes, features = (config[f"BLOCK_{name}"] for name in "NVD")
    tiles = triton.cdiv(v, classes)
    splits = split_count(capability(x.device), triton.cdiv(n, rows), tiles)
    per_split = triton.cdiv(tiles, splits)
    parts = empty_splits(x, splits)
    _descriptor_splits[(triton.cdiv(n, rows) * splits,)](
        TensorDescriptor.from_tensor(x, [rows, features]), TensorDescriptor.from_tensor(weight, [classes, features]),
        target_logit, *parts, n, v, x.shape[1], scale, per_split, splits, SOFTCAP=softcap or None, **config.options,
        maxnreg=min(255, REGISTERS // (PROGRAMS_TOGETHER * 32 * config.num_warps)),
    )  # fmt: skip
    return parts, per_split * classes

