"""A loss of the columns of linear_stats and its gradient, from one look at each block of logits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.planes import FLOATS, LOSS_TERMS
from ._blocks import row_blocks
from .linear_stats import Gradients, logits_of
from .logit_gradient import logit_gradient, rows_of
from .logit_stats import row_columns
from .softcap import capped, uncapped_gradient


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, coefficients: Tensor, scale: float,
    softcap: float, ignore_index: int, allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(floats, indices, g_x, g_weight, g_bias)``: planes, of rows that count somewhere, and gradients."""
    blocks = []
    sums = Gradients(x, weight, bias, scale, need_x, need_weight, need_bias)
    for here in row_blocks(x.shape[0], weight.shape[0]):
        stored, y = logits_of(x[here], weight, bias, scale), None if target is None else target[here]
        z = capped(stored, softcap)
        planes = row_columns(z, y, ignore_index)
        blocks.append(planes)
        grad = column_gradients(coefficients[here], planes[0])
        rows = rows_of(slice(None), grad, *planes, y, weight.shape[0], ignore_index)
        sums.add(here, uncapped_gradient(logit_gradient(z, rows), stored, softcap), rows.active)
    return *(torch.cat(planes, 1) for planes in zip(*blocks, strict=True)), *sums.results()


def column_gradients(coefficients: Tensor, floats: Tensor) -> Tensor:
    """Gradients by the float columns ``(len(FLOATS), n)`` of the loss ``sum coefficients * terms``."""
    of = dict(zip(LOSS_TERMS, coefficients.unbind(1), strict=True))
    lse = floats[FLOATS.index("lse")].double().where(of["lse_squared"] != 0, 0)
    of["lse"] = of["lse"] + 2 * of.pop("lse_squared") * lse
    return torch.stack([of.get(name, torch.zeros_like(lse)) for name in FLOATS]).to(floats.dtype)
