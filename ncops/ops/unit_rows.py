"""Rows over their norms, a block at a time: what ``normalize=True`` of the ops of classes multiplies and adds up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype

BLOCK_BYTES = 8 << 20
LEAST_NORM = 1e-12  # as torch.nn.functional.normalize has it


def unit_rows(x: Tensor) -> Tensor:
    """``x / |x|`` of rows ``(N, D)`` in the compute dtype, formed in float64; a row of zeros stays zero."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    return (x.double() / norm.clamp_min(LEAST_NORM)).to(compute_dtype(x.dtype))


def row_parts(x: Tensor, normalize: bool = True, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """The rows of ``x``, or its unit rows, and where they lie: blocks of 8 MB in float64, of ``least`` rows at least.

    One block in a compiled graph, which fuses the division with what comes after it; an empty one for no rows.
    """
    made = unit_rows if normalize else lambda block: block
    step = max(least, BLOCK_BYTES // (8 * max(1, x.shape[1])), 1)
    if torch.compiler.is_compiling():
        yield slice(None), made(x)
        return
    for start in range(0, max(1, x.shape[0]), step):
        rows = slice(start, start + step)
        yield rows, made(x[rows])
