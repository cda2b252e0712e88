"""Divergences of the distributions over all classes, from what each shard has of them, and this shard's gradients.

Free of communication, so that every backend can be tested with shards in one process.

The divergence of the whole is that of the shards' masses P and Q, as if a shard were a class whose logits are the
log-sum-exps of its own, and the mean under P of those inside the shards: KL = KL(P || Q) + sum P KL(p_r || q_r), terms
that are never negative. What the mixture of both needs is summed by a second sweep, which knows the normalisers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.planes import (
    DIVERGENCE_PLANES,
    DIVERGENCE_SHARE_FLOATS,
    DIVERGENCE_SHARE_INDICES,
)
from ..reference.logit_divergence import Softmax, divergence_planes, kl_columns

INF = float("inf")
LOCAL = ("kl", "reverse_kl", "entropy", "other_entropy", "lse", "other_lse", "shift")
"""What the first sweep knows of the classes of a shard by themselves."""
SHARE = (*DIVERGENCE_SHARE_FLOATS, *DIVERGENCE_SHARE_INDICES)
"""What the second sweep adds."""

Tensors = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""x, weight, other, other_weight, bias, other_bias: rows, and the classes of this shard."""
Options = tuple[float, float, float, bool]
"""scale, softcap, beta, allow_tf32."""


def local_columns(tensors: Tensors, options: Options) -> Tensor:
    """``(len(LOCAL), N)`` float64; -inf is the log-sum-exp of a side none of whose classes is here, or all masked."""
    x, weight, other, other_weight, *biases = tensors
    if not weight.shape[0]:
        nothing = torch.zeros((len(LOCAL), x.shape[0]), dtype=torch.float64, device=x.device)
        nothing[LOCAL.index("lse")] = nothing[LOCAL.index("other_lse")] = -INF
        return nothing
    # Where a bias masks every class of one side, the other is still to be known: as if it masked none.
    gone = [None if bias is None else (bias == -INF).all() for bias in biases]
    shown = [bias if all_of is None else bias.where(~all_of, 0) for bias, all_of in zip(biases, gone, strict=True)]
    floats, _ = torch.ops.ncops.linear_divergence(x, weight, other, other_weight, *shown, *options)
    columns = dict(zip(DIVERGENCE_PLANES, floats.double().unbind(), strict=True))
    gone = [gone[0], gone[0] if other_weight is None else gone[1]]
    for name, all_of in zip(("lse", "other_lse"), gone, strict=True):
        if all_of is not None:
            columns[name] = columns[name].masked_fill(all_of & ~columns[name].isnan(), -INF)
    return torch.stack([columns[name] for name in LOCAL])


def merge_columns(every: Tensor) -> dict[str, Tensor]:
    """Of all classes, by name, from ``every (shards, len(LOCAL), N)``."""
    of = {name: part.T for name, part in zip(LOCAL, every.unbind(1), strict=True)}
    p, q = Softmax(of["lse"]), Softmax(of["other_lse"])
    columns = kl_columns(p, q, of["shift"])
    for name, side in (("kl", p), ("reverse_kl", q), ("entropy", p), ("other_entropy", q)):
        inside = of[name].where(~side.masked, 0)
        columns[name] = columns[name] + (side.p * inside).masked_fill(inside == INF, INF).sum(1)
    return columns


def whole_of(columns: dict[str, Tensor]) -> Tensor:
    """What the second sweep is given."""
    return torch.stack([columns[name] for name in ("lse", "other_lse", "shift")])


def local_share(tensors: Tensors, whole: Tensor, start: int, options: Options) -> Tensor:
    """``(len(SHARE), N)`` float64; indices are those of all classes (exact below 2^53)."""
    x, weight = tensors[:2]
    if not weight.shape[0]:
        nothing = torch.zeros((len(SHARE), x.shape[0]), dtype=torch.float64, device=x.device)
        nothing[SHARE.index("max")] = nothing[SHARE.index("other_max")] = -INF
        return nothing
    floats, indices = torch.ops.ncops.linear_divergence_share(*tensors, whole, *options)
    return torch.cat([floats, (indices + start).double()])


def merge_shares(columns: dict[str, Tensor], every: Tensor, beta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The op's planes and whether both agree, from ``every (shards, len(SHARE), N)``."""
    of = dict(zip(SHARE, every.unbind(1), strict=True))
    sums = {name: sum(of[name].unbind()) for name in SHARE if name in DIVERGENCE_PLANES}  # in the order of the ranks
    floats, poisoned = divergence_planes(columns | sums, beta, dtype)
    first, second = (
        of[at].where(of[top] == of[top].amax(0), INF).amin(0)
        for top, at in (("max", "argmax"), ("other_max", "other_argmax"))
    )
    return floats, (first == second) & ~poisoned


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
