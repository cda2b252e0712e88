"""A tile of logits of a linear classifier, in registers: one sequence of operations for every kernel that needs it."""

import triton
import triton.language as tl

from ._products import add_products


@triton.jit
def scaled(value, scale):
    """The product in the dtype of ``value``; ``scale`` is a float64 argument, so that float64 logits lose nothing."""
    if value.dtype == tl.float64:
        return value * scale
    else:
        return value * tl.cast(scale, tl.float32)


@triton.jit
def logits_tile(
    x, weight, bias, row, column, num_features, scale, stride_xn, stride_xd, stride_wv, stride_wd, stride_b,
    HAS_BIAS: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``scale * x[row] @ weight[column].T + bias[column]``, a (BLOCK_N, BLOCK_V) tile. Rows and columns must exist."""
    row, column = tl.cast(row, tl.int64), tl.cast(column, tl.int64)
    feature = tl.arange(0, BLOCK_D)
    offset = tl.cast(feature, tl.int64)
    xs = x + row[:, None] * stride_xn + offset[None, :] * stride_xd
    ws = weight + column[None, :] * stride_wv + offset[:, None] * stride_wd
    products = tl.zeros([BLOCK_N, BLOCK_V], DTYPE)
    for start in range(0, num_features, BLOCK_D):
        if EVEN_D:
            a, b = tl.load(xs), tl.load(ws)
        else:
            left = feature < num_features - start
            a, b = tl.load(xs, left[None, :], 0.0), tl.load(ws, left[:, None], 0.0)
        products = add_products(products, a, b, PRECISION)
        xs += BLOCK_D * tl.cast(stride_xd, tl.int64)
        ws += BLOCK_D * tl.cast(stride_wd, tl.int64)
    z = scaled(products, scale)
    if HAS_BIAS:
        z += tl.load(bias + column * stride_b).to(DTYPE)[None, :]
    return z
