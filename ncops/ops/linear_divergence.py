"""Divergences between the distributions of two linear classifiers, or of one for two states, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.planes import DIVERGENCE_RATIOS, DIVERGENCE_SHARE_FLOATS, DIVERGENCE_SHARE_INDICES
from .checks import check_beside, flatten_rows, refuse_forward_mode, rows_of, shape
from .divergences import RESULTS, LinearDivergence, check_options, fake_results, result
from .linear_stats import in_one_dtype, refuse_sharded
from .op import define, differentiable
from .precision import allow_tf32


def linear_divergence(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None = None, bias: Tensor | None = None,
    other_bias: Tensor | None = None, *, scale: float = 1.0, softcap: float | None = None, beta: float = 0.5,
) -> LinearDivergence:  # fmt: skip
    """KL both ways, Jensen-Shannon divergence, overlap, entropies of two linear classifiers per row.

    ``p = softmax(scale * x @ weight.T + bias)`` and ``q = softmax(scale * other @ other_weight.T + other_bias)``. The
    N x V logits never exist; the gradient recomputes them block by block.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        weight: ``(V, D)`` classifier rows, V >= 1, dtype of ``x``.
        other: features of the other distribution, with the rows and the dtype of ``x``.
        other_weight: ``(V, E)`` for ``other (..., E)``, dtype of ``x``. None: one head, ``weight`` and ``bias``, for
            both states. Then the difference of the logits is the product of the difference of the states, whose digits
            it keeps; of two heads it is a difference of products, each of which float32 rounds.
        bias, other_bias: ``(V,)`` or None, dtype of ``x``. ``-inf`` masks a class.
        scale: multiplies the products, not the biases; a number, which has no gradient.
        softcap: a number c above 0: every logit z becomes c * tanh(z / c). None: as they are.
        beta: weight of p in the mixture of ``js``, between 0 and 1.

    Returns:
        :class:`LinearDivergence`. Under autocast tensors are cast to its dtype, except from float64; products and sums
        are float32.

    Raises:
        ValueError: shape, dtype or device mismatch; a DTensor; mixed dtypes outside autocast; no class; an
            ``other_bias`` with one head; a beta outside (0, 1); an option that requires a gradient.

    Gradients flow to all six tensors through every float column.
    """
    refuse_sharded(weight)
    tensors, options = check_arguments(
        x, weight, other, other_weight, bias, other_bias, scale, softcap, beta, "V", 1
    )  # fmt: skip
    return result(torch.ops.ncops.linear_divergence(*tensors, *options, allow_tf32(x)), tuple(x.shape[:-1]))


def check_arguments(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: Any, softcap: Any, beta: Any, symbol: str, least: int,
) -> tuple[list[Tensor | None], tuple[float, float, float]]:  # fmt: skip
    """Tensors and options as the ops take them: rows and classifiers in one dtype, as autocast asks.

    At least ``least`` classes, a number that errors call ``symbol``.
    """
    flat = flatten_rows(x)
    check_beside(weight, "weight", (None, flat.shape[1]), f"({symbol}, D)", flat, "x")
    classes = weight.shape[0]
    if classes < least:
        raise ValueError(f"weight: expected at least one class, got shape {shape(weight)}")
    check_beside(other, "other", (*x.shape[:-1], None), "x.shape[:-1] + (E,)", flat, "x")
    states = rows_of(other)
    if other_weight is None:
        check_beside(states, "other", tuple(flat.shape), "that of x without other_weight", flat, "x")
        if other_bias is not None:
            raise ValueError(f"other_bias: expected None without other_weight (one head), got {shape(other_bias)}")
    else:
        check_beside(other_weight, "other_weight", (classes, states.shape[1]), f"({symbol}, E)", flat, "x")
    for t, name in ((bias, "bias"), (other_bias, "other_bias")):
        if t is not None:
            check_beside(t, name, (classes,), f"({symbol},)", flat, "x")
    tensors = in_one_dtype(
        x=flat, weight=weight, other=states, other_weight=other_weight, bias=bias, other_bias=other_bias
    )
    options = check_options(scale, softcap, beta, "fold it into x and other")
    refuse_forward_mode("linear_divergence", *tensors)
    return tensors, options


def _share_fake(x, *_):
    floats = x.new_empty((len(DIVERGENCE_SHARE_FLOATS), x.shape[0]), dtype=torch.float64)
    return floats, x.new_empty((len(DIVERGENCE_SHARE_INDICES), x.shape[0]), dtype=torch.int64)


def _ratios_fake(x, *_):
    return x.new_empty((len(DIVERGENCE_RATIOS), x.shape[0]), dtype=torch.float64)


_NAMES = ("x", "weight", "other", "other_weight", "bias", "other_bias")
_TENSORS = "Tensor x, Tensor weight, Tensor other, Tensor? other_weight, Tensor? bias, Tensor? other_bias"
_OPTIONS = "float scale, float softcap, float beta, bool allow_tf32"  # softcap 0: none
_INPUTS = f"{_TENSORS}, {_OPTIONS}"
define(f"linear_divergence({_INPUTS}) -> {RESULTS}", fake_results)
# Of some of the classes of a vocabulary: by themselves, and as part of all, whose lse, other_lse and shift are given in
# ``whole``, (3, N) float64.
define(
    f"linear_divergence_share({_TENSORS}, float scale, float softcap, bool allow_tf32)"
    " -> (Tensor floats, Tensor indices)",
    _share_fake,
)
define(f"linear_divergence_ratios({_TENSORS}, Tensor whole, {_OPTIONS}) -> Tensor", _ratios_fake)
define(
    f"linear_divergence_backward(Tensor g_floats, Tensor floats, {_INPUTS}, "
    + ", ".join(f"bool need_{name}" for name in _NAMES)
    + f") -> ({', '.join(f'Tensor g_{name}' for name in _NAMES)})"
)
differentiable("linear_divergence")
