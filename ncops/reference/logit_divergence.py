"""Divergences between the distributions of two blocks of logits, and their gradients, in plain PyTorch.

With z and y the logits, p and q their softmax, d = y - z and m = sum p d, KL(p || q) = log1p(sum p f(d - m)) of
f(t) = e^t - 1 - t >= 0; with s = log q - log p = d - (m + KL), KL(p || mixture) = sum p h((1 - beta) (e^s - 1)) and
KL(q || mixture) = sum q h(beta (e^-s - 1)) of h(w) = w - log1p(w) >= 0. So nothing cancels where the two are close.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..backends.planes import DIVERGENCE_PLANES, DIVERGENCE_RATIOS, DIVERGENCE_SHARE_FLOATS
from ._blocks import row_blocks
from .softcap import capped, uncapped_gradient

INF, NAN = float("inf"), float("nan")
NEAR = 0.5  # series below it; above, nothing cancels by more than a factor of ten


def logit_divergence(
    logits: Tensor, other_logits: Tensor, scale: float, softcap: float, beta: float
) -> tuple[Tensor, Tensor]:
    """``(floats, agree)``: the planes of ``backends/planes.py``, and whether the argmax is the same."""
    blocks = []
    for here in row_blocks(*logits.shape):
        blocks.append(row_divergences(*capped_pair(*_pair(logits[here], other_logits[here], scale), softcap), beta))
    return torch.cat([b[0] for b in blocks], 1), torch.cat([b[1] for b in blocks])


def logit_divergence_backward(
    grad: Tensor, floats: Tensor, logits: Tensor, other_logits: Tensor, scale: float, softcap: float, beta: float,
    need_logits: bool, need_other_logits: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the stored logits; size 0 where not needed."""
    sources, needs = (logits, other_logits), (need_logits, need_other_logits)
    outs = [t.new_empty(t.shape if need else 0) for t, need in zip(sources, needs, strict=True)]
    for here in row_blocks(*logits.shape):
        pair = _pair(logits[here], other_logits[here], scale)
        found = stored_gradients(*pair, softcap, grad[:, here], floats[:, here], beta)
        for out, need, gradient in zip(outs, needs, found, strict=True):
            if need:
                out[here] = scale * gradient
    return tuple(outs)


