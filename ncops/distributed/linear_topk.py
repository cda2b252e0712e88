"""linear_topk of a classifier whose rows are sharded over ranks: the largest of the largest of each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..ops.checks import check_integer
from ..ops.linear_topk import LinearTopk, topk_of
from ..ops.precision import allow_tf32
from ..stats.collectives import Group
from .agreement import Offer
from .linear_stats import alike_in_all, check_head
from .shard_columns import direction, directions_differ
from .shard_topk import local_topk, merge_topk, shard_gradients
from .vocabulary import begin, gather_ranks, placed, refuse_other_rows, sum_gradient


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    k: int, group: Group = None, vocab_start: int | None = None, num_classes: int | None = None,
    scale: float = 1.0, softcap: float | None = None,
) -> LinearTopk:  # fmt: skip
    """:func:`ncops.linear_topk` where each rank of ``group`` holds some of the classes; all ranks get the same.

    Collective: every rank calls it, with the same ``x``. Traffic of the forward is 16 k + 16 bytes per row and rank.

    Args:
        x, weight, bias, group, vocab_start, num_classes: as for :func:`ncops.distributed.linear_stats`.
        k, scale, softcap: as for :func:`ncops.linear_topk`, the same on every rank; k of all V classes.

    Returns:
        :class:`ncops.ops.LinearTopk`, classes numbered over all ranks: count a loss of it once, not once per rank.

    Raises:
        ValueError: what :func:`ncops.linear_topk` and :func:`ncops.distributed.linear_stats` refuse, the latter's way.
        RuntimeError: as :func:`ncops.distributed.linear_stats`, whose way with ``torch.compile`` it has too.
    """
    (weight, bias), shard = placed(weight, {"bias": bias}, group, vocab_start, num_classes, "linear_topk")

    def prepare() -> Offer:
        head = check_head(x, weight, bias, None, scale, softcap, -100, shard)
        number = check_integer(k, "k", 1)
        return Offer((head, number), alike_in_all(head, shard) | {"k": number}, weight.shape[0])

    (head, number), known = begin("linear_topk", prepare, shard, x)
    if number > known.num_classes:
        raise ValueError(f"k: expected at most the {known.num_classes} classes of all ranks, got {number}")
    flat, weight, bias, _, scale, softcap, _ = head
    weight, bias = known.own(weight, bias)
    found = _Parallel.apply(flat, weight, bias, known, number, scale, softcap, allow_tf32(x))
    return topk_of(found, tuple(x.shape[:-1]))


class _Parallel(torch.autograd.Function):
    """The results, formed alike on every rank."""

    @staticmethod
    def forward(ctx, x, weight, bias, shard, k, scale, softcap, tf32):
        options = (scale, softcap, tf32)
        mine = local_topk(x, weight, bias, k, shard.start, *options)
        every = gather_ranks(torch.cat([mine, direction(x)[None]]), shard.group)
        differ = directions_differ(every[:, -1])
        found = merge_topk(every[:, :-1], k, compute_dtype(x.dtype))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            refuse_other_rows(differ, "x", "linear_topk")
        else:  # to look at it would wait for the device
            *floats, indices = found
            floats = (t.masked_fill(differ if t.ndim == 1 else differ[:, None], torch.nan) for t in floats)
            found = *floats, indices.masked_fill(differ[:, None], -1)
        ctx.save_for_backward(*found, x, weight, bias)
        ctx.mark_non_differentiable(found[-1])
        ctx.shard, ctx.options = shard, options
        return found

    @staticmethod
    def backward(ctx, g_values, g_logprob, g_lse, _):
        *found, x, weight, bias = ctx.saved_tensors
        needs = [bool(need) for need in ctx.needs_input_grad[:3]]
        gradients = shard_gradients(
            (g_values, g_logprob, g_lse), tuple(found), x, weight, bias, ctx.shard.start, ctx.options, needs
        )
        if needs[0]:
            sum_gradient(gradients[0], ctx.shard.group)
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *[None] * 5
