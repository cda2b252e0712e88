"""Divergences between two distributions of stored logits, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_beside, check_dtype, check_floating, refuse_forward_mode, rows_of, shape
from .divergences import RESULTS, LinearDivergence, check_options, fake_results, result
from .op import define, differentiable


def logit_divergence(
    logits: Tensor, other_logits: Tensor, *, scale: float = 1.0, softcap: float | None = None, beta: float = 0.5
) -> LinearDivergence:
    """KL both ways, Jensen-Shannon divergence, overlap, entropies of the rows of ``scale`` times two tensors of logits.

    Args:
        logits: ``(..., V)``, V >= 1; float32, float64, bfloat16 or float16; any strides. ``-inf`` masks a class.
        other_logits: of the same shape and dtype.
        scale: multiplies the logits; a number, which has no gradient.
        softcap: a number c above 0: every scaled logit z becomes c * tanh(z / c). None: as they are.
        beta: weight of p in the mixture of ``js``, between 0 and 1.

    Returns:
        :class:`LinearDivergence`, computed in float32 (float64 for float64 logits).

    Raises:
        ValueError: shape, dtype or device mismatch, no class, a beta outside (0, 1), an option that requires a
            gradient.

    Gradients flow to both tensors through every float column.
    """
    check_floating(logits, "logits")
    if logits.ndim < 1 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with at least one class, got {shape(logits)}")
    check_beside(other_logits, "other_logits", tuple(logits.shape), "logits.shape", logits, "logits")
    check_dtype(other_logits, "other_logits", logits.dtype, "that of logits")
    options = check_options(scale, softcap, beta, "fold it into both logits")
    refuse_forward_mode("logit_divergence", logits, other_logits)
    flat, other = rows_of(logits), rows_of(other_logits)
    return result(torch.ops.ncops.logit_divergence(flat, other, *options), tuple(logits.shape[:-1]))


_INPUTS = "Tensor logits, Tensor other_logits, float scale, float softcap, float beta"  # softcap 0: none
define(f"logit_divergence({_INPUTS}) -> {RESULTS}", fake_results)
define(
    f"logit_divergence_backward(Tensor g_floats, Tensor floats, {_INPUTS}, bool need_logits, bool need_other_logits)"
    " -> (Tensor g_logits, Tensor g_other_logits)"
)
differentiable("logit_divergence")
