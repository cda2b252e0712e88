"""Divergences of the distributions over all classes, from what each shard has of them, and this shard's gradients.

Free of communication, so that every backend can be tested with shards in one process.

The divergence of the whole is that of the shards' masses P and Q, as if a shard were a class whose logits are the
log-sum-exps of its own, and the mean under P of those inside the shards: KL = KL(P || Q) + sum P KL(p_r || q_r), terms
that are never negative. What the mixture of both needs is summed by a second sweep, which knows the normalisers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.planes import DIVERGENCE_RATIOS, DIVERGENCE_SHARE_FLOATS, DIVERGENCE_SHARE_INDICES
from ..reference.logit_divergence import Softmax, divergence_planes, kl_columns

INF = float("inf")
SHARE = (*DIVERGENCE_SHARE_FLOATS, *DIVERGENCE_SHARE_INDICES)
"""What is exchanged after the first sweep; after the second it is ``DIVERGENCE_RATIOS``."""

Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""x, weight, other, other_weight, bias, other_bias: rows, and the classes of this shard."""
Options = tuple[float, float, float, bool]
"""scale, softcap, beta, allow_tf32."""


def local_share(tensors: Tensors, start: int, options: Options) -> Tensor:
    """``(len(SHARE), N)`` float64 of these classes by themselves; indices are those of all (exact below 2^53)."""
    x, weight = tensors[:2]
    if not weight.shape[0]:
        nothing = torch.zeros((len(SHARE), x.shape[0]), dtype=torch.float64, device=x.device)
        for name in ("lse", "other_lse", "max", "other_max"):
            nothing[SHARE.index(name)] = -INF
        return nothing
    scale, softcap, _, tf32 = options
    floats, indices = torch.ops.ncops.linear_divergence_share(*tensors, scale, softcap, tf32)
    return torch.cat([floats, (indices + start).double()])


def merge_shares(every: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Columns of all classes by name, and whether both sides agree, from ``every (shards, len(SHARE), N)``."""
    of = {name: part.T for name, part in zip(SHARE, every.unbind(1), strict=True)}
    p, q = Softmax(of["lse"]), Softmax(of["other_lse"])
    columns = kl_columns(p, q, of["shift"])
    for name, side in (("kl", p), ("reverse_kl", q), ("entropy", p), ("other_entropy", q)):
        inside = of[name].where(~side.masked, 0)
        columns[name] = columns[name] + (side.p * inside).masked_fill(inside == INF, INF).sum(1)
    first, second = (
        of[at].where(of[top] == of[top].amax(1, keepdim=True), INF).amin(1)
        for top, at in (("max", "argmax"), ("other_max", "other_argmax"))
    )
    return columns, first == second


def local_ratios(tensors: Tensors, columns: dict[str, Tensor], options: Options) -> Tensor:
    """``(len(DIVERGENCE_RATIOS), N)`` float64 of these classes, as part of all, which have these columns."""
    x, weight = tensors[:2]
    if not weight.shape[0]:
        return torch.zeros((len(DIVERGENCE_RATIOS), x.shape[0]), dtype=torch.float64, device=x.device)
    whole = torch.stack([columns[name] for name in ("lse", "other_lse", "shift")])
    return torch.ops.ncops.linear_divergence_ratios(*tensors, whole, *options)


def finish(
    columns: dict[str, Tensor], agree: Tensor, every: Tensor, beta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The op's planes and whether both agree, from ``every (shards, len(DIVERGENCE_RATIOS), N)``."""
    sums = dict(zip(DIVERGENCE_RATIOS, sum(every.unbind()).unbind(), strict=True))  # in the order of the ranks
    floats, poisoned = divergence_planes(columns | sums, beta, dtype)
    return floats, agree & ~poisoned


def shard_gradients(
    grad: Tensor, floats: Tensor, tensors: Tensors, options: Options, needs: list[bool]
) -> tuple[Tensor, ...]:
    """This shard's part of the gradients of both rows, and all of those of its classifiers, as in ``tensors``.

    ``grad``: by the planes over all classes, ``floats``.
    """
    if not tensors[1].shape[0]:
        x = tensors[0]
        return tuple(x.new_empty(0) if t is None else torch.zeros_like(t) for t in tensors)
    return torch.ops.ncops.linear_divergence_backward(grad, floats, *tensors, *options, *needs)
