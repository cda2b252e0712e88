"""The columns of rows of stored logits, and their gradient, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .logit_gradient import logit_gradient, rows_of
from .logit_share import finish, share_of
from .softcap import capped, uncapped_gradient


def logit_stats(
    logits: Tensor, target: Tensor | None, scale: float, softcap: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """``(floats, indices)``, the planes of ``backends/planes.py``."""
    dtype = compute_dtype(logits.dtype)
    blocks = []
    for rows in row_blocks(*logits.shape):
        z = capped(scale * logits[rows].to(dtype), softcap)
        blocks.append(row_columns(z, None if target is None else target[rows], ignore_index))
    return tuple(torch.cat(planes, 1) for planes in zip(*blocks, strict=True))


def row_columns(z: Tensor, target: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The planes of one block of logits ``z (n, V)`` that are already scaled, capped and in the compute dtype."""
    target_logit = None
    if target is not None:
        inside = (target >= 0) & (target < z.shape[1])
        target_logit = z.gather(1, target.where(inside, 0)[:, None])[:, 0]
    return finish(share_of(z, target_logit), target, ignore_index, target_logit, z.dtype)


def logit_stats_backward(
    grad: Tensor, floats: Tensor, indices: Tensor, logits: Tensor, target: Tensor | None, scale: float,
    softcap: float, ignore_index: int,
) -> Tensor:  # fmt: skip
    """Gradient of the stored logits, from that by the float planes."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    for here in row_blocks(*logits.shape):
        rows = rows_of(here, grad, floats, indices, target, logits.shape[1], ignore_index)
        z = scale * logits[here].to(floats.dtype)
        out[here] = scale * uncapped_gradient(logit_gradient(capped(z, softcap), rows), z, softcap)
    return out
