"""Divergences between two linear classifiers, or of one for two states, by row blocks, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .linear_stats import Gradients, logits_of
from .logit_divergence import capped_pair, divergence_ratios, divergence_share, row_divergences, stored_gradients


def linear_divergence(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float, softcap: float, beta: float, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(floats, agree)``: the planes of ``backends/planes.py``, and whether the argmax is the same."""
    blocks = []
    for here in row_blocks(x.shape[0], weight.shape[0]):
        pair = _pair(x[here], weight, other[here], other_weight, bias, other_bias, scale)
        blocks.append(row_divergences(*capped_pair(*pair, softcap), beta))
    return torch.cat([b[0] for b in blocks], 1), torch.cat([b[1] for b in blocks])


def linear_divergence_share(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float, softcap: float, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(floats, indices)`` of ``backends/planes.py``, of some of the classes by themselves."""
    blocks = []
    for here in row_blocks(x.shape[0], weight.shape[0]):
        pair = _pair(x[here], weight, other[here], other_weight, bias, other_bias, scale)
        blocks.append(divergence_share(*capped_pair(*pair, softcap)))
    return torch.cat([b[0] for b in blocks], 1), torch.cat([b[1] for b in blocks], 1)


def linear_divergence_ratios(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, whole: Tensor, scale: float, softcap: float, beta: float, allow_tf32: bool,
) -> Tensor:  # fmt: skip
    """The sums of ``backends/planes.py`` over some of the classes, as part of all."""
    blocks = []
    for here in row_blocks(x.shape[0], weight.shape[0]):
        pair = _pair(x[here], weight, other[here], other_weight, bias, other_bias, scale)
        blocks.append(divergence_ratios(*capped_pair(*pair, softcap), whole[:, here], beta))
    return torch.cat(blocks, 1)


def _pair(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Both blocks of logits and their difference, with one head the product of the difference of the rows."""
    z = logits_of(x, weight, bias, scale)
    if other_weight is not None:
        y = logits_of(other, other_weight, other_bias, scale)
        return z, y, y - z
    dtype = compute_dtype(x.dtype)
    d = logits_of(other.to(dtype) - x.to(dtype), weight, None, scale)
    return z, z + d, d


def linear_divergence_backward(
    grad: Tensor, floats: Tensor, x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None,
    bias: Tensor | None, other_bias: Tensor | None, scale: float, softcap: float, beta: float, allow_tf32: bool,
    need_x: bool, need_weight: bool, need_other: bool, need_other_weight: bool, need_bias: bool, need_other_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of all six tensors from recomputed logits; size 0 where not needed."""
    one = other_weight is None
    sums = Gradients(x, weight, bias, scale, need_x, need_weight, need_bias)
    if one:
        others = Gradients(other, weight, bias, scale, need_other, False, False)
        others.g_weight, others.g_bias = sums.g_weight, sums.g_bias
    else:
        others = Gradients(other, other_weight, other_bias, scale, need_other, need_other_weight, need_other_bias)
    for here in row_blocks(x.shape[0], weight.shape[0]):
        pair = _pair(x[here], weight, other[here], other_weight, bias, other_bias, scale)
        g_z, g_y = stored_gradients(*pair, softcap, grad[:, here], floats[:, here], beta)
        active = (grad[:, here] != 0).any(0)
        sums.add(here, g_z, active)
        others.add(here, g_y, active)
    g_x, g_weight, g_bias = sums.results()
    if one:
        others.g_weight = others.g_bias = None
    g_other, g_other_weight, g_other_bias = others.results()
    return g_x, g_weight, g_other, g_other_weight, g_bias, g_other_bias
