"""A tile of logits of a linear classifier, in registers: one sequence of operations for every kernel that needs it."""

from typing import NamedTuple

import triton
import triton.language as tl

from ._logit_state import expm1
from ._products import add_products


class Classifier(NamedTuple):
    """Where features, classifier rows and bias (or None) lie, and what scales the products."""

    x: tl.tensor
    weight: tl.tensor
    bias: tl.tensor
    num_features: tl.tensor
    scale: tl.tensor
    stride_xn: tl.tensor
    stride_xd: tl.tensor
    stride_wv: tl.tensor
    stride_wd: tl.tensor
    stride_b: tl.tensor


@triton.jit
def scaled(value, scale):
    """The product in the dtype of ``value``; ``scale`` is a float64 argument, so that float64 logits lose nothing."""
    if value.dtype == tl.float64:
        return value * scale
    else:
        return value * tl.cast(scale, tl.float32)


@triton.jit
def _tanh(x):
    """In float32 to 2 units in the last place, in float64 to a few; from exp, which the interpreter has too."""
    size = tl.abs(x)
    if x.dtype == tl.float64:
        lost = expm1(-2 * size)
        value = -lost / (2 + lost)
    else:
        power = tl.exp(-2 * size)
        small = tl.minimum(size, 0.625)
        square = small * small
        series = (-0.00570511 * square + 0.02063919) * square - 0.05373974
        series = ((series * square + 0.13331442) * square - 0.33333282) * square  # minimax: 4e-9 up to 0.625
        value = tl.where(size < 0.625, small + small * series, 1 - 2 * power / (1 + power))
    return tl.where(x < 0, -value, value)


@triton.jit
def capped(z, SOFTCAP: tl.constexpr):
    """``SOFTCAP * tanh(z / SOFTCAP)``, ``z`` itself without a cap. Infinities and NaN stay: they mask and poison.

    A model has one cap: it is compiled in, and kernels without it are as if there was none.
    """
    if SOFTCAP is None:
        return z
    else:
        return tl.where(tl.abs(z) < float("inf"), SOFTCAP * _tanh(z * (1 / SOFTCAP)), z)


@triton.jit
def capped_slope(z, SOFTCAP: tl.constexpr):
    """The derivative of ``capped`` by ``z``; 1 - tanh^2, which near the cap would have no digit left, is not formed."""
    power = tl.exp(-2 * tl.abs(z * (1 / SOFTCAP)))
    return 4 * power / ((1 + power) * (1 + power))


@triton.jit
def logits_tile(
    of, row, column, EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """``scale * x[row] @ weight[column].T + bias[column]``, a tile (rows, columns). Rows and columns must exist."""
    row, column = tl.cast(row, tl.int64), tl.cast(column, tl.int64)
    feature = tl.arange(0, BLOCK_D)
    offset = tl.cast(feature, tl.int64)
    xs = of.x + row[:, None] * of.stride_xn + offset[None, :] * of.stride_xd
    ws = of.weight + column[None, :] * of.stride_wv + offset[:, None] * of.stride_wd
    products = tl.zeros([row.shape[0], column.shape[0]], DTYPE)
    for start in range(0, of.num_features, BLOCK_D):
        if EVEN_D:
            a, b = tl.load(xs), tl.load(ws)
        else:
            left = feature < of.num_features - start
            a, b = tl.load(xs, left[None, :], 0.0), tl.load(ws, left[:, None], 0.0)
        products = add_products(products, a, b, PRECISION)
        xs += BLOCK_D * tl.cast(of.stride_xd, tl.int64)
        ws += BLOCK_D * tl.cast(of.stride_wd, tl.int64)
    z = scaled(products, of.scale)
    if of.bias is not None:
        z += tl.load(of.bias + column * of.stride_b).to(DTYPE)[None, :]
    return z
