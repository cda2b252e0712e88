"""Classes of a pair of rows of logits, and what divergences add up of them. The formulas are explained in
ncops/reference/logit_divergence.py."""

import math
from typing import NamedTuple

import triton
import triton.language as tl

from ._logits_tile import capped, scaled

NEAR = tl.constexpr(0.5)  # series below it; above, nothing cancels by more than a factor of ten
FAR = tl.constexpr(1000.0)  # the log of a ratio with 0: e^-FAR is 0 in every dtype, and 0 times it is 0


@triton.constexpr_function
def _coefficient(of, k):
    """Of the k-th power of t^2 in cosh t - 1 or in sinh t / t - 1, of u^2 in log1p(w) / u - 2."""
    return {"cosh": 1 / math.factorial(2 * k), "sinh": 1 / math.factorial(2 * k + 1), "log1p": 2 / (2 * k + 1)}[of]


class Pair(NamedTuple):
    """Where rows of products lie, and what makes logits of them: ``first`` those of z, ``second`` those of y or, with
    one head, of y - z. Biases may be None."""

    first: tl.tensor
    second: tl.tensor
    bias: tl.tensor
    other_bias: tl.tensor
    scale: tl.tensor
    num_classes: tl.tensor
    stride_n: tl.tensor
    stride_v: tl.tensor
    other_n: tl.tensor
    other_v: tl.tensor
    stride_b: tl.tensor
    other_b: tl.tensor


class Logits(NamedTuple):
    """Tiles of both logits and of their difference y - z, 0 where one of them is masked; padding is masked in both."""

    z: tl.tensor
    y: tl.tensor
    d: tl.tensor
    masked: tl.tensor
    other_masked: tl.tensor


@triton.jit
def _bias_of(bias, column, there, stride, DTYPE: tl.constexpr):
    if bias is None:
        return 0.0
    else:
        return tl.load(bias + tl.cast(column, tl.int64) * stride, there, 0.0).to(DTYPE)[None, :]


@triton.jit
def uncapped_pair(of, row, column, ONE_HEAD: tl.constexpr, DTYPE: tl.constexpr):
    """z, y and y - z of existing rows; -inf for columns that are padding."""
    there = column < of.num_classes
    wide = tl.cast(column, tl.int64)[None, :]
    first = tl.load(of.first + row[:, None] * of.stride_n + wide * of.stride_v, there[None, :], 0.0).to(DTYPE)
    second = tl.load(of.second + row[:, None] * of.other_n + wide * of.other_v, there[None, :], 0.0).to(DTYPE)
    bias = _bias_of(of.bias, column, there, of.stride_b, DTYPE)
    z = scaled(first, of.scale) + bias
    if ONE_HEAD:
        d = scaled(second, of.scale)
        y = z + d
    else:
        other_bias = _bias_of(of.other_bias, column, there, of.other_b, DTYPE)
        y = scaled(second, of.scale) + other_bias
        d = scaled(second - first, of.scale) + (other_bias - bias)
    lowest: tl.constexpr = float("-inf")
    return tl.where(there[None, :], z, lowest), tl.where(there[None, :], y, lowest), d


@triton.jit
def capped_pair(z, y, d, SOFTCAP: tl.constexpr):
    """:class:`Logits` of those before the cap. The difference keeps its digits: tanh b - tanh a is
    tanh(b - a) (1 - tanh a tanh b)."""
    if SOFTCAP is not None:
        z, y = capped(z, SOFTCAP), capped(y, SOFTCAP)
        d = capped(d, SOFTCAP) * (1 - (z * (1 / SOFTCAP)) * (y * (1 / SOFTCAP)))
    masked, other_masked = z == float("-inf"), y == float("-inf")
    return Logits(z, y, tl.where(masked | other_masked, 0, d), masked, other_masked)


@triton.jit
def load_pair(of, row, column, ONE_HEAD: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr):
    z, y, d = uncapped_pair(of, row, column, ONE_HEAD, DTYPE)
    return capped_pair(z, y, d, SOFTCAP)


@triton.jit
def log_ratio(pair, shift):
    """s = log q - log p, 0 where both are masked."""
    s = tl.where(pair.masked, FAR, pair.d - shift[:, None])
    return tl.where(pair.other_masked, tl.where(pair.masked, 0, -FAR), s)


@triton.jit
def q_above(pair, level):
    """1 where q is above p, 0.5 where they are equal. ``level`` is the difference of the log-sum-exps as the planes
    hold them: gradients have to see the same side as ``below``, also of a class where p and q all but agree."""
    s = log_ratio(pair, level)
    return tl.where(s > 0, 1.0, tl.where(s == 0, 0.5, 0.0)).to(s.dtype)


@triton.jit
def _series(of: tl.constexpr, x, TERMS: tl.constexpr):
    total = tl.full(x.shape, _coefficient(of, TERMS), x.dtype)
    for k in tl.static_range(1, TERMS):
        total = total * x + _coefficient(of, TERMS - k)
    return total * x


@triton.jit
def exp_rests(t):
    """e^t - 1 - t and e^-t - 1 + t for |t| < NEAR."""
    wide: tl.constexpr = t.dtype == tl.float64
    square = t * t
    even, odd = _series("cosh", square, 8 if wide else 4), t * _series("sinh", square, 7 if wide else 4)
    return even + odd, even - odd


@triton.jit
def log_rest(w):
    """w - log(1 + w) for what |t| < NEAR comes to: log(1 + w) = 2 artanh(u) with u = w / (2 + w), and w - 2 u = w u."""
    u = w / (2 + w)
    return u * (w - _series("log1p", u * u, 13 if w.dtype == tl.float64 else 6))


@triton.jit
def of_dtype(number, DTYPE: tl.constexpr):
    """A float64 argument as a (1, 1) tile: the interpreter's own cast goes by way of float32."""
    return scaled(tl.full([1, 1], 1.0, DTYPE), number)


@triton.jit
def mixture_rests(t, rest, other_rest, beta):
    """h((1 - beta) (e^t - 1)) and h(beta (e^-t - 1)) of h(w) = w - log1p(w), for |t| < NEAR.

    The series of the smaller one gives both: they differ by (1 - beta) rest - beta other_rest.
    """
    less = beta < 0.5
    h = log_rest(tl.where(less, beta * (other_rest - t), (1 - beta) * (t + rest)))
    apart = (1 - beta) * rest - beta * other_rest
    return tl.where(less, h + apart, h), tl.where(less, h, h - apart)


@triton.jit
def mixture_logs(s, beta):
    """log(m / p) and log(m / q) of m = beta p + (1 - beta) q, for s that is not small."""
    power = tl.exp(-tl.abs(s))
    low = tl.log(tl.where(s <= 0, beta + (1 - beta) * power, (1 - beta) + beta * power))
    return low + tl.maximum(s, 0), low - tl.minimum(s, 0)


@triton.jit
def near_mixture_logs(t, rest, other_rest, beta):
    """The same for |t| < NEAR, of which the smaller gives both."""
    less = beta < 0.5
    w = tl.where(less, beta * (other_rest - t), (1 - beta) * (t + rest))
    log = w - log_rest(w)
    return tl.where(less, log + t, log), tl.where(less, log, log - t)