def _pair(logits: Tensor, other_logits: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    z, y = (t.to(compute_dtype(t.dtype)) for t in (logits, other_logits))
    return scale * z, scale * y, scale * (y - z)


def capped_pair(z: Tensor, y: Tensor, d: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Capped logits and their difference, which keeps the digits of d = y - z:
    tanh b - tanh a = tanh(b - a) (1 - tanh a tanh b)."""
    if softcap:
        z, y = capped(z, softcap), capped(y, softcap)
        d = d.where(d.isinf(), softcap * (d / softcap).tanh() * (1 - (z / softcap) * (y / softcap)))
    return z, y, d


def _exp_rest(t: Tensor) -> Tensor:
    """``e^t - 1 - t`` for small t."""
    series = torch.zeros_like(t)
    for k in range(15, 1, -1):
        series = series * t + 1 / math.factorial(k)
    return series * t * t


def _log_rest(w: Tensor) -> Tensor:
    """``w - log(1 + w)`` for small w: log(1 + w) = 2 artanh(u) with u = w / (2 + w), and w - 2 u = w u."""
    u = w / (2 + w)
    square, series = u * u, torch.zeros_like(w)
    for k in range(27, 1, -2):
        series = series * square + 2 / k
    return u * (w - square * series)


def _sum(values: Tensor) -> Tensor:
    return values.sum(1, dtype=torch.float64)


class Softmax:
    """Of a block of logits ``z``: ``p`` and ``log p``, 0 where masked, and the log-sum-exp in float64.

    Of some of the classes where the log-sum-exp ``lse`` of all is given.
    """

    def __init__(self, z: Tensor, lse: Tensor | None = None):
        top = z.amax(1, keepdim=True) if lse is None else lse[:, None].to(z.dtype)
        self.z, self.masked, self.max = z, z == -INF, top[:, 0].double()
        top = top.masked_fill(top == -INF, 0)
        base = top[:, 0].double()
        gap = _sum((z - top).exp()).log() if lse is None else lse - base
        self.lse = base + gap
        self.log_p = ((z - top) - gap[:, None].to(z.dtype)).masked_fill(self.masked, 0)
        self.p = self.log_p.exp().masked_fill(self.masked, 0)

    def argmax(self) -> Tensor:
        index = torch.arange(self.z.shape[1], device=self.z.device)
        return index.where(self.z == self.max[:, None], self.z.shape[1]).amin(1)

    def entropy(self) -> Tensor:
        return -_sum(self.p * self.log_p)


def _kl(p: Softmax, q: Softmax, d: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q), infinite where q masks a class of p, and m = sum p d over the classes of both; d is 0 elsewhere."""
    mean = _sum(p.p * d)
    t = d - mean[:, None].to(d.dtype)
    power = (q.z - (p.lse + mean)[:, None].to(d.dtype)).exp()  # p e^t, also where p is 0
    terms = torch.where(t.abs() < NEAR, p.p * _exp_rest(t), (power - p.p * (1 + t)).clamp(min=0))
    terms = terms.where(~p.masked, power).where(~q.masked, 0)
    direct = q.lse - p.lse - mean
    kl = direct.where(direct > NEAR, _sum(terms).log1p())
    return kl.masked_fill((q.masked & ~p.masked).any(1), INF), mean


def row_divergences(z: Tensor, y: Tensor, d: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The planes of one block of logits that are already scaled, capped and in the compute dtype."""
    p, q = Softmax(z), Softmax(y)
    columns = kl_columns(p, q, d)
    columns |= ratio_columns(p, q, d, columns["shift"], beta)
    floats, poisoned = divergence_planes(columns, beta, z.dtype)
    return floats, (p.argmax() == q.argmax()) & ~poisoned


def divergence_share(z: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The planes of ``linear_divergence_share``, of one block of such logits of some of the classes."""
    p, q = Softmax(z), Softmax(y)
    columns = kl_columns(p, q, d) | {"max": p.max, "other_max": q.max}
    floats = torch.stack([columns[name] for name in DIVERGENCE_SHARE_FLOATS])
    poisoned = p.lse.isnan() | q.lse.isnan()
    return floats.masked_fill(poisoned, NAN), torch.stack([p.argmax(), q.argmax()])


def divergence_ratios(z: Tensor, y: Tensor, d: Tensor, whole: Tensor, beta: float) -> Tensor:
    """``(len(DIVERGENCE_RATIOS), n)`` of these classes, whose ``lse``, ``other_lse`` and ``shift`` with all others are
    ``whole (3, n)`` in float64."""
    lse, other_lse, shift = whole.unbind()
    columns = ratio_columns(Softmax(z, lse), Softmax(y, other_lse), d, shift, beta)
    return torch.stack([columns[name] for name in DIVERGENCE_RATIOS])


def kl_columns(p: Softmax, q: Softmax, d: Tensor) -> dict[str, Tensor]:
    """What two passes over the difference ``d`` of the logits give, in float64."""
    both = d.where(~(p.masked | q.masked), 0)
    kl, mean = _kl(p, q, both)
    reverse, other_mean = _kl(q, p, -both)
    shift = (mean + kl).where(kl.isfinite(), (-other_mean - reverse).where(reverse.isfinite(), q.lse - p.lse))
    return {
        "kl": kl, "reverse_kl": reverse, "entropy": p.entropy(), "other_entropy": q.entropy(), "lse": p.lse,
        "other_lse": q.lse, "shift": shift,
    }  # fmt: skip


def ratio_columns(p: Softmax, q: Softmax, d: Tensor, shift: Tensor, beta: float) -> dict[str, Tensor]:
    """Sums over the classes of p and q of what needs the log of the ratio of the two, in float64."""
    s = _log_ratio(d, p.masked & q.masked, shift)
    other_below = (s < 0).to(s.dtype) + 0.5 * (s == 0)
    mixture, other_mixture = _mixture_terms(p, q, s, beta)
    below = _sum(p.p * (1 - other_below))
    overlap = below + _sum(q.p * other_below)
    return {
        "mixture_kl": _sum(mixture), "other_mixture_kl": _sum(other_mixture), "below": below, "overlap": overlap
    }  # fmt: skip


def divergence_planes(columns: dict[str, Tensor], beta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The planes of ``backends/planes.py`` in ``dtype``, and which rows are poisoned, or have nothing but masks."""
    js = beta * columns["mixture_kl"] + (1 - beta) * columns["other_mixture_kl"]
    lse, other_lse = columns["lse"], columns["other_lse"]
    poisoned = (lse - other_lse).isnan() | lse.isinf() | other_lse.isinf()
    floats = torch.stack([js if name == "js" else columns[name] for name in DIVERGENCE_PLANES])
    return floats.masked_fill(poisoned, NAN).to(dtype), poisoned


def _log_ratio(d: Tensor, masked: Tensor, shift: Tensor) -> Tensor:
    """s = log q - log p, 0 where both are 0."""
    return (d - shift[:, None].to(d.dtype)).masked_fill(masked, 0)


def _mixture_logs(s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(m / p) and log(m / q) of m = beta p + (1 - beta) q, for s that is not small."""
    power = (-s.abs()).exp()
    low, high = (beta + (1 - beta) * power).log(), ((1 - beta) + beta * power).log()
    return low.where(s <= 0, s + high), (low - s).where(s <= 0, high)


def _mixture_terms(p: Softmax, q: Softmax, s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    near = s.abs() < NEAR
    t = s.where(near, 0)
    over_p, over_q = _mixture_logs(s, beta)
    over_p, over_q = over_p.masked_fill(p.masked, 0), over_q.masked_fill(q.masked, 0)
    far = ((1 - beta) * (q.p - p.p) - p.p * over_p).clamp(min=0)
    other_far = (beta * (p.p - q.p) - q.p * over_q).clamp(min=0)
    return (
        (p.p * _log_rest((1 - beta) * (t + _exp_rest(t)))).where(near, far),
        (q.p * _log_rest(beta * (_exp_rest(-t) - t))).where(near, other_far),
    )


def _times(gradient: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return torch.where(gradient == 0, 0, gradient * value)


def divergence_gradients(
    z: Tensor, y: Tensor, d: Tensor, grad: Tensor, floats: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Gradients by the capped logits of one block; a row without gradient gets zeros, whatever it holds."""
    active = (grad != 0).any(0)
    g = dict(zip(DIVERGENCE_PLANES, grad[:, :, None].unbind(), strict=True))
    f = dict(zip(DIVERGENCE_PLANES, floats[:, :, None].unbind(), strict=True))
    masked, other_masked = z == -INF, y == -INF
    log_p, log_q = (z - f["lse"]).masked_fill(masked, 0), (y - f["other_lse"]).masked_fill(other_masked, 0)
    p, q = log_p.exp().masked_fill(masked, 0), log_q.exp().masked_fill(other_masked, 0)
    s = _log_ratio(d, masked & other_masked, floats[DIVERGENCE_PLANES.index("shift")])
    near = s.abs() < NEAR
    t = s.where(near, 0)
    rise = (p * (t + _exp_rest(t))).where(near, q - p)
    over_p, over_q = _mixture_logs(s, beta)
    over_p = torch.log1p((1 - beta) * (t + _exp_rest(t))).where(near, over_p)
    over_q = torch.log1p(beta * (_exp_rest(-t) - t)).where(near, over_q)
    other_below = (s < 0).to(s.dtype) + 0.5 * (s == 0)

    of_p = _times(-g["kl"], s + f["kl"]) - _times(beta * g["js"], over_p + f["mixture_kl"]) + g["lse"]
    of_p = of_p + _times(g["overlap"], 1 - other_below - f["below"]) - _times(g["entropy"], log_p + f["entropy"])
    of_q = _times(g["reverse_kl"], s - f["reverse_kl"]) - _times((1 - beta) * g["js"], over_q + f["other_mixture_kl"])
    of_q = of_q + _times(g["overlap"], other_below - (f["overlap"] - f["below"])) + g["other_lse"]
    of_q = of_q - _times(g["other_entropy"], log_q + f["other_entropy"])
    dz = (p * of_p).masked_fill(masked, 0) - _times(g["reverse_kl"], rise)
    dy = (q * of_q).masked_fill(other_masked, 0) + _times(g["kl"], rise)
    poisoned = f["lse"].isnan()
    return tuple(t.masked_fill(poisoned, NAN).masked_fill(~active[:, None], 0) for t in (dz, dy))


def stored_gradients(
    z: Tensor, y: Tensor, d: Tensor, softcap: float, grad: Tensor, floats: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Gradients by the logits before the cap."""
    found = divergence_gradients(*capped_pair(z, y, d, softcap), grad, floats, beta)
    return tuple(uncapped_gradient(t, stored, softcap) for t, stored in zip(found, (z, y), strict=True))
