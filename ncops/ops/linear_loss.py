"""A training loss of a linear classifier's logits, whose gradient is formed with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..names import Reduction
from .checks import check_label_values
from .columns import LinearStats, columns_of, fake_planes
from .linear_stats import check_arguments, fake_head_gradients, refuse_sharded
from .loss_terms import counted, loss_factors, loss_table, terms, weighted_mean, weighted_sums
from .op import define
from .precision import allow_tf32


class LinearLoss(NamedTuple):
    """A loss, and the columns that it was made of.

    Attributes:
        loss: a scalar, or one number per row with ``reduction="none"``; differentiable.
        stats: :class:`LinearStats`, without a gradient. Rows that count nowhere, such as ignored ones, are left out of
            the sweep: ``target_logit`` and ``nll`` are 0 there, other floats NaN, indices -1.
    """

    loss: Tensor
    stats: LinearStats


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, target: Tensor | None = None, *,
    nll: float = 1.0, z_loss: float = 0.0, entropy: float = 0.0, label_smoothing: float = 0.0,
    class_weight: Tensor | None = None, scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", num_items: float | Tensor | None = None,
) -> LinearLoss:  # fmt: skip
    """``nll * cross entropy + z_loss * lse^2 + entropy * H`` of ``scale * x @ weight.T + bias``, in one sweep.

    The gradient is formed with the loss, block of rows by block of rows: three products instead of the four of
    :func:`linear_stats` and its backward, and nothing larger than a fixed workspace beside the gradients.

    Args:
        x, weight, bias, target, scale, softcap, ignore_index: as for :func:`linear_stats`.
        nll: factor of the cross entropy, which is that of ``F.cross_entropy`` with these ``label_smoothing``,
            ``class_weight`` and ``reduction``; it needs a target.
        z_loss: factor of the squared log-sum-exp.
        entropy: factor of the entropy of each row's softmax: negative to reward it.
        label_smoothing: share of the target that is spread evenly over all V classes, in [0, 1].
        class_weight: ``(V,)`` factors of the cross entropy by the row's target; they have no gradient.
        reduction: ``"mean"``: the cross entropy divided by the sum of its rows' class weights, the other terms by the
            number of rows that are not ignored; ``"sum"``; or ``"none"``, a value per row, whose gradient takes the
            fourth product, since nobody knows yet what will be made of the values. So does that of float16 inputs:
            formed before a gradient scaler has multiplied the loss, it would be below what float16 holds.
        num_items: what ``"mean"`` divides by instead, as in gradient accumulation: a number or a scalar tensor. No rows
            by 0 items are NaN, as the mean of none is.

    Returns:
        :class:`LinearLoss`. Gradients are formed for those of x, weight and bias that require one.

    Raises:
        ValueError: what :func:`linear_stats` refuses; a factor that is not finite, a ``label_smoothing`` outside
            [0, 1]; no target for an ``nll``; a ``class_weight`` that requires a gradient.
    """
    factors = loss_factors(nll, z_loss, entropy, label_smoothing, reduction, num_items)
    refuse_sharded(weight)
    flat, weight, bias, y, *options = check_arguments(x, weight, bias, target, scale, softcap, ignore_index, "V", 1)
    scale, softcap, ignore_index = options
    classes = weight.shape[0]
    factors.check(y, class_weight, classes, softcap, flat)

    table = loss_table(factors, flat, y, class_weight, classes, ignore_index)
    if reduction == "none" or flat.dtype == torch.float16:
        loss, planes = table.of_planes(*torch.ops.ncops.linear_stats(flat, weight, bias, y, *options, allow_tf32(x)))
    else:
        needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (flat, weight, bias)]
        loss, *planes = torch.ops.ncops.linear_loss(
            flat, weight, bias, y, table.coefficients, *options, allow_tf32(x), *needs
        )[:3]  # fmt: skip
    mean = None
    if table.weighted_mean is not None:
        mean = weighted_mean(flat, table.valid, weighted_sums(weight, bias, class_weight), classes, scale)
    return linear_loss_of(table.finished(loss, mean), planes, x, y, classes, ignore_index)


def linear_loss_of(
    loss: Tensor, planes: tuple[Tensor, Tensor], x: Tensor, target: Tensor | None, classes: int, ignore_index: int
) -> LinearLoss:
    """The result for rows of the shape of ``x (..., D)``, from flat planes and targets."""
    rows = tuple(x.shape[:-1])
    stats = columns_of((planes[0].detach(), planes[1]), rows, target, classes, ignore_index)
    return LinearLoss(loss.reshape(rows) if loss.ndim else loss, stats)


def _check(x, weight, bias, target, coefficients, scale, softcap, ignore_index, *_):
    if target is not None:
        check_label_values(target, weight.shape[0], ignore_index, "target")


def _with_loss(found, x, weight, bias, target, coefficients, *_):
    floats, indices, *gradients = found
    loss = terms(floats, coefficients).sum().to(floats.dtype)
    return loss, *counted(floats, indices, coefficients), *gradients


def _fake(x, weight, *others):
    planes = fake_planes(x)
    return planes[0].new_empty(()), *planes, *fake_head_gradients(x, weight, *others[-3:])


def _setup(ctx, inputs, output):
    ctx.gradients = [g if need else None for g, need in zip(output[3:], inputs[-3:], strict=True)]
    ctx.set_materialize_grads(False)  # zeros of the size of weight, for outputs without a gradient
    ctx.mark_non_differentiable(*output[1:])
    ctx.arguments = len(inputs)


def _backward(ctx, g_loss, *_):
    """Gives away the gradients themselves, which may be larger than all else, where the graph is not kept."""
    found = ctx.gradients
    if g_loss is None:
        return (None,) * ctx.arguments
    if _keeps_graph():
        found = [None if g is None else g * g_loss.to(g.dtype) for g in found]
    else:
        ctx.gradients = None
        if g_loss.device.type != "cpu" or torch.compiler.is_compiling() or g_loss != 1:
            found = [None if g is None else g.mul_(g_loss.to(g.dtype)) for g in found]
    return *found, *[None] * (ctx.arguments - 3)


# torch's own way to ask, which AOTAutograd takes too; a torch without it pays with a copy.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


_GRADIENTS = "Tensor floats, Tensor indices, Tensor g_x, Tensor g_weight, Tensor g_bias"
define(
    "linear_loss(Tensor x, Tensor weight, Tensor? bias, Tensor? target, Tensor coefficients, float scale,"
    " float softcap, int ignore_index, bool allow_tf32, bool need_x, bool need_weight, bool need_bias)"
    f" -> (Tensor loss, {_GRADIENTS})",
    _fake,
    kernel_returns=f"({_GRADIENTS})",
    check=_check,
    after=_with_loss,
    setup=_setup,
    backward=_backward,
)
