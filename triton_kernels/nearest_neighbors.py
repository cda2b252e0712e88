"""nearest_neighbors: the largest of x.r - |r|^2 / 2 about a point amid the rows, by linear_topk, with some to spare;
then distances from differences, by which they are ordered.

Workspace: both sides centred in the compute dtype, and what linear_topk takes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..reference.center import row_center
from ..reference.nearest_neighbors import SPARE, in_order
from ._launch import capability, device_of, launch
from ._rows import centred_rows, column_mean, row_norms
from .linear_topk import linear_topk


@triton.jit
def _distances(
    x, stride_row, stride_column, rows, stride_other, stride_other_column, index, sqdist, pairs, number, dim,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sqdist[point, j] = |x - rows[index[point, j]]|^2 in float64 from the rows as they came; inf where that is -1."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = pair < pairs
    at = tl.load(index + pair, mask=inside, other=-1)
    good = at >= 0
    point, at = pair // number, tl.where(good, at, 0)
    total = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        mask = good[:, None] & (d < dim)[None, :]
        left = tl.load(x + point[:, None] * stride_row + d[None, :] * stride_column, mask=mask, other=0)
        place = rows + at[:, None] * stride_other + d[None, :] * stride_other_column
        apart = left.to(tl.float64) - tl.load(place, mask=mask, other=0).to(tl.float64)
        total += tl.sum(apart * apart, 1)
    tl.store(sqdist + pair, tl.where(good, total, float("inf")), mask=inside)


def nearest_neighbors(
    x: Tensor, rows: Tensor | None, k: int, valid: Tensor | None, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """``(sqdist (N, k), index (N, k))``, as ``ncops.reference.nearest_neighbors``."""
    dtype, itself = compute_dtype(x.dtype), rows is None
    rows = x if itself else rows
    (n, d), m = x.shape, rows.shape[0]
    if n == 0 or m == 0:
        return x.new_empty((n, k), dtype=dtype), torch.full((n, k), -1, dtype=torch.int64, device=x.device)
    number = min(m, k + SPARE + itself)
    with device_of(x):
        usable = row_norms(rows, None, dtype).isfinite()
        usable = usable if valid is None else usable & valid
        origin = row_center(rows, usable, column_mean(rows, usable)[0]).nan_to_num(0)  # NaN where no row is usable
        centred, half = centred_rows(rows, usable, origin, dtype)
        centred.masked_fill_(~usable[:, None], 0)
        finite = row_norms(x, None, dtype).isfinite()
        points = centred_rows(x, None, origin, dtype)[0].masked_fill_(~finite[:, None], 0)
        values, _, index = linear_topk(points, centred, half, number, 1.0, 0.0, allow_tf32)
        index.masked_fill_((values == -torch.inf) | ~finite[:, None], -1)
        if itself:
            index.masked_fill_(index == torch.arange(n, device=x.device)[:, None], -1)
        index = index.sort(dim=1).values
        sqdist = torch.empty((n, number), dtype=torch.float64, device=x.device)
        config = launch("nearest_distance", x.dtype, capability(x.device))
        _distances[(triton.cdiv(n * number, config["BLOCK_R"]),)](
            x, *x.stride(), rows, *rows.stride(), index, sqdist, n * number, number, d, **config.options
        )
        return in_order(sqdist, index, k, dtype)
