"""Divergences between linear classifiers: blocks of rows keep both products for two passes, or for their gradients.

Products are torch's, as in linear_loss.py. With one head the second is that of the difference of the states, whose
digits it keeps: in half precision the difference is two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..backends.planes import DIVERGENCE_RATIOS, DIVERGENCE_SHARE_FLOATS, DIVERGENCE_SHARE_INDICES
from ._divergence_gradient import gradients
from ._divergence_passes import Rows, divergence_ratios, divergence_share, divergences, empty_planes
from ._gradient_sums import GradientSums
from ._launch import capability, device_of, launch
from .linear_stats_backward import add_product

WORKSPACE_BYTES = 256 << 20


def linear_divergence(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float, softcap: float, beta: float, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(floats, agree)``: the planes of ``ncops.backends.planes``, and whether the argmax is the same.

    Workspace: a block's products, 256 MB; with one head the difference of its states.
    """
    floats, agree = empty_planes(x)
    with device_of(x):
        for here, rows in _blocks(x, weight, other, other_weight, bias, other_bias, scale, softcap):
            divergences(rows, beta, floats[:, here], agree[here])
    return floats, agree


def linear_divergence_share(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float, softcap: float, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(floats, indices)`` of ``ncops.backends.planes``, of some of the classes by themselves; workspace as above."""
    n = x.shape[0]
    floats = x.new_empty((len(DIVERGENCE_SHARE_FLOATS), n), dtype=torch.float64)
    indices = x.new_empty((len(DIVERGENCE_SHARE_INDICES), n), dtype=torch.int64)
    with device_of(x):
        for here, rows in _blocks(x, weight, other, other_weight, bias, other_bias, scale, softcap):
            divergence_share(rows, floats[:, here], indices[:, here])
    return floats, indices


def linear_divergence_ratios(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, whole: Tensor, scale: float, softcap: float, beta: float, allow_tf32: bool,
) -> Tensor:  # fmt: skip
    """The sums of ``ncops.backends.planes`` over some of the classes, as part of all; workspace as above."""
    sums = x.new_empty((len(DIVERGENCE_RATIOS), x.shape[0]), dtype=torch.float64)
    with device_of(x):
        for here, rows in _blocks(x, weight, other, other_weight, bias, other_bias, scale, softcap):
            divergence_ratios(rows, whole[:, here], beta, sums[:, here])
    return sums


def linear_divergence_backward(
    grad: Tensor, floats: Tensor, x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None,
    bias: Tensor | None, other_bias: Tensor | None, scale: float, softcap: float, beta: float, allow_tf32: bool,
    need_x: bool, need_weight: bool, need_other: bool, need_other_weight: bool, need_bias: bool, need_other_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of all six tensors from recomputed products, whose place they take; size 0 where not needed.

    Workspace: a block's products, 256 MB, and that of linear_loss for the products of their gradients.
    """
    one_head = other_weight is None
    sums = GradientSums(x, weight, bias, scale, need_x, need_weight, need_bias)
    if one_head:
        others = GradientSums(other, weight, None, scale, need_other, need_weight, need_bias)
        others.g_weight, others.g_bias = sums.g_weight, sums.g_bias
    else:
        others = GradientSums(other, other_weight, other_bias, scale, need_other, need_other_weight, need_other_bias)
    grad, floats = grad.contiguous(), floats.contiguous()
    with device_of(x):
        # In place, a launch cannot be repeated: nothing is tuned.
        config = launch("logit_divergence_backward", compute_dtype(x.dtype), capability(x.device))
        for here, rows in _blocks(x, weight, other, other_weight, bias, other_bias, scale, softcap):
            active = (grad[:, here] != 0).any(0)
            gradients(config, rows, grad[:, here], floats[:, here], beta, rows.first, rows.second)
            sums.add(here, rows.first, active)
            others.add(here, rows.second, active)
    g_x, g_weight, g_bias = sums.results()
    if one_head:
        return g_x, g_weight, others.g_x, x.new_empty(0), g_bias, x.new_empty(0)
    g_other, g_other_weight, g_other_bias = others.results()
    return g_x, g_weight, g_other, g_other_weight, g_bias, g_other_bias


def _blocks(
    x: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor | None, bias: Tensor | None,
    other_bias: Tensor | None, scale: float, softcap: float,
) -> Iterator[tuple[slice, Rows]]:  # fmt: skip
    """Rows, and their products in the compute dtype."""
    n, v, dtype = x.shape[0], weight.shape[0], compute_dtype(x.dtype)
    step = max(1, WORKSPACE_BYTES // (2 * v * dtype.itemsize))
    memory = x.new_empty((2, min(n, step), v), dtype=dtype)
    for start in range(0, n, step):
        here = slice(start, min(n, start + step))
        first, second = memory[:, : here.stop - start]
        add_product(first, x[here], weight.mT, True)
        if other_weight is None:
            for k, part in enumerate(_parts(other[here].to(dtype) - x[here].to(dtype), x.dtype)):
                add_product(second, part, weight.mT, k == 0)
        else:
            add_product(second, other[here], other_weight.mT, True)
        yield here, Rows(first, second, bias, other_bias, scale, softcap, other_weight is None)


def _parts(difference: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Numbers of ``dtype`` whose sum it is, to 18 bits in bfloat16, which is more than two states near each other
    differ by, and 23 in float16, whose range a difference may leave."""
    if difference.dtype == dtype:
        return (difference,)
    most = torch.finfo(dtype).max
    upper = difference.clamp(-most, most).to(dtype)
    return upper, (difference - upper.to(difference.dtype)).to(dtype)
