"""The columns of linear_stats from logits that already exist, in one read."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import (
    check_floating,
    check_integer,
    check_label_values,
    check_number,
    check_softcap,
    flatten_labels,
    refuse_forward_mode,
    rows_of,
    shape,
)
from .columns import PLANES, LinearStats, columns_of, fake_planes
from .op import define, differentiable


def logit_stats(
    logits: Tensor, target: Tensor | None = None, *,
    scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
) -> LinearStats:  # fmt: skip
    """Log-sum-exp, top two, target, entropy, mean and variance of each row of ``scale * logits``.

    Args:
        logits: ``(..., V)``, V >= 1; float32, float64, bfloat16 or float16; any strides. ``-inf`` masks a class.
        target: ``(...)`` integer class of each row, or None.
        scale: multiplies the logits; a number, which has no gradient: to learn a temperature, scale ``logits``.
        softcap: a number c above 0: every scaled logit z becomes c * tanh(z / c), of which all columns are; a masked
            class stays masked. None: as they are.
        ignore_index: the target to skip: such a row's target columns are 0 (rank -1) and carry no gradient.

    Returns:
        :class:`LinearStats`, computed in float32 (float64 for float64 logits).

    Raises:
        ValueError: shape, dtype or device mismatch, no class, a scale or softcap that requires a gradient; on CPU
            also a target outside ``[0, V)``, naming row and value (elsewhere such a row has nll NaN and rank -1).

    Gradients flow to ``logits`` through every float column.
    """
    check_floating(logits, "logits")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with at least one class, got {shape(logits)}")
    ignore_index = check_integer(ignore_index, "ignore_index")
    scale = check_number(scale, "scale", "fold a learned temperature into it (logit_stats(logits * scale, ...))")
    softcap = check_softcap(softcap)
    y = None if target is None else flatten_labels(target, "target", logits, "logits")
    flat = rows_of(logits)
    refuse_forward_mode("logit_stats", logits)
    planes = torch.ops.ncops.logit_stats(flat, y, scale, softcap, ignore_index)
    return columns_of(planes, tuple(logits.shape[:-1]), y, logits.shape[-1], ignore_index)


def _check(logits, target, scale, softcap, ignore_index):
    if target is not None:
        check_label_values(target, logits.shape[1], ignore_index, "target")


_INPUTS = "Tensor logits, Tensor? target, float scale, float softcap, int ignore_index"  # softcap 0: none
define(f"logit_stats({_INPUTS}) -> {PLANES}", fake_planes, check=_check)
define(f"logit_stats_backward(Tensor g_floats, Tensor floats, Tensor indices, {_INPUTS}) -> Tensor g_logits")
differentiable("logit_stats")
