"""Thirteen columns per row of stored logits, and their gradient, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks

INF = float("inf")
NAN = float("nan")
UNDERFLOW = -1000.0  # exp of it is 0 in every dtype, and no gradient takes it to infinity: 0 * inf is NaN


def logit_stats(logits: Tensor, target: Tensor | None, scale: float, ignore_index: int) -> tuple[Tensor, ...]:
    """``(lse, gap, max, second, target_logit, nll, entropy, mean, var, argmax, second_index, target_rank, valid)``."""
    dtype = compute_dtype(logits.dtype)
    blocks = []
    for rows in row_blocks(*logits.shape):
        z = scale * logits[rows].to(dtype)
        blocks.append(row_columns(z, None if target is None else target[rows], ignore_index))
    return tuple(torch.cat(column) for column in zip(*blocks, strict=True))


def row_columns(
    z: Tensor, target: Tensor | None, ignore_index: int, target_logit: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The columns of one block of logits ``z (n, V)`` that are already scaled and in the compute dtype.

    ``target_logit (n)``: the logits of the targets, where they are not among ``z``.
    """
    n, num_classes = z.shape
    argmax = z.argmax(1, keepdim=True)  # the lowest index among equals; a NaN counts as the largest
    peak = z.gather(1, argmax)
    below = z - peak
    others = z.scatter(1, argmax, -INF)
    second_index = others.argmax(1, keepdim=True)
    second = others.gather(1, second_index)
    if num_classes == 1:
        second_index = torch.full_like(second_index, -1)
    else:  # when all others are -inf, the removed argmax must not be found again
        second_index = torch.where(second == -INF, (argmax == 0).long(), second_index)

    # The argmax term is 1 and stays out of the sums, so that in the collapsed regime nothing is added to 1 and lost.
    terms = others.sub_(peak).exp_()
    rest = terms.sum(1, dtype=torch.float64)
    gap = rest.log1p()
    spread = (terms * below.clamp(min=torch.finfo(z.dtype).min)).sum(1, dtype=torch.float64)  # 0 * -inf is 0
    entropy = gap - spread / (1 + rest)
    drop = below.mean(1, dtype=torch.float64)
    var = (below - drop.to(z.dtype)[:, None]).square().mean(1, dtype=torch.float64)

    peak, argmax = peak.squeeze(1), argmax.squeeze(1)
    empty = peak == -INF
    lse = torch.where(empty, -INF, peak + gap)
    mean = torch.where(empty, -INF, peak + drop)
    floats = [lse, gap, peak, second.squeeze(1)]
    poisoned = peak.isnan() | (peak == INF)
    if target is None:
        none = z.new_empty(0)
        target_columns = [none, none]
        rank, valid = argmax.new_empty(0), poisoned.new_empty(0)
    else:
        valid = target != ignore_index
        inside = valid & (target >= 0) & (target < num_classes)
        t = z.gather(1, target.where(inside, 0)[:, None]) if target_logit is None else target_logit[:, None]
        rank = (z > t).sum(1).masked_fill(~inside | poisoned, -1)
        t = t.squeeze(1)
        target_columns = [
            # An ignored row is 0 even where its logits are NaN; a label out of range (not on CPU) is NaN.
            torch.where(inside & ~poisoned, value, NAN).masked_fill(~valid, 0)
            for value in (t, (peak - t) + gap)
        ]
    floats = [torch.where(poisoned, NAN, value).to(z.dtype) for value in (*floats, entropy, mean, var)]
    target_columns = [value.to(z.dtype) for value in target_columns]
    integers = [argmax.masked_fill(poisoned, -1), second_index.squeeze(1).masked_fill(poisoned, -1), rank, valid]
    return (*floats[:4], *target_columns, *floats[4:], *integers)


