"""Squared norms of projected deviations: product and norm in one kernel; the N x r projections never exist.

A program holds a block of rows and walks over blocks of the basis; with few rows the basis is split too, and the parts
are added in order. The gradients need the projections twice: they are formed for a block of rows at a time, 64 MB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._deviations import Deviations, compute_type, load_deviations, row_arguments, row_classes
from ._launch import Launch, capability, input_precision, split_count, tuned
from ._row_products import product_tile, row_products
from ._sorted_rows import sort_rows
from .class_moments import sums_by_class

BLOCK_BYTES = 64 << 20  # of projections that exist at a time in the backward


@triton.jit
def _sqnorms(
    x, labels, center, basis, out, n, dim, rank, num_classes, ignore_index, rank_per_split,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd, stride_br, stride_bd,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    y, keep = row_classes(labels, rows, rows < n, num_classes, ignore_index, stride_y)
    norm = tl.zeros((BLOCK_N,), tl.float64)  # one addition per block of the basis and row: float64 costs nothing
    begin = split * rank_per_split
    for start in range(begin, tl.minimum(begin + rank_per_split, rank), BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        product = product_tile(
            of, rows, y, keep, basis, columns, dim, rank, stride_bd, stride_br, DTYPE, PRECISION, BLOCK_D
        )
        norm += tl.sum(product * product, 1).to(tl.float64)
    norm = tl.where(keep, norm, 0)  # an ignored row is 0 whatever the basis holds
    tl.store(out + split.to(tl.int64) * n + rows, norm.to(out.dtype.element_ty), mask=rows < n)


@triton.jit
def _basis_gradient(
    projections, x, labels, center, factor, out, n, dim, rank, num_classes, ignore_index, rows_per_split,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd, stride_f,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """One ``(rank, columns)`` tile of ``projections^T (x - center)`` over one split of the rows."""
    ranks = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(2).to(tl.int64)
    begin = split * rows_per_split
    end = tl.minimum(begin + rows_per_split, n)
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    total = tl.zeros((BLOCK_R, BLOCK_D), DTYPE)
    for fold in range(begin, end, FOLD):
        part = tl.zeros((BLOCK_R, BLOCK_D), DTYPE)
        for start in range(fold, tl.minimum(fold + FOLD, end), BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N)
            y, keep = row_classes(labels, rows, rows < end, num_classes, ignore_index, stride_y)
            keep &= tl.load(factor + rows * stride_f, mask=keep, other=0) != 0
            mask = keep[:, None] & (ranks < rank)[None, :]
            a = tl.load(projections + rows[:, None] * rank + ranks[None, :], mask=mask, other=0)
            b = load_deviations(of, rows, y, keep, columns, columns < dim, DTYPE)
            part = tl.dot(tl.trans(a), b, part, input_precision=PRECISION, out_dtype=DTYPE)
        total += part
    mask = (ranks < rank)[:, None] & (columns < dim)[None, :]
    where = (split * rank + ranks.to(tl.int64))[:, None] * dim + columns[None, :]
    tl.store(out + where, total, mask=mask)


def projected_sqnorms(
    x: Tensor, basis: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, allow_tf32: bool
) -> Tensor:
    """``|basis (x - center[label])|^2 (N,)``; 0 for ignored rows."""
    n, dim = x.shape
    rank = basis.shape[0]
    dtype = compute_dtype(x.dtype)
    if n == 0 or rank == 0 or dim == 0:
        return torch.zeros(n, dtype=dtype, device=x.device)
    arguments = row_arguments(x, labels, center)

    def run(config: Launch) -> Tensor:
        blocks = triton.cdiv(n, config["BLOCK_N"])
        tiles = triton.cdiv(rank, config["BLOCK_J"])
        splits = split_count(capability(x.device), programs=blocks, tiles=tiles)
        out = torch.empty((splits, n), dtype=dtype if splits == 1 else torch.float64, device=x.device)
        _sqnorms[(blocks, splits)](
            basis=basis, out=out, n=n, dim=dim, rank=rank, ignore_index=ignore_index,
            rank_per_split=triton.cdiv(tiles, splits) * config["BLOCK_J"], stride_br=basis.stride(0),
            stride_bd=basis.stride(1), DTYPE=compute_type(x.dtype), PRECISION=input_precision(allow_tf32),
            **arguments, **config.options,
        )  # fmt: skip
        return out[0] if splits == 1 else out.sum(0).to(dtype)

    return tuned("projected_sqnorms", x, (n, dim, rank), run, allow_tf32)


def _add_basis_gradient(
    out: Tensor, projections: Tensor, x: Tensor, labels: Tensor | None, center: Tensor | None, factor: Tensor,
    ignore_index: int, tf32: bool,
) -> None:  # fmt: skip
    """Adds ``projections^T (x - center[label])`` over the rows with a factor."""
    (n, dim), rank = x.shape, projections.shape[1]
    arguments = row_arguments(x, labels, center)

    def run(config: Launch) -> Tensor:
        grid = (triton.cdiv(rank, config["BLOCK_R"]), triton.cdiv(dim, config["BLOCK_D"]))
        fold = config["FOLD"]
        tiles = triton.cdiv(n, fold)
        splits = min(8, split_count(capability(x.device), programs=grid[0] * grid[1], tiles=tiles))
        rows = triton.cdiv(tiles, splits) * fold
        splits = triton.cdiv(n, rows)
        parts = torch.empty((splits, rank, dim), dtype=out.dtype, device=x.device)
        _basis_gradient[(*grid, splits)](
            projections=projections, factor=factor, out=parts, n=n, dim=dim, rank=rank,
            ignore_index=ignore_index, rows_per_split=rows, stride_f=factor.stride(0), DTYPE=compute_type(x.dtype),
            PRECISION=input_precision(tf32, across=True), **arguments, **config.options,
        )  # fmt: skip
        return parts

    parts = tuned("projected_sqnorms.basis", x, (n, dim, rank), run, tf32)
    for part in parts:
        out += part


def projected_sqnorms_backward(
    g: Tensor, x: Tensor, basis: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int,
    allow_tf32: bool, need_x: bool, need_basis: bool, need_center: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``basis`` and ``center``; size 0 where not needed. A row with ``g = 0`` gives nothing."""
    (n, dim), rank = x.shape, basis.shape[0]
    g_x, g_basis, g_center = x.new_empty(0), basis.new_empty(0), basis.new_empty(0)
    if need_basis:
        g_basis = torch.zeros((rank, dim), dtype=basis.dtype, device=x.device)
    if need_x:
        g_x = torch.empty((n, dim), dtype=x.dtype, device=x.device)
    if need_x or need_basis:
        step = max(1, BLOCK_BYTES // (basis.element_size() * max(1, rank)))
        for start in range(0, n, step):
            rows = slice(start, min(n, start + step))
            y = None if labels is None else labels[rows]
            projections = row_products(
                x[rows], y, center, basis.t(), ignore_index, allow_tf32, factor=g[rows], scale=2.0
            )
            if need_x:
                g_x[rows] = row_products(projections, None, None, basis, ignore_index, allow_tf32, dtype=x.dtype)
            if need_basis and g_basis.numel():
                _add_basis_gradient(g_basis, projections, x[rows], y, center, g[rows], ignore_index, allow_tf32)
    if need_center:
        # The gradients of a class's rows add up to -2 B^T B sum_i g_i r_i: one product per class, not per row.
        anchors = center if labels is not None else center[None]
        order = sort_rows(labels, n, anchors.shape[0], ignore_index, x.device)
        pulls = sums_by_class(x, order, anchors.shape[0], anchors, g)[0]
        g_center = torch.empty_like(pulls)
        step = max(1, BLOCK_BYTES // (basis.element_size() * max(1, rank)))
        for start in range(0, anchors.shape[0], step):
            block = pulls[start : start + step]
            projections = row_products(block, None, None, basis.t(), ignore_index, allow_tf32, scale=-2.0)
            g_center[start : start + step] = row_products(projections, None, None, basis, ignore_index, allow_tf32)
        g_center = g_center.reshape(center.shape)
    return g_x, g_basis, g_center
