"""Scatter of rows about their class centres: the upper triangle of tiles, rows cut into a fixed number of splits.

Centres are gathered and subtracted while a tile is loaded. The pair of column blocks is the fast index of the grid, so
that the tiles of one split share its rows in the cache. Splits leave their tiles in a workspace of at most 8 D x D
numbers of 4 bytes (half of that for D >= 4096), added in order and mirrored by a second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from . import _split_halves
from ._candidates import CHOSEN
from ._deviations import Deviations, compute_type, load_deviations, row_arguments, row_classes
from ._launch import Launch, input_precision, interpreted, tuned
from ._row_products import row_products
from ._sorted_rows import sort_rows
from .class_moments import sums_by_class


@triton.jit
def _pair(index):
    """``(i, j)``, ``i <= j``, of the upper triangle column by column: ``index = j (j + 1) / 2 + i``."""
    j = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    j -= (j * (j + 1) // 2 > index).to(tl.int32)  # the float may round across the border
    j += ((j + 1) * (j + 2) // 2 <= index).to(tl.int32)
    return index - j * (j + 1) // 2, j


@triton.jit
def _store_mirrored(out, tile, i, j, dim, BLOCK_D: tl.constexpr):
    """Writes tile ``(i, j)`` and its mirror image; on the diagonal its own upper half decides."""
    index = tl.arange(0, BLOCK_D)
    if i == j:
        tile = tl.where(index[:, None] <= index[None, :], tile, tl.trans(tile))
    row = (i * BLOCK_D + index).to(tl.int64)
    column = (j * BLOCK_D + index).to(tl.int64)
    value = tile.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * dim + column[None, :], value, mask=(row < dim)[:, None] & (column < dim)[None, :])
    if i != j:
        value = tl.trans(value)
        mask = (column < dim)[:, None] & (row < dim)[None, :]
        tl.store(out + column[:, None] * dim + row[None, :], value, mask=mask)


@triton.jit
def _scatter(
    x, labels, center, out, n, dim, num_classes, ignore_index, rows_per_split,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd,
    DIRECT: tl.constexpr, DTYPE: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """One tile over one split; PRODUCT is the dtype of the factors, DTYPE that of the sums."""
    pair = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    i, j = _pair(pair)
    index = tl.arange(0, BLOCK_D)
    row_columns = i * BLOCK_D + index
    columns = j * BLOCK_D + index
    begin = split * rows_per_split
    end = tl.minimum(begin + rows_per_split, n)
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    total = tl.zeros((BLOCK_D, BLOCK_D), DTYPE)
    for fold in range(begin, end, FOLD):  # in one float32 chain over many rows the late ones lose their digits
        part = tl.zeros((BLOCK_D, BLOCK_D), DTYPE)
        for start in range(fold, tl.minimum(fold + FOLD, end), BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N)
            y, keep = row_classes(labels, rows, rows < end, num_classes, ignore_index, stride_y)
            a = load_deviations(of, rows, y, keep, row_columns, row_columns < dim, PRODUCT)
            b = load_deviations(of, rows, y, keep, columns, columns < dim, PRODUCT)
            part = tl.dot(tl.trans(a), b, part, input_precision=PRECISION, out_dtype=DTYPE)
        total += part
    if DIRECT:
        _store_mirrored(out, total, i, j, dim, BLOCK_D)
    else:
        tile = (split * tl.num_programs(0) + pair) * BLOCK_D * BLOCK_D
        tl.store(out + tile + index[:, None] * BLOCK_D + index[None, :], total)


@triton.jit
def _merge(tiles, out, dim, splits, DTYPE: tl.constexpr, BLOCK_D: tl.constexpr):
    pair = tl.program_id(0)
    pairs = tl.num_programs(0).to(tl.int64)
    i, j = _pair(pair)
    index = tl.arange(0, BLOCK_D)
    where = tiles + index[:, None] * BLOCK_D + index[None, :]
    total = tl.zeros((BLOCK_D, BLOCK_D), DTYPE)
    for split in range(splits):
        total += tl.load(where + (split * pairs + pair) * BLOCK_D * BLOCK_D)
    _store_mirrored(out, total, i, j, dim, BLOCK_D)


def tile_width(dim: int, block: int, per_side: int) -> int:
    """The table's tile, or a smaller one so that the triangle of a narrow matrix has tiles for every processor."""
    while block > 16 and dim < per_side * block:
        block //= 2
    return block