def logit_stats_backward(
    g_lse: Tensor, g_gap: Tensor, g_max: Tensor, g_second: Tensor, g_target_logit: Tensor, g_nll: Tensor,
    g_entropy: Tensor, g_mean: Tensor, g_var: Tensor,
    gap: Tensor, max: Tensor, entropy: Tensor, mean: Tensor, argmax: Tensor, second_index: Tensor,
    logits: Tensor, target: Tensor | None, scale: float, ignore_index: int,
) -> Tensor:  # fmt: skip
    """Gradient of the stored logits."""
    grads = (g_lse, g_gap, g_max, g_second, g_target_logit, g_nll, g_entropy, g_mean, g_var)
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    folded = fold(grads, argmax, target, logits.shape[1], ignore_index)
    saved = (gap, max, entropy, mean, argmax, second_index)
    for rows in row_blocks(*logits.shape):
        z = scale * logits[rows].to(gap.dtype)
        grad[rows] = scale * row_gradient(z, rows, folded, saved)
    return grad


def _times(gradient: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return torch.where(gradient == 0, 0, gradient * value)


def fold(
    grads: tuple[Tensor, ...], argmax: Tensor, target: Tensor | None, num_classes: int, ignore_index: int
) -> tuple[Tensor, ...]:
    """Per-row gradients with those of ignored rows' target columns dropped, the target index, and who is active."""
    g_lse, g_gap, g_max, g_second, g_t, g_nll, g_entropy, g_mean, g_var = grads
    if target is None:
        g_t = g_nll = torch.zeros_like(g_lse)
        target = torch.full_like(argmax, -1)
    else:
        inside = (target != ignore_index) & (target >= 0) & (target < num_classes)
        g_t, g_nll, target = g_t.where(inside, 0), g_nll.where(inside, 0), target.where(inside, -1)
    folded = (g_lse, g_gap, g_max, g_second, g_t, g_nll, g_entropy, g_mean, g_var)
    active = torch.stack([g != 0 for g in folded]).any(0)
    return (*folded, target, active)


def row_gradient(z: Tensor, rows: slice, folded: tuple[Tensor, ...], saved: tuple[Tensor, ...]) -> Tensor:
    """Gradient of one block of logits ``z (n, V)``; a row without gradient gets zeros, whatever it holds.

    An argmax of V or more says that the largest logit is not among ``z``: in another shard of the classes.
    """
    g_lse, g_gap, g_max, g_second, g_t, g_nll, g_entropy, g_mean, g_var, target, active = (f[rows] for f in folded)
    gap, peak, entropy, mean, argmax, second_index = (s[rows] for s in saved)
    poisoned, elsewhere = argmax < 0, argmax >= z.shape[1]
    at = argmax.where(~elsewhere, 0).clamp(min=0)[:, None]
    hit = target == argmax
    below = (z - peak[:, None]).clamp_(min=UNDERFLOW)
    share = (-gap).exp()

    # Whole-block passes that nobody's gradient needs are left out: they cost more than the products.
    total = g_lse + g_gap + g_nll
    slope = total[:, None]
    if g_entropy.any():
        slope = slope - _times(g_entropy[:, None], below + (entropy - gap)[:, None])
    grad = below.exp_().mul_(share[:, None] * slope)
    soft = (total != 0) | (g_entropy != 0)
    if not soft.all():
        grad.masked_fill_(~soft[:, None], 0)

    # In the argmax column p - 1 is expm1(-gap): at margin 30 the float32 subtraction gives 0, the truth is -9e-14.
    # The terms that multiply 1 are collected by hand, so that those which cancel never meet in floating point.
    lost = torch.expm1(-gap)
    in_peak = torch.where(
        hit,
        _times(total, lost) + (g_lse + g_t + g_max),
        _times(g_gap, lost) + _times(g_lse + g_nll, share) + g_max,
    )
    in_peak = in_peak - _times(g_entropy, share * (entropy - gap))
    grad.scatter_(1, at, torch.where(elsewhere, grad.gather(1, at)[:, 0], in_peak)[:, None])
    away = (target >= 0) & ~hit
    grad.scatter_add_(1, target.clamp(min=0)[:, None], (g_t - g_nll).where(away, 0)[:, None])
    grad.scatter_add_(1, second_index.clamp(min=0)[:, None], g_second.where(second_index >= 0, 0)[:, None])
    if g_var.any():
        grad += _times((2 / z.shape[1]) * g_var[:, None], z - mean[:, None])
    if g_mean.any():
        grad += g_mean[:, None] / z.shape[1]
    if poisoned.any():
        grad.masked_fill_(poisoned[:, None], NAN)
    return grad if active.all() else grad.masked_fill_(~active[:, None], 0)
