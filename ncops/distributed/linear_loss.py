"""linear_loss of a classifier whose rows are sharded over ranks: the loss of the columns that all ranks form alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..names import Reduction
from ..ops.linear_loss import LinearLoss, linear_loss_of
from ..ops.loss_terms import loss_factors, loss_table, weighted_mean, weighted_sums
from ..stats.collectives import Group, reduce_in_place
from .agreement import Offer
from .linear_stats import alike_in_all, check_head, columns_of_shards
from .vocabulary import begin, one_graph, placed, told


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, target: Tensor | None = None, *,
    group: Group = None, vocab_start: int | None = None, num_classes: int | None = None,
    nll: float = 1.0, z_loss: float = 0.0, entropy: float = 0.0, label_smoothing: float = 0.0,
    class_weight: Tensor | None = None, scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", num_items: float | Tensor | None = None,
) -> LinearLoss:  # fmt: skip
    """:func:`ncops.linear_loss` where each rank of ``group`` holds some of the classes; all ranks get the same loss.

    Collective, as :func:`ncops.distributed.linear_stats`, whose traffic it has: with class weights and label smoothing
    D + 1 numbers more. A class's gradient needs the columns of all classes first, so that it takes the four products of
    that op and its backward where one rank alone takes three.

    Args:
        x, weight, bias, target, group, vocab_start, num_classes: as for :func:`ncops.distributed.linear_stats`.
        class_weight: ``(V,)`` factors of the cross entropy by the row's target, those of all classes on every rank.
        nll, z_loss, entropy, label_smoothing, scale, softcap, ignore_index, reduction, num_items: as for
            :func:`ncops.linear_loss`, the same on every rank.

    Returns:
        :class:`ncops.ops.LinearLoss`, the same on every rank: count its loss once, not once per rank.

    Raises:
        ValueError: what :func:`ncops.linear_loss` and :func:`ncops.distributed.linear_stats` refuse, the latter's way:
            on every rank what one refuses, such as another ``class_weight`` or ``num_items`` than the others'; of
            tensors on a GPU, whose values nobody waits for, another shape.
        RuntimeError: as :func:`ncops.distributed.linear_stats`, whose way with ``torch.compile`` it has too.
    """
    (weight, bias), shard = placed(weight, {"bias": bias}, group, vocab_start, num_classes, "linear_loss")

    def prepare() -> Offer:
        factors = loss_factors(nll, z_loss, entropy, label_smoothing, reduction, num_items)
        head = check_head(x, weight, bias, target, scale, softcap, ignore_index, shard)
        factors.check(head[3], class_weight, shard.num_classes, head[5], head[0])
        options = {
            "nll": factors.nll, "z_loss": factors.z_loss, "entropy": factors.entropy, "reduction": reduction,
            "label_smoothing": factors.label_smoothing, "class_weight": told(class_weight),
            "num_items": told(num_items),
        }  # fmt: skip
        return Offer((factors, head), alike_in_all(head, shard) | options, weight.shape[0])

    (factors, head), known = begin("linear_loss", prepare, shard, x)
    flat, weight, bias, y, scale, softcap, ignore_index = head
    classes = known.num_classes
    factors.check(y, class_weight, classes, softcap, flat)  # the number of classes is known by now
    planes, _ = columns_of_shards(head, known, "linear_loss", check_values=not one_graph(shard))
    table = loss_table(factors, flat, y, class_weight, classes, ignore_index)
    loss, planes = table.of_planes(*planes)
    mean = None
    if table.weighted_mean is not None:
        weight, bias = known.own(weight, bias)
        own = class_weight[known.start : known.start + weight.shape[0]]
        sums = _Summed.apply(weighted_sums(weight, bias, own.to(compute_dtype(weight.dtype))), known.group)
        mean = weighted_mean(flat, table.valid, sums, classes, scale)
    return linear_loss_of(table.finished(loss, mean), planes, x, y, classes, ignore_index)


class _Summed(torch.autograd.Function):
    """The sum over the ranks, of which every rank makes the same: its gradient is that of every part."""

    @staticmethod
    def forward(ctx, part, group):
        total = part.clone()
        reduce_in_place(total, group)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None
