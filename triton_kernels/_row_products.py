"""Deviations times a matrix: the product that gradients of rows, and projections, are made of."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._deviations import Deviations, compute_type, load_deviations, row_arguments, row_classes
from ._launch import Launch, input_precision, tuned
from ._products import add_products


@triton.jit
def product_tile(
    of, rows, y, keep, matrix, columns, dim, width, stride_md, stride_mj,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``(rows, columns)`` tile of deviations times ``matrix (dim, width)``."""
    inside = columns < width
    wide = columns.to(tl.int64)[None, :] * stride_mj
    total = tl.zeros((rows.shape[0], columns.shape[0]), DTYPE)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        a = load_deviations(of, rows, y, keep, d, d < dim, DTYPE)
        mask = (d < dim)[:, None] & inside[None, :]
        b = tl.load(matrix + d.to(tl.int64)[:, None] * stride_md + wide, mask=mask, other=0)
        total = add_products(total, a, b, PRECISION)
    return total


@triton.jit
def _row_products(
    x, labels, center, factor, matrix, out, n, dim, width, num_classes, ignore_index,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd, stride_f, stride_md, stride_mj,
    SCALE: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(width, BLOCK_J)  # one axis: the others end at 65535 blocks
    columns = tl.program_id(0) % blocks * BLOCK_J + tl.arange(0, BLOCK_J)
    rows = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    y, keep = row_classes(labels, rows, rows < n, num_classes, ignore_index, stride_y)
    if factor is not None:  # a row without a gradient is not read: it may hold a NaN
        scale = tl.load(factor + rows * stride_f, mask=keep, other=0)
        keep &= scale != 0
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    product = product_tile(
        of, rows, y, keep, matrix, columns, dim, width, stride_md, stride_mj, DTYPE, PRECISION, BLOCK_D
    )
    if factor is not None:
        product *= scale[:, None]
    if SCALE != 1:
        product *= SCALE
    product = tl.where(keep[:, None], product, 0)  # 0 times a non-finite matrix
    mask = (rows < n)[:, None] & (columns < width)[None, :]
    where = out + rows[:, None] * width + columns[None, :]
    tl.store(where, product.to(out.dtype.element_ty), mask=mask)


def row_products(
    x: Tensor, labels: Tensor | None, center: Tensor | None, matrix: Tensor, ignore_index: int, tf32: bool,
    *, dtype: torch.dtype | None = None, factor: Tensor | None = None, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """``scale * factor * (x - center[label]) @ matrix`` ``(N, J)`` in ``dtype``, by default the compute dtype.

    Rows that do not count and rows with ``factor`` 0 give zeros.
    """
    n, dim = x.shape
    width = matrix.shape[1]
    out = torch.empty((n, width), dtype=dtype or compute_dtype(x.dtype), device=x.device)
    if out.numel() == 0:
        return out
    arguments = row_arguments(x, labels, center)

    def run(config: Launch) -> None:
        _row_products[(triton.cdiv(width, config["BLOCK_J"]) * triton.cdiv(n, config["BLOCK_N"]),)](
            factor=factor, matrix=matrix, out=out, n=n, dim=dim, width=width, ignore_index=ignore_index,
            stride_f=0 if factor is None else factor.stride(0), stride_md=matrix.stride(0),
            stride_mj=matrix.stride(1), SCALE=scale, DTYPE=compute_type(x.dtype),
            PRECISION=input_precision(tf32), **arguments, **config.options,
        )  # fmt: skip

    tuned("row_products", x, (n, dim, width), run, tf32)
    return out
