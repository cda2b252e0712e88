"""Rows over their norms, a block at a time: what ``normalize=True`` of the ops of classes multiplies and adds up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype

BLOCK_BYTES = 8 << 20
CACHE_BYTES = 1 << 19
"""On a CPU what is float64 for a moment stays in its cache: 4 times the speed of 8 MB at a time."""
LEAST_NORM = 1e-12  # as torch.nn.functional.normalize has it


def unit_rows(x: Tensor) -> Tensor:
    """``x / |x|`` of rows ``(N, D)`` in the compute dtype, formed in float64; a row of zeros stays zero."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return _divided(x.double()).to(compute_dtype(x.dtype))
    units = torch.empty_like(x, dtype=compute_dtype(x.dtype))
    step = max(1, CACHE_BYTES // (8 * max(1, x.shape[1])))
    for start in range(0, x.shape[0], step):
        units[start : start + step] = _divided(x[start : start + step].double())
    return units


def _divided(wide: Tensor) -> Tensor:
    return wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(LEAST_NORM)


def row_parts(x: Tensor, normalize: bool = True, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """The rows of ``x``, or its unit rows, and where they lie: blocks of 8 MB, of ``least`` rows at least.

    One block in a compiled graph, which fuses the division with what comes after it; an empty one for no rows.
    """
    made = unit_rows if normalize else lambda block: block
    step = max(least, BLOCK_BYTES // (compute_dtype(x.dtype).itemsize * max(1, x.shape[1])), 1)
    if torch.compiler.is_compiling():
        yield slice(None), made(x)
        return
    for start in range(0, max(1, x.shape[0]), step):
        rows = slice(start, start + step)
        yield rows, made(x[rows])


def squared_deviations(x: Tensor, labels: Tensor, center: Tensor | None) -> Tensor:
    """``(x - center[label])^2`` element by element ``(N, D)`` in the compute dtype; labels in ``[0, C)``."""
    wide = x.to(compute_dtype(x.dtype))
    return (wide if center is None else wide - center[labels]).square()
