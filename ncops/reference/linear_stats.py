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
        z = capped(logits_of(x[rows], weight, bias, scale), softcap)
        blocks.append(row_columns(z, None if target is None else target[rows], ignore_index))
    return tuple(torch.cat(planes, 1) for planes in zip(*blocks, strict=True))


def linear_stats_share(
    x: Tensor, weight: Tensor, bias: Tensor | None, target_logit: Tensor | None, scale: float, softcap: float,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The share of these classes, of a vocabulary that has others; ranks are counted against ``target_logit (N,)``."""
    blocks = []
    for rows in row_blocks(x.shape[0], weight.shape[0]):
        z = capped(logits_of(x[rows], weight, bias, scale), softcap)
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
        z = capped(logits_of(x[rows], weight, bias, scale), softcap)
        blocks.append(z.gather(1, at[rows])[:, 0])
    return torch.cat(blocks)


def _weight_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Weight rows in the compute dtype: whole where they already are, else block by block."""
    if weight.dtype == dtype:
        yield slice(None), weight
        return
    for columns in row_blocks(*weight.shape):
        yield columns, weight[columns].to(dtype)


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """``(n, V)`` in the compute dtype."""
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
    ignore_index: int, allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool, wide: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias`` from recomputed logits, ``wide``: in the compute dtype; size 0 where
    not needed."""
    sums = Gradients(x, weight, bias, scale, need_x, need_weight, need_bias, wide)
    for here in row_blocks(x.shape[0], weight.shape[0]):
        rows = rows_of(here, grad, floats, indices, target, weight.shape[0], ignore_index)
        z = logits_of(x[here], weight, bias, scale)
        g_z = uncapped_gradient(logit_gradient(capped(z, softcap), rows), z, softcap)
        sums.add(here, g_z, rows.active)
    return sums.results()


class Gradients:
    """Of rows, classifier and bias, from those by blocks of logits; size 0 where not needed."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, need_x: bool, need_weight: bool,
        need_bias: bool, wide: bool = False,
    ):  # fmt: skip
        self.dtype, self.scale, self.wide = compute_dtype(x.dtype), scale, wide
        self.x, self.weight, self.bias = x, weight, bias
        self.g_x = x.new_empty(x.shape, dtype=self.dtype if wide else x.dtype) if need_x else None
        self.g_weight = weight.new_zeros(weight.shape, dtype=self.dtype) if need_weight else None
        self.g_bias = weight.new_zeros(weight.shape[0], dtype=torch.float64) if need_bias else None

    def add(self, here: slice, g_z: Tensor, active: Tensor) -> None:
        """``g_z (n, V)`` is that of the rows ``here``, overwritten; only ``active`` rows have one that is not zero."""
        if self.g_bias is not None:
            self.g_bias += g_z.sum(0, dtype=torch.float64)
        g_z *= self.scale
        if self.g_x is not None:
            block = g_z.new_zeros((g_z.shape[0], self.x.shape[1]))
            for columns, w in _weight_blocks(self.weight, self.dtype):
                block.addmm_(g_z[:, columns], w)
            self.g_x[here] = block
        if self.g_weight is not None:  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
            self.g_weight.addmm_(g_z.t(), self.x[here].to(self.dtype).where(active[:, None], 0))

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        sources = (self.x, self.weight, self.x if self.bias is None else self.bias)
        dtypes = [self.dtype if self.wide else source.dtype for source in sources]
        sums = zip((self.g_x, self.g_weight, self.g_bias), sources, dtypes, strict=True)
        return tuple(source.new_empty(0, dtype=d) if g is None else g.to(d) for g, source, d in sums)
