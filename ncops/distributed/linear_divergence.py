"""linear_divergence of classifiers whose rows are sharded over ranks, both cut the same way.

A sweep over the local classes, an exchange of what it found of them by themselves, a second sweep that knows the
normalisers of all classes, and an exchange of its sums: every rank forms the same columns from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..ops.divergences import LinearDivergence, result
from ..ops.linear_divergence import check_arguments
from ..ops.precision import allow_tf32
from ..stats.collectives import Group
from .agreement import Offer
from .shard_columns import direction, directions_differ
from .shard_divergences import finish, local_ratios, local_share, merge_shares, shard_gradients
from .vocabulary import begin, gather_ranks, placed, refuse_other_rows, replicated, sum_gradient


def linear_divergence(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None = None, bias: Tensor | None = None,
    other_bias: Tensor | None = None, *,
    group: Group = None, vocab_start: int | None = None, num_classes: int | None = None,
    scale: float = 1.0, softcap: float | None = None, beta: float = 0.5,
) -> LinearDivergence:  # fmt: skip
    """:func:`ncops.linear_divergence` where each rank of ``group`` holds some of the classes; all get all columns.

    Collective: every rank calls it, with the same ``x`` and ``other``. It sweeps twice over the local classes, where
    one rank alone sweeps once. Traffic of the forward is 104 and then 32 bytes per row and rank, whatever D and V are.

    Args:
        x, other: ``(..., D)`` and ``(..., E)`` features, the same on every rank.
        weight: ``(V_local, D)`` rows of this rank's classes, possibly none; or a ``DTensor`` of all ``(V, D)``, as for
            :func:`ncops.distributed.linear_stats`.
        other_weight: ``(V_local, E)``, or a DTensor placed like ``weight``, or None for one head: both heads are cut
            the same way.
        bias, other_bias: ``(V_local,)``, or DTensors placed like ``weight``, or None; ``-inf`` masks a class.
        group, vocab_start, num_classes: as for :func:`ncops.distributed.linear_stats`.
        scale, softcap, beta: as for :func:`ncops.linear_divergence`, the same on every rank.

    Returns:
        :class:`ncops.ops.LinearDivergence`, the same on every rank: count a loss of it once, not once per rank.

    Raises:
        ValueError: what :func:`ncops.linear_divergence` and :func:`ncops.distributed.linear_stats` refuse, the latter's
            way: on every rank what one refuses; ranks with other rows ``x`` or ``other``.
        RuntimeError: as :func:`ncops.distributed.linear_stats`, whose way with ``torch.compile`` it has too.

    The gradients of ``x`` and ``other`` are summed over the ranks, those of the heads stay where their classes are.
    """
    beside = {"other_weight": other_weight, "bias": bias, "other_bias": other_bias}
    local, shard = placed(weight, beside, group, vocab_start, num_classes, "linear_divergence")

    def prepare() -> Offer:
        shard.check()
        head, second, *biases = local
        rows, others = replicated(x, "x"), replicated(other, "other")
        tensors, options = check_arguments(
            rows, head, others, second, *biases, scale, softcap, beta, "V_local", 0
        )  # fmt: skip
        flat, states = tensors[0], tensors[2]
        alike = {
            "rows of x": flat.shape[0], "columns of x": flat.shape[1], "columns of other": states.shape[1],
            "dtype of x": flat.dtype, "scale": options[0], "softcap": options[1] or None, "beta": options[2],
            "other_weight": "None" if second is None else "given", "num_classes": shard.num_classes,
        }  # fmt: skip
        return Offer((tensors, options), alike, head.shape[0])

    (tensors, options), known = begin("linear_divergence", prepare, shard, x)
    flat, head, states, *others = tensors
    head, *others = known.own(head, *others)
    found = _Parallel.apply(flat, head, states, *others, known, *options, allow_tf32(x))
    return result(found, tuple(x.shape[:-1]))


class _Parallel(torch.autograd.Function):
    """The planes of all columns and whether both sides agree, formed alike on every rank."""

    @staticmethod
    def forward(ctx, x, weight, other, other_weight, bias, other_bias, shard, scale, softcap, beta, tf32):
        tensors, options = (x, weight, other, other_weight, bias, other_bias), (scale, softcap, beta, tf32)
        marks = torch.stack([direction(x), direction(other)])
        every = gather_ranks(torch.cat([local_share(tensors, shard.start, options), marks]), shard.group)
        differ = directions_differ(every[:, -2]) | directions_differ(every[:, -1])
        columns, agree = merge_shares(every[:, :-2])
        every = gather_ranks(local_ratios(tensors, columns, options), shard.group)
        floats, agree = finish(columns, agree, every, beta, compute_dtype(x.dtype))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            refuse_other_rows(differ, "x, other", "linear_divergence")
        else:  # to look at it would wait for the device
            floats, agree = floats.masked_fill(differ, torch.nan), agree & ~differ
        ctx.save_for_backward(floats, *tensors)
        ctx.mark_non_differentiable(agree)
        ctx.shard, ctx.options = shard, options
        return floats, agree

    @staticmethod
    def backward(ctx, grad, _):
        floats, *tensors = ctx.saved_tensors
        needs = [bool(need) for need in ctx.needs_input_grad[:6]]
        found = list(shard_gradients(grad, floats, tuple(tensors), ctx.options, needs))
        for i in (0, 2):
            if needs[i]:
                sum_gradient(found[i], ctx.shard.group)
        return *(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 5
