"""Logit statistics of ``scale * x @ weight.T + bias`` by row blocks, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .logit_gradient import logit_gradient, rows_of
from .logit_share import share_of
from .logit_stats import row_columns
from .softcap import capped, uncapped_gradient


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, softcap: float,
    ignore_index: int, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(floats, indices)``, the planes of ``backends/planes.py``."""
    blocks = []
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = capped(_logits(x[rows], weight, bias, scale), softcap)
        blocks.append(row_columns(z, None if target is None else target[rows], ignore_index))
    return tuple(torch.cat(planes, 1) for planes in zip(*blocks, strict=True))


def linear_stats_share(
    x: Tensor, weight: Tensor, bias: Tensor | None, target_logit: Tensor | None, scale: float, softcap: float,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The share of these classes, of a vocabulary that has others; ranks are counted against ``target_logit (N,)``."""
    blocks = []
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = capped(_logits(x[rows], weight, bias, scale), softcap)
        blocks.append(share_of(z, None if target_logit is None else target_logit[rows]).planes())
    return tuple(torch.cat(planes, 1) for planes in zip(*blocks, strict=True))


def linear_stats_targets(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float, ignore_index: int,
    allow_tf32: bool,
) -> Tensor:  # fmt: skip
    """``(N)`` logits of the targets as ``linear_stats`` forms them; any number where one is no class."""
    at = target.clamp(0, weight.shape[0] - 1)[:, None]
    blocks = []
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = capped(_logits(x[rows], weight, bias, scale), softcap)
        blocks.append(z.gather(1, at[rows])[:, 0])
    return torch.cat(blocks)


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
    grad: Tensor, floats: Tensor, indices: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, softcap: float,
    ignore_index: int, allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias`` from recomputed logits; size 0 where not needed."""
    dtype = floats.dtype
    g_x = x.new_empty(x.shape if need_x else 0)
    g_weight = x.new_zeros(weight.shape if need_weight else 0, dtype=dtype)
    g_bias = x.new_zeros(weight.shape[0] if need_bias else 0, dtype=torch.float64)
    for here in row_blocks(x.shape[0], weight.shape[0]):
        rows = rows_of(here, grad, floats, indices, target, weight.shape[0], ignore_index)
        z = _logits(x[here], weight, bias, scale)
        g_z = uncapped_gradient(logit_gradient(capped(z, softcap), rows), z, softcap)
        if need_bias:
            g_bias += g_z.sum(0, dtype=torch.float64)
        g_z *= scale
        if need_x:
            block = x.new_zeros((g_z.shape[0], x.shape[1]), dtype=dtype)
            for columns, w in _weight_blocks(weight, dtype):
                block.addmm_(g_z[:, columns], w)
            g_x[here] = block
        if need_weight:  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
            g_weight.addmm_(g_z.t(), x[here].to(dtype).where(rows.active[:, None], 0))
    return g_x, g_weight.to(weight.dtype), g_bias.to(x.dtype if bias is None else bias.dtype)
