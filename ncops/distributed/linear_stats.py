"""linear_stats of a classifier whose rows are sharded over ranks: vocabulary-parallel, as in tensor-parallel training.

Every rank holds the same rows ``x`` and its own classes. The logits of the targets are summed over the ranks first, so
that each can count its own classes above them; then one sweep over the local classes, and one exchange of thirteen
numbers per row, the share of those classes and what tells rows apart, from which every rank forms the same columns. The
gradient reuses the recomputing backward on the local classes, with the columns of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..ops.checks import check_label_values
from ..ops.columns import LinearStats, columns_of
from ..ops.linear_stats import check_arguments
from ..ops.precision import allow_tf32
from ..stats.collectives import Group, reduce_in_place
from .agreement import Offer
from .shard_columns import (
    PACKED,
    local_share,
    marks_differ,
    merge_shares,
    row_marks,
    shard_gradients,
    target_logits,
)
from .vocabulary import (
    Shard,
    begin,
    gather_ranks,
    one_graph,
    placed,
    refuse_other_rows,
    replicated,
    sum_gradient,
)


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, target: Tensor | None = None, *,
    group: Group = None, vocab_start: int | None = None, num_classes: int | None = None,
    scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
) -> LinearStats:  # fmt: skip
    """:func:`ncops.linear_stats` where each rank of ``group`` holds some of the classes; all ranks get all columns.

    Collective: every rank calls it, with the same ``x`` and ``target``. Traffic of the forward is 8 bytes per row and
    then 104 per row and rank, whatever D and V are.

    Args:
        x: ``(..., D)`` features, the same on every rank; float32, float64, bfloat16 or float16.
        weight: ``(V_local, D)`` rows of this rank's classes, possibly none. Or a ``DTensor`` of all ``(V, D)``, sharded
            by rows (``Shard(0)``) along one dimension of its mesh: ``group`` and ``vocab_start`` follow from it, the
            gradient is such a DTensor too.
        bias: ``(V_local,)``, or a DTensor ``Shard(0)`` along the same dimension, or None; ``-inf`` masks a class.
        target: ``(...)`` integer classes, numbered over all ranks; or None.
        group: the process group; None for all ranks.
        vocab_start: the class of ``weight[0]``. None: the ranks' shards follow each other, and their sizes are
            exchanged, which synchronises a GPU; give both this and ``num_classes`` to avoid that.
        num_classes: V, over all ranks. Rows of ``weight`` beyond it are padding: no class, gradient zero. None takes
            all rows of all ranks.
        scale, softcap, ignore_index: as for :func:`ncops.linear_stats`.

    Returns:
        :class:`ncops.ops.LinearStats` with ``num_classes = V``, indices numbered over all ranks.

    Raises:
        ValueError: shape, dtype or device mismatch; a DTensor with other placements; no class on any rank; on CPU also
            a target outside ``[0, V)``, and ranks with other rows ``x`` or ``target``, as data-parallel ones have. What
            one rank refuses is the same error on every rank, on a GPU too unless ``vocab_start`` is given; a row that
            differs between ranks there has NaN columns.
        RuntimeError: ``torch.distributed`` is not initialised; or another rank has raised, died or not answered within
            the group's timeout.

    Under ``torch.compile`` a call with ``vocab_start`` and ``num_classes``, or with a DTensor, is part of one graph, in
    which nothing looks at values: a row that differs between ranks has NaN columns, a target outside ``[0, V)`` NaN and
    rank -1. Without them the graph breaks (``fullgraph=True`` is an error): sizes that ranks exchange while it runs
    decide about what it computes.

    The gradient of ``x`` is summed over the ranks (each returns the whole), those of ``weight`` and ``bias`` stay where
    their classes are: a loss of these columns is to be counted once, not once per rank.
    """
    (weight, bias), shard = placed(weight, {"bias": bias}, group, vocab_start, num_classes, "linear_stats")

    def prepare() -> Offer:
        head = check_head(x, weight, bias, target, scale, softcap, ignore_index, shard)
        return Offer(head, alike_in_all(head, shard), weight.shape[0])

    head, known = begin("linear_stats", prepare, shard, x)
    planes, y = columns_of_shards(head, known, "linear_stats", check_values=not one_graph(shard))
    return columns_of(planes, tuple(x.shape[:-1]), y, known.num_classes, head[-1])


def check_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: Any, softcap: Any, ignore_index: Any,
    shard: Shard,
) -> tuple:  # fmt: skip
    """The first seven, local, as :func:`ncops.ops.linear_stats.check_arguments` has them."""
    shard.check()
    rows, targets = replicated(x, "x"), None if target is None else replicated(target, "target")
    return check_arguments(rows, weight, bias, targets, scale, softcap, ignore_index, "V_local", 0)


def alike_in_all(head: tuple, shard: Shard) -> dict[str, Any]:
    """What has to be the same on every rank of the arguments of :func:`check_head`."""
    x, _, _, y, scale, softcap, ignore_index = head
    return {
        "rows of x": x.shape[0], "columns of x": x.shape[1], "dtype of x": x.dtype, "scale": scale,
        "softcap": softcap or None, "ignore_index": ignore_index,
        "target": "None" if y is None else "given", "num_classes": shard.num_classes,
    }  # fmt: skip


def columns_of_shards(
    head: tuple, shard: Shard, call: str, check_values: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """The planes of the columns of all classes, differentiable, and the targets; collective."""
    x, weight, bias, y, *options = head
    weight, bias = shard.own(weight, bias)
    planes = _Parallel.apply(x, weight, bias, y, shard, call, *options, allow_tf32(x))
    if y is not None and check_values:  # all ranks have the same by now, and raise the same
        check_label_values(y, shard.num_classes, options[-1], "target")
    return planes, y


class _Parallel(torch.autograd.Function):
    """The planes of all columns, formed alike on every rank."""

    @staticmethod
    def forward(ctx, x, weight, bias, target, shard, call, scale, softcap, ignore_index, tf32):
        options = (scale, softcap, ignore_index, tf32)
        level = None
        if target is not None:
            level = target_logits(x, weight, bias, target, shard.start, *options)
            reduce_in_place(level, shard.group)
        share = local_share(x, weight, bias, level, shard.start, scale, softcap, tf32)
        every = gather_ranks(torch.cat([share, row_marks(x, target)]), shard.group)
        differ = marks_differ(every[:, PACKED:])
        planes = merge_shares(every[:, :PACKED], level, target, ignore_index, compute_dtype(x.dtype))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            refuse_other_rows(differ, "x, target", call)
        else:  # to look at it would wait for the device
            planes = planes[0].masked_fill(differ, torch.nan), planes[1].masked_fill(differ, -1)
        ctx.save_for_backward(*planes, x, weight, bias, target)
        ctx.mark_non_differentiable(planes[1])
        ctx.shard, ctx.options = shard, options
        return planes

    @staticmethod
    def backward(ctx, grad, _):
        shard, needs = ctx.shard, [bool(need) for need in ctx.needs_input_grad[:3]]
        g_x, g_weight, g_bias = shard_gradients(
            grad, *ctx.saved_tensors, shard.start, shard.num_classes, *ctx.options, needs
        )
        if needs[0]:
            sum_gradient(g_x, shard.group)
        results = (g if need else None for g, need in zip((g_x, g_weight, g_bias), needs, strict=True))
        return *results, None, None, None, None, None, None, None
