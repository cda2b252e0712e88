"""The k largest logits of all classes, from those of each shard, and this shard's gradients.

Free of communication, so that every backend can be tested with shards in one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.linear_topk import topk_gradients

INF = float("inf")


def local_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, start: int, scale: float, softcap: float, tf32: bool
) -> Tensor:
    """``(2 k + 1, N)`` float64: values, classes of all (exact below 2^53), and what the log-sum-exp is above the
    largest. Where the shard has fewer classes they are filled up with -inf and a class beyond all."""
    n, own = x.shape[0], min(k, weight.shape[0])
    packed = torch.full((2 * k + 1, n), -INF, dtype=torch.float64, device=x.device)
    packed[k : 2 * k] = INF
    packed[2 * k] = 0
    if own:
        values, logprob, _, indices = torch.ops.ncops.linear_topk(x, weight, bias, own, scale, softcap, tf32)
        packed[:own] = values.T
        packed[k : k + own] = (indices + start).T
        packed[2 * k] = -logprob[:, 0]
    return packed


def merge_topk(every: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(values, logprob (N, k), lse (N,), indices (N, k))`` of all classes from :func:`local_topk` of every rank."""
    tops, gaps = every[:, 0], every[:, 2 * k]
    poisoned = tops.isnan().any(0)
    index, order = every[:, k : 2 * k].flatten(0, 1).sort(dim=0)  # ranks need not be in the order of their classes
    values, best = every[:, :k].flatten(0, 1).gather(0, order).sort(dim=0, descending=True, stable=True)
    values, index = values[:k], index.gather(0, best)[:k]
    top = values[0]
    winner = (tops == top).to(torch.int8).argmax(0)
    own = torch.arange(len(tops), device=tops.device)[:, None] == winner
    terms = (tops - top).exp() * (gaps.expm1() + (~own).double())
    gap = terms.where(tops > -INF, 0.0).sum(0).log1p().masked_fill(top == -INF, torch.nan)
    lse = (top + gap).masked_fill(top == -INF, -INF).masked_fill(poisoned, torch.nan)
    logprob = ((values - top) - gap).masked_fill(poisoned, torch.nan)
    values, index = values.masked_fill(poisoned, torch.nan), index.masked_fill(poisoned, -1)
    return values.T.to(dtype), logprob.T.to(dtype), lse.to(dtype), index.T.long()


def shard_gradients(
    gradients: tuple[Tensor, Tensor, Tensor], found: tuple[Tensor, Tensor, Tensor, Tensor], x: Tensor, weight: Tensor,
    bias: Tensor | None, start: int, options: tuple[float, float, bool], needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """This shard's part of the gradient of x, and those of its classes."""
    if not weight.shape[0]:
        return torch.zeros_like(x), torch.zeros_like(weight), x.new_zeros(0)
    return topk_gradients(*gradients, *found, x, weight, bias, start, *options, *needs)
