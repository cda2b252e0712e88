"""The cap on logits, z = c tanh(z' / c), and the gradient through it; c = 0 is none."""

from __future__ import annotations

import torch
from torch import Tensor


def capped(z: Tensor, softcap: float) -> Tensor:
    """``z`` capped; infinities stay: -inf masks a class, and +inf poisons its row."""
    return z if not softcap else z.where(z.isinf(), softcap * (z / softcap).tanh())


def uncapped_gradient(gradient: Tensor, z: Tensor, softcap: float) -> Tensor:
    """The gradient by the logits ``z`` before the cap, from that by the capped ones; 0 for masked classes.

    1 - tanh(u)^2 as 1 / cosh(u)^2, which keeps its digits where tanh has come to 1.
    """
    if not softcap:
        return gradient
    none = (gradient == 0) | (z == -torch.inf)  # a row without gradient may hold anything
    return (gradient / (z / softcap).cosh().square()).masked_fill_(none, 0)
