"""A training loss of a linear classifier's logits, whose gradient is formed with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..backends.planes import FLOATS, LOSS_TERMS
from ..names import Reduction
from .checks import check_label_values, check_number
from .columns import LinearStats, check_class_weight, check_reduction, check_smoothing, columns_of, fake_planes
from .linear_stats import check_arguments, fake_head_gradients, refuse_sharded
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
    instead = "multiply a loss by it"
    nll, z_loss = check_number(nll, "nll", instead), check_number(z_loss, "z_loss", instead)
    entropy = check_number(entropy, "entropy", instead)
    label_smoothing = check_smoothing(label_smoothing)
    check_reduction(reduction)
    if num_items is not None and reduction != "mean":
        raise ValueError(f"num_items: expected None with reduction={reduction!r}, got {num_items!r}")
    refuse_sharded(weight)
    flat, weight, bias, y, *options = check_arguments(x, weight, bias, target, scale, softcap, ignore_index, "V", 1)
    scale, softcap, ignore_index = options
    classes = weight.shape[0]
    if y is None and nll != 0:
        raise ValueError(f"target: expected the class of each row for nll={nll}, got None")
    if class_weight is not None:
        check_class_weight(class_weight, "class_weight", classes, flat, "x")
        if softcap and label_smoothing:
            raise ValueError(
                f"label_smoothing: expected 0 with both class_weight and softcap, got {label_smoothing}: the weighted "
                "mean of capped logits is no product"
            )
        class_weight = class_weight.double()

    valid = torch.ones(flat.shape[0], dtype=torch.bool, device=flat.device) if y is None else y != ignore_index
    counts = valid.double()
    weighted = counts if class_weight is None or y is None else class_weight[y.clamp(0, classes - 1)] * counts
    per_row = per_weight = 1.0 if num_items is None else num_items
    if reduction == "mean" and num_items is None:
        per_row, per_weight = counts.sum(), weighted.sum()
    smooth = (nll * label_smoothing) * counts / per_weight
    coefficients = {
        "nll": (nll * (1 - label_smoothing)) * weighted / per_weight,
        "lse": smooth if class_weight is None else smooth * class_weight.mean(),
        "lse_squared": z_loss * counts / per_row,
        "entropy": entropy * counts / per_row,
        "mean": -smooth if class_weight is None else torch.zeros_like(smooth),
    }
    table = torch.stack([coefficients[name] for name in LOSS_TERMS], 1).where(valid[:, None], 0)
    if reduction == "none" or flat.dtype == torch.float16:
        planes = torch.ops.ncops.linear_stats(flat, weight, bias, y, *options, allow_tf32(x))
        loss = _terms(planes[0], table).sum(1 if reduction == "none" else None).to(planes[0].dtype)
        if reduction != "none":
            planes = _counted(planes[0].detach(), planes[1], table)
    else:
        needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (flat, weight, bias)]
        loss, *planes = torch.ops.ncops.linear_loss(
            flat, weight, bias, y, table, *options, allow_tf32(x), *needs
        )[:3]  # fmt: skip
    if class_weight is not None and label_smoothing != 0:
        rest = smooth.where(valid, 0) * _weighted_mean(flat, weight, bias, class_weight, scale)
        loss = loss - (rest if reduction == "none" else rest.sum()).to(loss.dtype)
    if reduction == "mean":  # a sum over no rows, divided by none of them
        loss = loss.where(valid.any() | (per_row != 0), torch.nan)
    stats = columns_of((planes[0].detach(), planes[1]), tuple(x.shape[:-1]), y, classes, ignore_index)
    return LinearLoss(loss.reshape(x.shape[:-1]) if reduction == "none" else loss, stats)


def _counted(floats: Tensor, indices: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The planes without what stands in the rows that count nowhere: 0 in the columns of the target, NaN, -1."""
    nowhere = (table == 0).all(1)
    floats = floats.masked_fill(nowhere, torch.nan)
    for name in ("target_logit", "nll"):
        floats[FLOATS.index(name)].masked_fill_(nowhere, 0)
    return floats, indices.masked_fill(nowhere, -1)


def _weighted_mean(x: Tensor, weight: Tensor, bias: Tensor | None, class_weight: Tensor, scale: float) -> Tensor:
    """``(N,)`` mean over the classes of ``class_weight * logit``: a product with one row, ``class_weight @ weight``."""
    dtype = compute_dtype(x.dtype)
    factors = class_weight.to(dtype)
    starts = range(0, weight.shape[0], 4096)  # half-precision weights are never converted all at once
    row = sum(factors[i : i + 4096] @ weight[i : i + 4096].to(dtype) for i in starts)
    total = scale * (x.to(dtype) @ row)
    return (total if bias is None else total + factors @ bias.to(dtype)) / weight.shape[0]


def _terms(floats: Tensor, table: Tensor) -> Tensor:
    """``(N, len(LOSS_TERMS)) float64``: terms times coefficients; 0 where those are 0, whatever the term."""
    of = dict(zip(FLOATS, floats.double().unbind(), strict=True))
    of["lse_squared"] = of["lse"].where(table[:, LOSS_TERMS.index("lse_squared")] != 0, 0).square()
    columns = zip(LOSS_TERMS, table.unbind(1), strict=True)
    return torch.stack([c * of[name].where(c != 0, 0) for name, c in columns], 1)


def _check(x, weight, bias, target, coefficients, scale, softcap, ignore_index, *_):
    if target is not None:
        check_label_values(target, weight.shape[0], ignore_index, "target")


def _with_loss(found, x, weight, bias, target, coefficients, *_):
    floats, indices, *gradients = found
    loss = _terms(floats, coefficients).sum().to(floats.dtype)
    return loss, *_counted(floats, indices, coefficients), *gradients


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
