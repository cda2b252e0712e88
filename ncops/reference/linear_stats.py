"""Logit statistics of ``scale * x @ weight.T + bias`` by row blocks, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .logit_stats import fold, row_columns, row_gradient


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, ignore_index: int,
    allow_tf32: bool, target_logit: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(lse, gap, max, second, target_logit, nll, entropy, mean, var, argmax, second_index, target_rank, valid)``.

    ``target_logit (N)``: the logits of the targets where they are known; else they are taken from ``weight``.
    ``allow_tf32`` is torch's own setting here: its matrix product obeys it without being told.
    """
    blocks = []
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = _logits(x[rows], weight, bias, scale)
        y, own = (None if t is None else t[rows] for t in (target, target_logit))
        blocks.append(row_columns(z, y, ignore_index, own))
    return tuple(torch.cat(column) for column in zip(*blocks, strict=True))


def linear_stats_targets(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, ignore_index: int, allow_tf32: bool
) -> Tensor:
    """``(N)`` logits of the targets as ``linear_stats`` forms them; any number where one is no class."""
    at = target.clamp(0, weight.shape[0] - 1)[:, None]
    blocks = row_blocks(x.shape[0], weight.shape[0])
    return torch.cat([_logits(x[rows], weight, bias, scale).gather(1, at[rows])[:, 0] for rows in blocks])


def _weight_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Weight rows in the compute dtype: whole where they already are, else block by block."""
    if weight.dtype == dtype:
        yield slice(None), weight
        return
    for columns in row_blocks(*weight.shape):
        yield columns, weight[columns].to(dtype)


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    dtype = compute_dtype(x.dtype)
    z = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    x = x.to(dtype)
    for columns, w in _weight_blocks(weight, dtype):
        z[:, columns] = x @ w.t()
    z *= scale
    return z if bias is None else z.add_(bias)


def linear_stats_backward(
    g_lse: Tensor, g_gap: Tensor, g_max: Tensor, g_second: Tensor, g_target_logit: Tensor, g_nll: Tensor,
    g_entropy: Tensor, g_mean: Tensor, g_var: Tensor,
    gap: Tensor, max: Tensor, entropy: Tensor, mean: Tensor, argmax: Tensor, second_index: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, ignore_index: int,
    allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias`` from recomputed logits; size 0 where not needed."""
    grads = (g_lse, g_gap, g_max, g_second, g_target_logit, g_nll, g_entropy, g_mean, g_var)
    folded = fold(grads, argmax, target, weight.shape[0], ignore_index)
    active = folded[-1]
    saved = (gap, max, entropy, mean, argmax, second_index)
    dtype = gap.dtype
    g_x = x.new_empty(x.shape if need_x else 0)
    g_weight = x.new_zeros(weight.shape if need_weight else 0, dtype=dtype)
    g_bias = x.new_zeros(weight.shape[0] if need_bias else 0, dtype=torch.float64)
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = _logits(x[rows], weight, bias, scale)
        g_z = row_gradient(z, rows, folded, saved)
        if need_bias:
            g_bias += g_z.sum(0, dtype=torch.float64)
        g_z *= scale
        if need_x:
            block = x.new_zeros((g_z.shape[0], x.shape[1]), dtype=dtype)
            for columns, w in _weight_blocks(weight, dtype):
                block.addmm_(g_z[:, columns], w)
            g_x[rows] = block
        if need_weight:  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
            g_weight.addmm_(g_z.t(), x[rows].to(dtype).where(active[rows, None], 0))
    return g_x, g_weight.to(weight.dtype), g_bias.to(x.dtype if bias is None else bias.dtype)
