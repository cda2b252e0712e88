"""A tile of logits of a linear classifier, in registers: one sequence of operations for every kernel that needs it."""

import triton
import triton.language as tl

from ._launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def scaled(value, scale):
    """The product in the dtype of ``value``; ``scale`` is a float64 argument, so that float64 logits lose nothing."""
    if value.dtype == tl.float64:
        return value * scale
    else:
        return value * tl.cast(scale, tl.float32)


@triton.jit
def dot(a, b, products, PRECISION: tl.constexpr):
    """``tl.dot``; the interpreter of Triton 3.9 multiplies the bit patterns of bfloat16, so it is given float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, products, input_precision=PRECISION, out_dtype=products.dtype)


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
        products = dot(a, b, products, PRECISION)
        xs += BLOCK_D * stride_xd
        ws += BLOCK_D * stride_wd
    z = scaled(products, scale)
    if HAS_BIAS:
        z += tl.load(bias + column * stride_b).to(DTYPE)[None, :]
    return z
