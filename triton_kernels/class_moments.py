"""Counts, sums and squared norms per class: one pass over the rows in label order, cut into chunks of equal length.

A chunk is the unit of work, not a class, so a class that holds half of the rows costs no more per row than any other.
Segments that lie inside a chunk go straight to their class; those cut by a chunk border leave one partial per chunk,
and a second kernel adds these in order, in float64. Workspace: two rows of D per chunk of 32 rows or more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._deviations import Deviations, compute_type, load_deviations, row_arguments, row_classes
from ._launch import capability, device_of, launch
from ._sorted_rows import SortedRows, sort_rows

# Results written, results added to a state, anchors of the classes that the state has not seen.
FRESH, STATE, ANCHOR = (tl.constexpr(mode) for mode in range(3))


@triton.jit
def _flush(
    total, squares, key, first, stop, begin, end, left, right, chunk, chunks, columns, inside,
    sums, counts, class_squares, partial, partial_squares, dim, num_classes, MODE: tl.constexpr,
):  # fmt: skip
    """Stores the segment ``[first, stop)`` of class ``key``: to the class if the chunk holds all of it."""
    block = tl.program_id(1)
    cut = ((first == begin) & (key == left)) | ((stop == end) & (key == right))
    square = tl.sum(squares, 0).to(tl.float64)
    wanted = True
    if MODE == ANCHOR:
        wanted = tl.load(counts + key) == 0
    if wanted:
        if cut:
            slot = chunk * 2 + (first != begin).to(tl.int64)
            tl.store(partial + slot * dim + columns, total, mask=inside)
            tl.store(partial_squares + block * chunks * 2 + slot, square)
        else:
            where = sums + key * dim + columns
            if MODE == FRESH:
                tl.store(where, total, mask=inside)
            if MODE == STATE:
                tl.store(where, tl.load(where, mask=inside) + total.to(tl.float64), mask=inside)
            if MODE == ANCHOR:
                tl.store(where, total / (stop - first).to(total.dtype), mask=inside)
            tl.store(class_squares + block * num_classes + key, square)


@triton.jit
def _segments(
    x, center, weight, order, keys, starts, sums, counts, class_squares, partial, partial_squares,
    n, dim, num_classes, chunks, stride_xn, stride_xd, stride_cc, stride_cd, stride_w,
    MODE: tl.constexpr, DTYPE: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums the segments of one chunk of sorted rows over one block of columns; ``counts`` is the state's."""
    chunk = tl.program_id(0).to(tl.int64)
    begin = chunk * CHUNK
    valid = tl.load(starts + num_classes)
    end = tl.minimum(begin + CHUNK, valid)
    if begin >= end:
        return
    if MODE == ANCHOR:  # once every class is known, no row is read at all
        all_rows = begin + tl.arange(0, CHUNK)
        known = tl.load(keys + all_rows, mask=all_rows < end, other=0).to(tl.int64)
        if tl.min(tl.load(counts + known, mask=all_rows < end, other=1), 0) > 0:
            return
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < dim
    left = tl.load(keys + begin - 1, mask=begin > 0, other=-1).to(tl.int64)
    right = tl.load(keys + end, mask=end < valid, other=-1).to(tl.int64)
    key = tl.load(keys + begin).to(tl.int64)
    first = begin
    total = tl.zeros((BLOCK_D,), DTYPE)
    squares = tl.zeros((BLOCK_D,), DTYPE)
    index = tl.arange(0, ROWS)
    next_rows = tl.load(order + begin + index, mask=begin + index < end, other=0)
    next_classes = tl.load(keys + begin + index, mask=begin + index < end, other=0).to(tl.int64)
    for base in range(begin, end, ROWS):
        present = base + index < end
        rows = next_rows
        classes = next_classes
        # Indices are fetched a tile ahead, so that one latency and not two stands before each tile.
        ahead = base + ROWS + index
        next_rows = tl.load(order + ahead, mask=ahead < end, other=0)
        next_classes = tl.load(keys + ahead, mask=ahead < end, other=0).to(tl.int64)
        if MODE == ANCHOR:
            present &= tl.load(counts + classes, mask=present, other=1) == 0
        if weight is not None:
            factor = tl.load(weight + rows * stride_w, mask=present, other=0)
            present &= factor != 0
        tile = load_deviations(of, rows, classes, present, columns, inside, DTYPE)
        if weight is not None:
            tile = tl.where(present[:, None], tile * factor[:, None], 0)
        if tl.load(keys + tl.minimum(base + ROWS, end) - 1).to(tl.int64) == key:
            total += tl.sum(tile, 0)
            squares += tl.sum(tile * tile, 0)
        else:
            for i in tl.static_range(ROWS):
                if base + i < end:
                    row_key = tl.load(keys + base + i).to(tl.int64)
                    if row_key != key:
                        _flush(
                            total, squares, key, first, base + i, begin, end, left, right, chunk, chunks, columns,
                            inside, sums, counts, class_squares, partial, partial_squares, dim, num_classes, MODE,
                        )  # fmt: skip
                        total = tl.zeros((BLOCK_D,), DTYPE)
                        squares = tl.zeros((BLOCK_D,), DTYPE)
                        key = row_key
                        first = base + i
                    # A row of the tile lies in the registers of its threads: the selection costs nothing there.
                    row = tl.sum(tl.where(index[:, None] == i, tile, 0), 0)
                    total += row
                    squares += row * row
    _flush(
        total, squares, key, first, end, begin, end, left, right, chunk, chunks, columns,
        inside, sums, counts, class_squares, partial, partial_squares, dim, num_classes, MODE,
    )  # fmt: skip


