"""The gradient by a row's logits, from the gradients by its columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.planes import FLOATS, INDICES

NAN = float("nan")
UNDERFLOW = -1000.0  # exp of it is 0 in every dtype, and no gradient takes it to infinity: 0 * inf is NaN


class Rows(NamedTuple):
    """Per row: the gradients by the float columns, the columns and indices themselves, the target (-1 for none), and
    whether any of those gradients is not zero."""

    grad: dict[str, Tensor]
    floats: dict[str, Tensor]
    indices: dict[str, Tensor]
    target: Tensor
    active: Tensor


def rows_of(
    here: slice, grad: Tensor, floats: Tensor, indices: Tensor, target: Tensor | None, num_classes: int,
    ignore_index: int,
) -> Rows:  # fmt: skip
    """These rows of the planes; gradients of the target columns of rows without a target are dropped."""
    g = dict(zip(FLOATS, grad[:, here].unbind(), strict=True))
    f = dict(zip(FLOATS, floats[:, here].unbind(), strict=True))
    named = dict(zip(INDICES, indices[:, here].unbind(), strict=True))
    target = torch.full_like(named["argmax"], -1) if target is None else target[here]
    inside = (target != ignore_index) & (target >= 0) & (target < num_classes)
    target = target.where(inside, -1)
    for name in ("target_logit", "nll"):
        g[name] = g[name].where(inside, 0)
    active = torch.stack([plane != 0 for plane in g.values()]).any(0)
    return Rows(g, f, named, target, active)


def _times(gradient: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return torch.where(gradient == 0, 0, gradient * value)


def _not_squared(rows: Rows) -> Tensor:
    """``rest - squared`` of csrc/logit_share.h, from the columns: p_max - sum p^2 is p_max^2 of it.

    ``squared`` is sum_squared_prob / p_max^2 - 1, which near collapse has no digit left; it lies between the square of
    the second's term and that term times ``rest``.
    """
    f = rows.floats
    rest, term = f["gap"].double().expm1(), (f["second"].double() - f["max"]).exp()
    squared = f["sum_squared_prob"].double() * (1 + rest).square() - 1
    return rest - torch.minimum(torch.maximum(squared, term.square()), term * rest)


def logit_gradient(z: Tensor, rows: Rows) -> Tensor:
    """Gradient of one block of logits ``z (n, V)``; a row without gradient gets zeros, whatever it holds.

    An argmax of V or more says that the largest logit is not among ``z``: in another shard of the classes.
    """
    g, gap, argmax, target = rows.grad, rows.floats["gap"], rows.indices["argmax"], rows.target
    second_index, mean = rows.indices["second_index"], rows.floats["mean"]
    poisoned, elsewhere = argmax < 0, argmax >= z.shape[1]
    at = argmax.where(~elsewhere, 0).clamp(min=0)[:, None]
    hit = target == argmax
    below = (z - rows.floats["max"][:, None]).clamp_(min=UNDERFLOW)
    share, offset = (-gap).exp(), rows.floats["entropy"] - gap

    # Whole-block passes that nobody's gradient needs are left out: they cost more than the products.
    total, twice = g["lse"] + g["gap"] + g["nll"], 2 * g["sum_squared_prob"]
    soft = (total - _times(twice, rows.floats["sum_squared_prob"]))[:, None]
    if g["entropy"].any():
        soft = soft - _times(g["entropy"][:, None], below + offset[:, None])
    grad = below.exp_()
    if twice.any():
        soft = soft + _times(twice[:, None], share[:, None] * grad)
    grad.mul_(share[:, None] * soft)
    wanted = (total != 0) | (g["entropy"] != 0) | (twice != 0)
    if not wanted.all():
        grad.masked_fill_(~wanted[:, None], 0)

    # In the argmax column p - 1 is expm1(-gap): at margin 30 the float32 subtraction gives 0, the truth is -9e-14.
    # The terms that multiply 1 are collected by hand, so that those which cancel never meet in floating point.
    lost = torch.expm1(-gap)
    at_argmax = torch.where(
        hit,
        _times(total, lost) + (g["lse"] + g["target_logit"] + g["max"]),
        _times(g["gap"], lost) + _times(g["lse"] + g["nll"], share) + g["max"],
    )
    at_argmax = at_argmax - _times(g["entropy"], share * offset)
    at_argmax = at_argmax + _times(twice, share**3 * _not_squared(rows).to(share.dtype))
    grad.scatter_(1, at, torch.where(elsewhere, grad.gather(1, at)[:, 0], at_argmax)[:, None])
    at_target = (g["target_logit"] - g["nll"]).where((target >= 0) & ~hit, 0)
    grad.scatter_add_(1, target.clamp(min=0)[:, None], at_target[:, None])
    grad.scatter_add_(1, second_index.clamp(min=0)[:, None], g["second"].where(second_index >= 0, 0)[:, None])
    if g["var"].any():
        grad += _times((2 / z.shape[1]) * g["var"][:, None], z - mean[:, None])
    if g["mean"].any():
        grad += g["mean"][:, None] / z.shape[1]
    if poisoned.any():
        grad.masked_fill_(poisoned[:, None], NAN)
    return grad if rows.active.all() else grad.masked_fill_(~rows.active[:, None], 0)
