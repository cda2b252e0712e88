"""Statistics of a linear classifier's logits, row by row, without the logits ever existing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.dtypes import autocast_dtype, compute_dtype
from ..backends.planes import SHARE_FLOATS, SHARE_INDICES
from .checks import (
    check_beside,
    check_integer,
    check_label_values,
    check_number,
    check_softcap,
    flatten_labels,
    flatten_rows,
    is_dtensor,
    refuse_forward_mode,
    shape,
)
from .columns import PLANES, LinearStats, columns_of, fake_planes
from .op import define, differentiable
from .precision import allow_tf32


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, target: Tensor | None = None, *,
    scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
) -> LinearStats:  # fmt: skip
    """Log-sum-exp, top two, target, entropy, mean and variance of ``scale * x @ weight.T + bias`` per row.

    The N x V logits never exist; the gradient recomputes them block by block. In the collapsed regime (margin above
    20) ``nll`` and its gradient keep their digits where ``F.cross_entropy`` in float32 has lost them.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        weight: ``(V, D)`` classifier rows, V >= 1, dtype of ``x``.
        bias: ``(V,)`` or None, dtype of ``x``. ``-inf`` masks a class.
        target: ``(...)`` integer class of each row, or None.
        scale: multiplies the products, not the bias; a number, which has no gradient: to learn a temperature, scale
            ``x``.
        softcap: a number c above 0: every logit z becomes c * tanh(z / c), of which all columns are; a masked class
            stays masked. None: as they are.
        ignore_index: the target to skip: such a row's target columns are 0 (rank -1) and carry no gradient.

    Returns:
        :class:`LinearStats`. Under autocast x, weight and bias are cast to its dtype, except from float64; products
        and sums are float32.

    Raises:
        ValueError: shape, dtype or device mismatch; a DTensor; mixed dtypes outside autocast; no class; a scale or
            softcap that requires a gradient; on CPU also a target outside ``[0, V)``, naming row and value (elsewhere
            such a row has nll NaN and rank -1).

    Gradients flow to ``x``, ``weight`` and ``bias`` through every float column. For which numbers of rows a row has the
    same bits: docs/reinforcement-learning.md.
    """
    refuse_sharded(weight)
    flat, weight, bias, y, *options = check_arguments(x, weight, bias, target, scale, softcap, ignore_index, "V", 1)
    planes = torch.ops.ncops.linear_stats(flat, weight, bias, y, *options, allow_tf32(x))
    return columns_of(planes, tuple(x.shape[:-1]), y, weight.shape[0], options[-1])


def refuse_sharded(weight: Any) -> None:
    """Raises for a DTensor that each rank has a part of, with what to do about it."""
    if is_dtensor(weight) and any(place.is_shard() for place in weight.placements):
        raise ValueError(
            f"weight: expected a plain tensor, got a DTensor placed {tuple(weight.placements)}: of a head sharded with "
            "the data (FSDP, fully_shard; other rows x on every rank), weight.full_tensor() is the whole, as is "
            "weight inside the forward of the wrapped module; of one sharded by its vocabulary (tensor parallel; the "
            "same x on every rank), ncops.distributed.linear_stats takes it"
        )


def check_arguments(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: Any, softcap: Any,
    ignore_index: Any, classes: str, least: int, op: str = "linear_stats",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float, float, int]:  # fmt: skip
    """The first seven as the ops take them: rows and classifier in one dtype, as autocast asks, flat targets.

    At least ``least`` classes, a number that errors call ``classes``.
    """
    x = flatten_rows(features)
    check_beside(weight, "weight", (None, x.shape[1]), f"({classes}, D)", x, "x")
    if weight.shape[0] < least:
        raise ValueError(f"weight: expected at least one class, got shape {shape(weight)}")
    if bias is not None:
        check_beside(bias, "bias", (weight.shape[0],), f"({classes},)", x, "x")
    x, weight, bias = in_one_dtype(x=x, weight=weight, bias=bias)
    ignore_index = check_integer(ignore_index, "ignore_index")
    scale = check_number(scale, "scale", "fold a learned temperature into x (linear_stats(x * scale, ...))")
    softcap = check_softcap(softcap)
    y = None if target is None else flatten_labels(target, "target", features, "x")
    refuse_forward_mode(op, x, weight, bias)
    return x, weight, bias, y, scale, softcap, ignore_index


def in_one_dtype(x: Tensor, **others: Tensor | None) -> list[Tensor | None]:
    """``x`` and the others as autocast casts them; ValueError, by name, for one that has not the dtype of x then."""
    tensors = {"x": x, **others}
    dtype = autocast_dtype(x.device)
    if dtype is not None:  # which leaves float64 alone, in torch's own ops too
        tensors = {n: t if t is None or t.dtype == torch.float64 else t.to(dtype) for n, t in tensors.items()}
    expected = tensors["x"].dtype
    for name, t in tensors.items():
        if t is not None and t.dtype != expected:
            raise ValueError(f"{name}: expected the dtype of x, {expected}, got {t.dtype} (only autocast casts)")
    return list(tensors.values())


def fake_head_gradients(x, weight, need_x, need_weight, need_bias):
    """Fakes of the gradients of rows, classifier and bias, of size 0 where not needed."""
    return (
        x.new_empty(x.shape if need_x else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


def _check(x, weight, bias, target, scale, softcap, ignore_index, allow_tf32):
    if target is not None:
        check_label_values(target, weight.shape[0], ignore_index, "target")


def _share_fake(x, *_):
    floats = x.new_empty((len(SHARE_FLOATS), x.shape[0]), dtype=torch.float64)
    return floats, x.new_empty((len(SHARE_INDICES), x.shape[0]), dtype=torch.int64)


def _zero_elsewhere(logits, x, weight, bias, target, scale, softcap, ignore_index, allow_tf32):
    return logits.masked_fill_((target == ignore_index) | (target < 0) | (target >= weight.shape[0]), 0)


def _targets_fake(x, *_):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


def _backward_fake(
    grad, floats, indices, x, weight, bias, target, scale, softcap, ignore_index, allow_tf32,
    need_x, need_weight, need_bias, wide=False,
):  # fmt: skip
    gradients = fake_head_gradients(x, weight, need_x, need_weight, need_bias)
    return tuple(g.to(compute_dtype(x.dtype)) for g in gradients) if wide else gradients


_HEAD = "Tensor x, Tensor weight, Tensor? bias"
_OPTIONS = "float scale, float softcap, int ignore_index, bool allow_tf32"  # softcap 0: none
define(f"linear_stats({_HEAD}, Tensor? target, {_OPTIONS}) -> {PLANES}", fake_planes, check=_check)
# The share of these classes of a vocabulary that has others, in which targets may lie: their logits are given.
define(
    f"linear_stats_share({_HEAD}, Tensor? target_logit, float scale, float softcap, bool allow_tf32) -> {PLANES}",
    _share_fake,
)
define(
    f"linear_stats_targets({_HEAD}, Tensor target, {_OPTIONS}) -> Tensor",
    _targets_fake,
    check=_check,
    after=_zero_elsewhere,
)
define(  # wide: gradients in the compute dtype, to which a caller adds
    f"linear_stats_backward(Tensor g_floats, Tensor floats, Tensor indices, {_HEAD}, Tensor? target, {_OPTIONS},"
    " bool need_x, bool need_weight, bool need_bias, bool wide=False) -> (Tensor g_x, Tensor g_weight, Tensor g_bias)",
    _backward_fake,
)
differentiable("linear_stats")
