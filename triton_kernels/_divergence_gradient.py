"""Gradients of divergences by the logits before the cap, from the planes and one read of the pair."""

import triton
import triton.language as tl
from torch import Tensor

from ..backends.planes import DIVERGENCE_PLANES
from ._divergence_passes import Rows
from ._divergence_terms import (
    NEAR,
    Pair,
    capped_pair,
    exp_rests,
    log_ratio,
    mixture_logs,
    near_mixture_logs,
    of_dtype,
    q_above,
    uncapped_pair,
)
from ._launch import Launch
from ._logits_tile import capped_slope, scaled
from .logit_stats import blocks_of

(
    KL, REVERSE_KL, JS, OVERLAP, ENTROPY, OTHER_ENTROPY, LSE, OTHER_LSE, SHIFT, MIXTURE_KL, OTHER_MIXTURE_KL, BELOW,
) = map(tl.constexpr, range(len(DIVERGENCE_PLANES)))  # fmt: skip


@triton.jit
def _times(gradient, value):
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return tl.where(gradient == 0, 0, gradient * value)


@triton.jit
def _of(planes, PLANE: tl.constexpr, plane, row):
    return tl.load(planes + PLANE * plane + row)[:, None]


@triton.jit
def _mixture(g, over, floats, PLANE: tl.constexpr, plane, row):
    return _times(g, over + _of(floats, PLANE, plane, row))


@triton.jit(do_not_specialize=["num_rows", "plane"])
def _gradients(
    first, second, bias, other_bias, scale: "fp64", num_classes,  # noqa: F821
    stride_n, stride_v, other_n, other_v, stride_b, other_b,
    grad, floats, plane, out, other_out, out_n, out_v, other_out_n, other_out_v,
    num_rows, beta: "fp64", factor: "fp64",  # noqa: F821
    ONE_HEAD: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A block of ``factor`` times both gradients; each may take the place of what is read, or be None."""
    of = Pair(
        first, second, bias, other_bias, scale, num_classes, stride_n, stride_v, other_n, other_v, stride_b, other_b
    )
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    plane, beta = tl.cast(plane, tl.int64), of_dtype(beta, DTYPE)
    g_kl, g_reverse, g_js = _of(grad, KL, plane, row), _of(grad, REVERSE_KL, plane, row), _of(grad, JS, plane, row)
    g_overlap, g_lse, g_other_lse = (
        _of(grad, OVERLAP, plane, row), _of(grad, LSE, plane, row), _of(grad, OTHER_LSE, plane, row)
    )  # fmt: skip
    g_entropy, g_other_entropy = _of(grad, ENTROPY, plane, row), _of(grad, OTHER_ENTROPY, plane, row)
    active = (g_kl != 0) | (g_reverse != 0) | (g_js != 0) | (g_overlap != 0)
    active = active | (g_lse != 0) | (g_other_lse != 0) | (g_entropy != 0) | (g_other_entropy != 0)
    lse, other_lse = _of(floats, LSE, plane, row), _of(floats, OTHER_LSE, plane, row)

    z, y, d = uncapped_pair(of, row, column, ONE_HEAD, DTYPE)
    slope, other_slope = 1.0, 1.0
    if SOFTCAP is not None:
        slope, other_slope = capped_slope(z, SOFTCAP), capped_slope(y, SOFTCAP)
    v = capped_pair(z, y, d, SOFTCAP)
    log_p, log_q = tl.where(v.masked, 0, v.z - lse), tl.where(v.other_masked, 0, v.y - other_lse)
    p, q = tl.where(v.masked, 0, tl.exp(log_p)), tl.where(v.other_masked, 0, tl.exp(log_q))
    s = log_ratio(v, tl.load(floats + SHIFT * plane + row))
    near = tl.abs(s) < NEAR
    t = tl.where(near, s, 0)
    rest, other_rest = exp_rests(t)
    rise = tl.where(near, p * (t + rest), q - p)
    above = q_above(v, tl.load(floats + OTHER_LSE * plane + row) - tl.load(floats + LSE * plane + row))
    below = _of(floats, BELOW, plane, row)
    of_p = g_lse - _times(g_kl, s + _of(floats, KL, plane, row)) + _times(g_overlap, above - below)
    of_p -= _times(g_entropy, log_p + _of(floats, ENTROPY, plane, row))
    of_q = g_other_lse + _times(g_reverse, s - _of(floats, REVERSE_KL, plane, row))
    of_q += _times(g_overlap, (1 - above) - (_of(floats, OVERLAP, plane, row) - below))
    of_q -= _times(g_other_entropy, log_q + _of(floats, OTHER_ENTROPY, plane, row))
    if tl.max((g_js != 0).to(tl.int32)) > 0:  # which costs as much as everything else
        over_p, over_q = mixture_logs(s, beta)
        near_p, near_q = near_mixture_logs(t, rest, other_rest, beta)
        over_p, over_q = tl.where(near, near_p, over_p), tl.where(near, near_q, over_q)
        of_p -= _mixture(g_js * beta, over_p, floats, MIXTURE_KL, plane, row)
        of_q -= _mixture(g_js * (1 - beta), over_q, floats, OTHER_MIXTURE_KL, plane, row)
    mask = (rows < num_rows)[:, None] & (column < num_classes)[None, :]
    wide = tl.cast(column, tl.int64)[None, :]
    poisoned = lse != lse
    if out is not None:
        g = tl.where(v.masked, 0, p * of_p) - _times(g_reverse, rise)
        g = tl.where(v.masked, 0, scaled(g * slope, factor))
        g = tl.where(active, tl.where(poisoned, float("nan"), g), 0)
        tl.store(out + rows[:, None] * out_n + wide * out_v, g, mask)
    if other_out is not None:
        g = tl.where(v.other_masked, 0, q * of_q) + _times(g_kl, rise)
        g = tl.where(v.other_masked, 0, scaled(g * other_slope, factor))
        g = tl.where(active, tl.where(poisoned, float("nan"), g), 0)
        tl.store(other_out + rows[:, None] * other_out_n + wide * other_out_v, g, mask)


def gradients(
    config: Launch, rows: Rows, grad: Tensor, floats: Tensor, beta: float, out: Tensor | None,
    other_out: Tensor | None, factor: float = 1.0,
) -> None:  # fmt: skip
    """Fills ``out`` and ``other_out (n, V)`` where they are tensors; planes ``(12, n)`` with rows side by side."""
    n, v = rows.first.shape
    block_n, block_v = blocks_of(config, rows.first, rows.second)
    (out_n, out_v), (other_out_n, other_out_v) = ((0, 0) if t is None else t.stride() for t in (out, other_out))
    _gradients[(triton.cdiv(n, block_n), triton.cdiv(v, block_v))](
        grad=grad, floats=floats, plane=floats.stride(0), out=out, other_out=other_out, out_n=out_n, out_v=out_v,
        other_out_n=other_out_n, other_out_v=other_out_v, beta=beta, factor=factor, **rows.arguments,
        **(config.options | {"BLOCK_N": block_n, "BLOCK_V": block_v}),
    )  # fmt: skip