@triton.jit
def _merge(
    keys, starts, sums, sqnorms, counts, partial, partial_squares, dim, num_classes, chunks, blocks,
    MODE: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the partials of the class cut by one chunk border, in order, if this is the first border that cuts it."""
    low = tl.program_id(0).to(tl.int64)
    border = (low + 1) * CHUNK
    if border >= tl.load(starts + num_classes):
        return
    key = tl.load(keys + border).to(tl.int64)
    begin = tl.load(starts + key)
    if (begin >= border) | (begin < low * CHUNK):
        return
    if MODE == ANCHOR:
        if tl.load(counts + key) != 0:
            return
    end = tl.load(starts + key + 1)
    high = (end - 1) // CHUNK
    # Only the first segment can begin inside its chunk: it is that chunk's last, in slot 1.
    late = (begin > low * CHUNK).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < dim
    parts = tl.arange(0, PARTS)
    total = tl.zeros((BLOCK_D,), tl.float64)
    for base in range(low, high + 1, PARTS):
        part = base + parts
        slot = part * 2 + tl.where(part == low, late, 0)
        mask = (part <= high)[:, None] & inside[None, :]
        tile = tl.load(partial + slot[:, None] * dim + columns[None, :], mask=mask, other=0)
        total += tl.sum(tile.to(tl.float64), 0)
    where = sums + key * dim + columns
    if MODE == STATE:
        total += tl.load(where, mask=inside)
    if MODE == ANCHOR:
        total /= (end - begin).to(tl.float64)
    tl.store(where, total.to(sums.dtype.element_ty), mask=inside)
    if MODE != ANCHOR:
        if tl.program_id(1) == 0:
            squares = tl.zeros((PARTS,), tl.float64)
            for block in range(blocks):
                for base in range(low, high + 1, PARTS):
                    part = base + parts
                    slot = block * chunks * 2 + part * 2 + tl.where(part == low, late, 0)
                    squares += tl.load(partial_squares + slot, mask=part <= high, other=0)
            norm = tl.sum(squares, 0)
            if MODE == STATE:
                norm += tl.load(sqnorms + key)
            tl.store(sqnorms + key, norm)


@triton.jit
def _finish(
    starts, sums, sqnorms, counts, invalid, class_squares, dim, num_classes, blocks,
    MODE: tl.constexpr, CHUNK: tl.constexpr, CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Counts, squared norms of the classes that no border cuts, and in fresh results the zeros of absent classes."""
    c = tl.program_id(0).to(tl.int64) * CLASSES + tl.arange(0, CLASSES)
    real = c < num_classes
    start = tl.load(starts + c, mask=real, other=0)
    stop = tl.load(starts + c + 1, mask=real, other=0)
    present = real & (stop > start)
    if MODE == FRESH:
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        absent = (real & (stop == start))[:, None] & (columns < dim)[None, :]
        zero = tl.zeros((CLASSES, BLOCK_D), sums.dtype.element_ty)
        tl.store(sums + c[:, None] * dim + columns[None, :], zero, mask=absent)
    if tl.program_id(1) == 0:
        whole = present & (start // CHUNK == (stop - 1) // CHUNK)
        square = tl.zeros((CLASSES,), tl.float64)
        for block in range(blocks):
            square += tl.load(class_squares + block * num_classes + c, mask=whole, other=0)
        if MODE == FRESH:
            tl.store(counts + c, stop - start, mask=real)
            tl.store(sqnorms + c, square, mask=whole | (real & (stop == start)))
        else:
            tl.store(counts + c, tl.load(counts + c, mask=present) + stop - start, mask=present)
            tl.store(sqnorms + c, tl.load(sqnorms + c, mask=whole) + square, mask=whole)
        if tl.program_id(0) == 0:
            bad = tl.load(starts + num_classes + 1) - tl.load(starts + num_classes)
            if MODE == STATE:
                bad += tl.load(invalid)
            tl.store(invalid, bad)


@triton.jit
def _gradient(
    g_sums, g_sqnorms, x, labels, center, out, n, dim, num_classes, ignore_index,
    stride_gc, stride_gd, stride_q, stride_y, stride_xn, stride_xd, stride_cc, stride_cd,
    DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    y, keep = row_classes(labels, rows, rows < n, num_classes, ignore_index, stride_y)
    inside = columns < dim
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    tile = load_deviations(of, rows, y, keep, columns, inside, DTYPE)
    mask = keep[:, None] & inside[None, :]
    g = tl.load(g_sums + y[:, None] * stride_gc + columns.to(tl.int64)[None, :] * stride_gd, mask=mask, other=0)
    q = tl.load(g_sqnorms + y * stride_q, mask=keep, other=0).to(DTYPE)
    grad = g + 2 * q[:, None] * tile
    out_mask = (rows < n)[:, None] & inside[None, :]
    tl.store(out + rows[:, None] * dim + columns[None, :], grad.to(out.dtype.element_ty), mask=out_mask)


def chunk_rows(n: int, most: int) -> int:
    """Rows per chunk: about 2048 chunks, but 32 rows at least, and ``most`` so that float32 sums stay short."""
    return max(min(32, most), min(most, triton.next_power_of_2(max(1, n // 2048))))


def column_block(dim: int, block: int, warps: int) -> tuple[int, int]:
    """``(columns, warps)`` of a program: narrow rows take fewer warps, 16 bytes per thread."""
    narrow = min(block, triton.next_power_of_2(max(1, dim)))
    return narrow, max(1, warps * narrow // block)


def _sum_segments(
    mode: tl.constexpr, x: Tensor, rows: SortedRows, num_classes: int, center: Tensor | None, weight: Tensor | None,
    sums: Tensor, sqnorms: Tensor, counts: Tensor, invalid: Tensor,
) -> None:  # fmt: skip
    """The kernels in one of the three modes; ``sums`` is contiguous, ``x`` has rows."""
    n, dim = x.shape
    dtype = compute_dtype(x.dtype)
    config = launch("class_moments", x.dtype, capability(x.device))
    chunk = chunk_rows(n, config["CHUNK"])
    chunks = triton.cdiv(n, chunk)
    block, warps = column_block(dim, config["BLOCK_D"], config.num_warps)
    blocks = max(1, triton.cdiv(dim, block))
    partial = torch.empty((chunks, 2, dim), dtype=dtype, device=x.device)
    squares = torch.empty(blocks * (2 * chunks + num_classes), dtype=torch.float64, device=x.device)
    class_squares, partial_squares = squares[: blocks * num_classes], squares[blocks * num_classes :]
    a = row_arguments(x, None, center)
    _segments[(chunks, blocks)](
        x, center, weight, *rows, sums, counts, class_squares, partial, partial_squares,
        n, dim, num_classes, chunks, a["stride_xn"], a["stride_xd"], a["stride_cc"], a["stride_cd"],
        0 if weight is None else weight.stride(0), MODE=mode, DTYPE=compute_type(x.dtype),
        **config.options | {"CHUNK": chunk, "BLOCK_D": block, "num_warps": warps},
    )  # fmt: skip
    merge = launch("class_moments.merge", x.dtype, capability(x.device))
    if chunks > 1:
        width = min(merge["BLOCK_D"], triton.next_power_of_2(max(1, dim)))
        _merge[(chunks - 1, max(1, triton.cdiv(dim, width)))](
            rows.keys, rows.starts, sums, sqnorms, counts, partial, partial_squares,
            dim, num_classes, chunks, blocks, MODE=mode, CHUNK=chunk, **merge.options | {"BLOCK_D": width},
        )  # fmt: skip
    if mode is not ANCHOR:
        finish = launch("class_moments.finish", x.dtype, capability(x.device))
        columns = max(1, triton.cdiv(dim, finish["BLOCK_D"])) if mode is FRESH else 1
        _finish[(triton.cdiv(num_classes, finish["CLASSES"]), columns)](
            rows.starts, sums, sqnorms, counts, invalid, class_squares, dim, num_classes, blocks,
            MODE=mode, CHUNK=chunk, **finish.options,
        )  # fmt: skip


def sums_by_class(
    x: Tensor, rows: SortedRows, num_classes: int, center: Tensor | None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(sums, sqnorms, counts, invalid)`` of ``weight * (x - center[class])``; a row of weight 0 adds nothing."""
    n, dim = x.shape
    sums = torch.empty((num_classes, dim), dtype=compute_dtype(x.dtype), device=x.device)
    sqnorms = torch.empty(num_classes, dtype=torch.float64, device=x.device)
    counts = torch.empty(num_classes, dtype=torch.int64, device=x.device)
    invalid = torch.empty((), dtype=torch.int64, device=x.device)
    if n == 0 or num_classes == 0:
        # With no classes, starts counts the labels that are neither ignored nor, there being no class, valid.
        return sums.zero_(), sqnorms.zero_(), counts.zero_(), rows.starts[-1] - rows.starts[-2]
    with device_of(x):
        _sum_segments(FRESH, x, rows, num_classes, center, weight, sums, sqnorms, counts, invalid)
    return sums, sqnorms, counts, invalid


def class_moments(
    x: Tensor, labels: Tensor, num_classes: int, center: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(sums (C, D), sqnorms (C) float64, counts (C) int64, invalid () int64)`` of ``x - center[label]``."""
    rows = sort_rows(labels, x.shape[0], num_classes, ignore_index, x.device)
    return sums_by_class(x, rows, num_classes, center)


def accumulate_class_moments_(
    counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor, invalid: Tensor,
    x: Tensor, labels: Tensor, ignore_index: int,
) -> Tensor:  # fmt: skip
    """Adds the moments of ``x`` to a running state in place; classes seen first are anchored at their mean here.

    Returns the number of invalid labels. On the CPU nothing has changed when that number is not zero.
    """
    num_classes = counts.shape[0]
    rows = sort_rows(labels, x.shape[0], num_classes, ignore_index, x.device)
    bad = rows.starts[-1] - rows.starts[-2]
    if x.device.type == "cpu" and bad > 0:
        return bad
    if x.shape[0] == 0 or num_classes == 0:
        invalid += bad
        return bad
    with device_of(x):
        _sum_segments(ANCHOR, x, rows, num_classes, None, None, center, sqnorms, counts, invalid)
        _sum_segments(STATE, x, rows, num_classes, center, None, sums, sqnorms, counts, invalid)
    return bad


def class_moments_backward(
    g_sums: Tensor, g_sqnorms: Tensor, x: Tensor, labels: Tensor, num_classes: int, center: Tensor | None,
    ignore_index: int,
) -> Tensor:  # fmt: skip
    """Gradient of ``x``: ``g_sums[y] + 2 g_sqnorms[y] (x - center[y])``; ignored rows get zero."""
    n, dim = x.shape
    out = torch.empty((n, dim), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = launch("class_moments_backward", x.dtype, capability(x.device))
    block, warps = column_block(dim, config["BLOCK_D"], config.num_warps)
    with device_of(x):
        _gradient[(triton.cdiv(n, config["BLOCK_N"]), triton.cdiv(dim, block))](
            g_sums=g_sums, g_sqnorms=g_sqnorms, out=out, n=n, dim=dim, ignore_index=ignore_index,
            stride_gc=g_sums.stride(0), stride_gd=g_sums.stride(1), stride_q=g_sqnorms.stride(0),
            DTYPE=compute_type(x.dtype), **row_arguments(x, labels, center) | {"num_classes": num_classes},
            **config.options | {"BLOCK_D": block, "num_warps": warps},
        )  # fmt: skip
    return out
