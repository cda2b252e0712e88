"""Gradients of rows, classifier and bias from those of kept blocks of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from .linear_stats_backward import add_parts, parts_of

CLASSES = 16384  # multiplied at a time


class GradientSums:
    """Sums over blocks of rows; size 0 where not needed. Those of the classifier are float32 for half precision."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, need_x: bool, need_weight: bool,
        need_bias: bool,
    ):  # fmt: skip
        self.x, self.weight, self.bias, self.scale = x, weight, bias, scale
        self.g_x = x.new_zeros(x.shape if need_x else 0)
        self.g_weight = weight.new_zeros(weight.shape if need_weight else 0, dtype=compute_dtype(x.dtype))
        self.g_bias = weight.new_zeros(weight.shape[0] if need_bias else 0, dtype=torch.float64)
        self.need_x, self.need_weight, self.need_bias = need_x, need_weight, need_bias

    def add(self, rows: Tensor | slice, g_z: Tensor, active: Tensor) -> None:
        """``g_z (n, V)`` is that of the logits of ``rows``; of those that are not ``active`` it is 0."""
        own = self.x[rows]
        if self.need_bias:
            self.g_bias += g_z.sum(0, dtype=torch.float64)
        block = g_z.new_zeros(own.shape if self.need_x else 0)
        # A NaN in a row without gradient must not reach the weight: 0 * NaN is NaN.
        counted = parts_of(own.where(active[:, None], 0)) if self.need_weight else ()
        for start in range(0, self.weight.shape[0], CLASSES) if self.need_x or self.need_weight else ():
            these = slice(start, start + CLASSES)
            part = parts_of(g_z[:, these] if self.scale == 1 else self.scale * g_z[:, these], self.x.dtype)
            if self.need_x:
                add_parts(block, part, parts_of(self.weight[these]), False)
            if self.need_weight:
                add_parts(self.g_weight[these], tuple(p.mT for p in part), counted, False)
        if self.need_x:
            self.g_x[rows] = block.to(self.x.dtype)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        like = self.x if self.bias is None else self.bias
        return self.g_x, self.g_weight.to(self.weight.dtype), self.g_bias.to(like.dtype)
