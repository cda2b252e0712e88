"""The share of a shard of the classes, as one exchange takes it, and this shard's part of the gradients.

Free of communication, so that every backend can be tested with shards in one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.planes import FLOATS, INDICES, SHARE_FLOATS, SHARE_INDICES
from ..reference.logit_share import LogitShare, finish, merge

INF = float("inf")
DIRECTION_TOLERANCE = 0.03
"""Rows of two batches agree to that in one case of sixty; roundings of bfloat16 move a direction by a tenth of it."""
PACKED = len(SHARE_FLOATS) + len(SHARE_INDICES)


def target_logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, start: int, scale: float, softcap: float,
    ignore_index: int, tf32: bool,
) -> Tensor:  # fmt: skip
    """``(N)`` logits of the targets that are among these classes, 0 for the others: their sum over shards is all."""
    own = target - start
    own = own.where((own >= 0) & (own < weight.shape[0]) & (target != ignore_index), -1)
    if not weight.shape[0]:
        return x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.ops.ncops.linear_stats_targets(x, weight, bias, own, scale, softcap, -1, tf32)


def local_share(
    x: Tensor, weight: Tensor, bias: Tensor | None, target_logit: Tensor | None, start: int, scale: float,
    softcap: float, tf32: bool,
) -> Tensor:  # fmt: skip
    """``(PACKED, N)`` float64, the planes of the share; indices are those of all classes (exact below 2^53).

    ``target_logit (N)``: the logits of the targets, whose rivals among these classes are counted.
    """
    if not weight.shape[0]:
        nothing = torch.zeros((PACKED, x.shape[0]), dtype=torch.float64, device=x.device)
        nothing[:2] = -INF
        nothing[SHARE_FLOATS.index("rest")] = nothing[SHARE_FLOATS.index("squared")] = -1
        return nothing
    floats, indices = torch.ops.ncops.linear_stats_share(x, weight, bias, target_logit, scale, softcap, tf32)
    # Without a logit above -inf there is nothing to point at, and an index may be anything.
    places = indices[:2].where(floats[:2] > -INF, -start) + start
    return torch.cat([floats, places.double(), indices[2:].double()])


def row_marks(x: Tensor, target: Tensor | None) -> Tensor:
    """``(2, N)`` float64 that are alike on ranks with the same rows: the target, and :func:`direction`."""
    mark = direction(x)
    return torch.stack([torch.zeros_like(mark) if target is None else target.double(), mark])


def direction(x: Tensor) -> Tensor:
    """``(N,)`` float64: a number of the direction of each row.

    It is of size 1, and moves by the rounding of x only where ranks have computed x each for themselves.
    """
    rows = x.detach()
    odd = rows[:, ::2].sum(1).double() - rows[:, 1::2].sum(1).double()
    return odd / torch.linalg.vector_norm(rows, dim=1).double().clamp_min(torch.finfo(torch.float32).tiny)


def marks_differ(every: Tensor) -> Tensor:
    """``(N,)`` bool: the ranks do not have the same row; ``every (ranks, 2, N)`` are their :func:`row_marks`."""
    targets, directions = every.unbind(1)
    return (targets != targets[:1]).any(0) | directions_differ(directions)


def directions_differ(every: Tensor) -> Tensor:
    """``(N,)`` bool of the :func:`direction` ``every (ranks, N)`` of the same row; a NaN tells nothing."""
    others = every - every[:1]
    return (others.abs() > DIRECTION_TOLERANCE).any(0)


def merge_shares(
    every: Tensor, target_logit: Tensor | None, target: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The op's planes over all classes from ``every (shards, 10, N)``, in float64 until they are stored."""
    floats, indices = every.split([len(SHARE_FLOATS), len(SHARE_INDICES)], 1)
    share = merge(LogitShare(*floats.unbind(1), *indices.long().unbind(1)))
    return finish(share, target, ignore_index, target_logit, dtype)


def shard_gradients(
    grad: Tensor, floats: Tensor, indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    target: Tensor | None, start: int, num_classes: int, scale: float, softcap: float, ignore_index: int,
    tf32: bool, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """This shard's part of the gradient of ``x``, and all of those of its weight and bias.

    ``grad``: by the float planes over all classes, ``floats`` and ``indices``.
    """
    classes = weight.shape[0]
    if not classes:
        return torch.zeros_like(x), torch.zeros_like(weight), weight.new_zeros(0)
    g = dict(zip(FLOATS, grad.unbind(), strict=True))
    index = dict(zip(INDICES, indices.unbind(), strict=True))
    own = None
    if target is not None:
        own = target - start
        here = (own >= 0) & (own < classes) & (target != ignore_index)
        counted = (target != ignore_index) & (target >= 0) & (target < num_classes)
        # Of the nll, all but the target's own logit is the lse; the kernel leaves out the nll of targets it has not.
        g["lse"] = g["lse"] + g["nll"].where(counted & ~here, 0)
        own = own.where(here, -1)
    for name in ("mean", "var"):  # the kernel divides their gradients by the classes it sees
        g[name] = g[name] * (classes / num_classes)
    index["argmax"] = _local(index["argmax"], start, classes, classes)
    index["second_index"] = _local(index["second_index"], start, classes, -1)
    return torch.ops.ncops.linear_stats_backward(
        torch.stack([*g.values()]), floats, torch.stack([*index.values()]), x, weight, bias, own, scale, softcap,
        -1, tf32, *needs,
    )  # fmt: skip


def _local(index: Tensor, start: int, classes: int, elsewhere: int) -> Tensor:
    """Local numbers of classes; ``elsewhere`` for those of other shards; -1 (none) stays."""
    local = index - start
    inside = (local >= 0) & (local < classes)
    return torch.where(index < 0, -1, torch.where(inside, local, elsewhere))
