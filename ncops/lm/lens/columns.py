"""The numbers of a layer beside those of the last one, token by token, with as few products with the head as they take.

The KL divergence is the Bregman divergence of the log-sum-exp: where logits are linear in the state,

    KL(p_last || p_layer) = lse(y) - lse(x) - pull . (y - x),     pull = the gradient of lse at x = scale * E_p[w],

so that one product per layer gives all columns, and two more for x the pull. A soft cap bends the logits: there, and
for the other divergences, :func:`ncops.linear_divergence` makes two products more per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import LinearStats, linear_divergence, linear_stats
from ..head import Head

HALF_ROWS = 8192
"""Rows of a head in half precision that are copied to float32 at a time."""

DIVERGENCES = ("reverse_kl", "js", "overlap")


class Columns(NamedTuple):
    """What is known of each token at a layer; all ``(rows,)``, or ``(layers, rows)`` of several.

    Attributes:
        entropy: of the layer's distribution over the vocabulary, in nats.
        kl: ``KL(p_last || p_layer)`` in nats; at the last layer 0.
        agree: bool, the layer's most likely token is the last layer's.
        best: that token, int64; best_logprob: its log-probability.
        rank: how many tokens the layer finds more likely than the true next one: 0 if it is the first, int64; -1 where
            there is none.
        logprob: log-probability of the true next token; NaN where there is none.
        reverse_kl, js, overlap: ``KL(p_layer || p_last)``, their Jensen-Shannon divergence, ``sum min``; None unless
            asked for.
    """

    entropy: Tensor
    kl: Tensor
    agree: Tensor
    best: Tensor
    best_logprob: Tensor
    rank: Tensor
    logprob: Tensor
    reverse_kl: Tensor | None = None
    js: Tensor | None = None
    overlap: Tensor | None = None


class Reference:
    """The last layer's distributions, which those of the others are held against.

    Args:
        x: ``(rows, D)``, what enters the head. target: ``(rows,)`` true next tokens, or ``ignore``.
        divergences: form the other divergences too, and the KL with all the digits that it has.
    """

    def __init__(self, x: Tensor, head: Head, target: Tensor, ignore: int, divergences: bool = False) -> None:
        with torch.inference_mode(False):  # what is made there cannot be kept for a gradient
            self._target = target.clone()
        self._x, self._head, self._ignore = x, head, ignore
        self._divergences = divergences
        linear = head.softcap is None and not divergences
        if linear and x.dtype in (torch.float32, torch.float64):
            self._own, self._pull = pulled(x, self._stats)
        else:
            self._own, self._pull = self._stats(x), pull(x, head) if linear else None

    def columns(self, y: Tensor) -> Columns:
        """Of states as they would enter the head, ``(rows, D)`` or ``(layers, rows, D)``."""
        stats = self._stats(y)
        if self._pull is not None:
            moved = ((y.to(self._pull) - self._x.to(self._pull)) * self._pull).sum(-1)
            # What rounding leaves below 0 is 0; NaN stays.
            return self._assembled(stats, (stats.lse - self._own.lse - moved).clamp_min(0))
        head, x = self._head, self._x.expand_as(y)
        d = linear_divergence(x, head.weight, y, bias=head.bias, scale=head.scale, softcap=head.softcap)
        others = {name: getattr(d, name) for name in DIVERGENCES} if self._divergences else {}
        return self._assembled(stats, d.kl, **others)

    def own(self) -> Columns:
        """Of the last layer itself."""
        zero = self._own.entropy * 0  # NaN where it is
        return self._assembled(
            self._own, zero, **({"reverse_kl": zero, "js": zero, "overlap": zero + 1} if self._divergences else {})
        )

    def _stats(self, y: Tensor) -> LinearStats:
        head, target = self._head, self._target.expand(y.shape[:-1])
        return linear_stats(
            y, head.weight, head.bias, target, scale=head.scale, softcap=head.softcap, ignore_index=self._ignore
        )

    def _assembled(self, stats: LinearStats, kl: Tensor, **others: Tensor) -> Columns:
        agree = (stats.argmax == self._own.argmax) & (stats.argmax >= 0)
        logprob = (-stats.nll).masked_fill(~stats.valid, torch.nan)
        return Columns(stats.entropy, kl, agree, stats.argmax, -stats.gap, stats.target_rank, logprob, **others)


def pulled(x: Tensor, run: Callable[[Tensor], LinearStats]) -> tuple[LinearStats, Tensor]:
    """What ``run`` finds in rows, and the gradient of the log-sum-exp by them: scale times the expected row."""
    with torch.inference_mode(False), torch.enable_grad():
        # linear_loss would take one product less, of which the columns need one, and up to 88 MB for its tiles.
        leaf = x.clone().requires_grad_()
        stats = run(leaf)
        (gradient,) = torch.autograd.grad(stats.lse.sum(), leaf)
    return LinearStats(*(value.detach() if isinstance(value, Tensor) else value for value in stats)), gradient


def pull(x: Tensor, head: Head) -> Tensor:
    """That gradient (rows, D) in float32 of a head in half precision, which is taken in parts, for the gradient has the
    dtype of the state: of two parts of the vocabulary it is the mean of theirs, by their masses.
    """
    total = gradient = None
    for start in range(0, head.weight.shape[0], HALF_ROWS):
        weight = head.weight[start : start + HALF_ROWS].float()
        bias = None if head.bias is None else head.bias[start : start + HALF_ROWS].float()
        stats, part = pulled(x.float(), partial(linear_stats, weight=weight, bias=bias, scale=head.scale))
        if total is None:
            total, gradient = stats.lse, part
        else:
            both = torch.logaddexp(total, stats.lse)
            gradient = gradient * (total - both).exp()[:, None] + part * (stats.lse - both).exp()[:, None]
            total = both
    return gradient