def split_rows(n: int, dim: int, block: int, fold: int, itemsize: int) -> tuple[int, int]:
    """``(splits, rows per split)``: about 1024 programs and at most 65536 rows each, within the workspace."""
    blocks = triton.cdiv(dim, block)
    pairs = blocks * (blocks + 1) // 2
    workspace = (4 if dim >= 4096 else 8) * dim * dim * 4
    most = max(1, min(workspace // (pairs * block * block * itemsize), triton.cdiv(n, fold)))
    splits = min(most, max(1024 // pairs, triton.cdiv(n, 65536), 1))
    rows = triton.cdiv(triton.cdiv(n, splits), fold) * fold
    return max(1, triton.cdiv(n, rows)), rows


def class_scatter(
    x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool
) -> Tensor:
    """``sum_i r_i r_i^T (D, D)`` of ``r = x - center[label]``, exactly symmetric."""
    n, dim = x.shape
    dtype = compute_dtype(x.dtype)
    out = torch.empty((dim, dim), dtype=dtype, device=x.device)
    if n == 0 or dim == 0:
        return out.zero_()
    if "split_halves" in CHOSEN and _split_halves.fits(x, center, allow_tf32):
        return _split_halves.scatter_of_halves(x, labels, center, ignore_index, out)
    # Half-precision features are multiplied as they are: exact in float32 sums. Deviations from a float32 centre have
    # up to 24 bits and would lose most of them, so they are multiplied in float32.
    raw = center is None and x.element_size() == 2
    product = compute_type(x.dtype)
    if raw and not (interpreted() and x.dtype == torch.bfloat16):  # the interpreter multiplies the bits of bfloat16
        product = tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16
    like = x if raw or x.element_size() != 2 else x.new_empty(0, dtype=torch.float32)  # whose row of the table counts
    arguments = row_arguments(x, labels, center)

    def run(config: Launch) -> None:
        block = config["BLOCK_D"]
        if not interpreted():
            block = tile_width(dim, block, 4 if raw or allow_tf32 else 8)
        splits, rows = split_rows(n, dim, block, config["FOLD"], dtype.itemsize)
        blocks = triton.cdiv(dim, block)
        pairs = blocks * (blocks + 1) // 2
        tiles = out if splits == 1 else torch.empty((splits, pairs, block, block), dtype=dtype, device=x.device)
        _scatter[(pairs, splits)](
            out=tiles, n=n, dim=dim, ignore_index=ignore_index, rows_per_split=rows, DIRECT=splits == 1,
            DTYPE=compute_type(x.dtype), PRODUCT=product, PRECISION=input_precision(allow_tf32, across=True),
            **arguments, **config.options | {"BLOCK_D": block, "num_warps": warps_of(block, config)},
        )  # fmt: skip
        if splits > 1:
            _merge[(pairs,)](
                tiles, out, dim, splits, DTYPE=compute_type(x.dtype), BLOCK_D=block, num_warps=max(1, block // 16)
            )

    tuned("class_scatter", like, (n, dim), run, allow_tf32)
    return out


def warps_of(block: int, config: Launch) -> int:
    """A smaller tile than the table's takes fewer warps."""
    return max(1, config.num_warps * block * block // config["BLOCK_D"] ** 2)


def class_scatter_backward(
    g: Tensor, x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool,
    need_x: bool, need_center: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``r (g + g^T)`` for ``x``, minus its sums per class for ``center``; size 0 where not needed."""
    g = g + g.t()
    g_x, g_center = x.new_empty(0), g.new_empty(0)
    if need_x:
        g_x = row_products(x, labels, center, g, ignore_index, allow_tf32, dtype=x.dtype)
    if need_center:
        # sum_i r_i G = (sum_i r_i) G: one product per class, not per row.
        anchors = center if labels is not None else center[None]
        rows = sort_rows(labels, x.shape[0], anchors.shape[0], ignore_index, x.device)
        sums, _, counts, _ = sums_by_class(x, rows, anchors.shape[0], anchors)
        g_center = row_products(sums, None, None, g, ignore_index, allow_tf32, scale=-1.0)
        g_center = torch.where(counts[:, None] > 0, g_center, 0).reshape(center.shape)
    return g_x, g_center
