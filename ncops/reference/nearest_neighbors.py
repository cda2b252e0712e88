"""The nearest rows of each row, in plain PyTorch; the gradient is that of every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .center import row_center

INF, NAN = float("inf"), float("nan")
SPARE = 8  # candidates beyond k, that rounding of the products may have ordered wrongly


def nearest_neighbors(
    x: Tensor, rows: Tensor | None, k: int, valid: Tensor | None, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """``(sqdist (N, k), index (N, k))``: NaN and -1 where there is no neighbour."""
    dtype, itself = compute_dtype(x.dtype), rows is None
    rows = x if rows is None else rows
    kept = rows.double().isfinite().all(1)
    kept = (kept if valid is None else kept & valid).nonzero()[:, 0]
    if not len(kept):
        sqdist = x.new_full((x.shape[0], k), NAN, dtype=dtype)
        return sqdist, torch.full(sqdist.shape, -1, dtype=torch.int64, device=x.device)
    chosen = rows[kept]
    origin = row_center(chosen, None, chosen.mean(0, dtype=torch.float64))
    centred = torch.cat([(chosen[here].double() - origin).to(dtype) for here in row_blocks(*chosen.shape)])
    half = 0.5 * centred.square().sum(1, dtype=torch.float64).to(dtype)
    blocks = []
    for here in row_blocks(x.shape[0], max(chosen.shape)):
        points = x[here].double()
        score = ((points - origin).to(dtype) @ centred.T - half).nan_to_num(-INF, INF, -INF)
        if itself:
            score.masked_fill_(kept == torch.arange(here.start, here.stop, device=x.device)[:, None], -INF)
        at = score.sort(dim=1, descending=True, stable=True).indices[:, : k + SPARE].sort(dim=1).values
        there = score.gather(1, at) > -INF
        distance = torch.stack([(points - chosen[one].double()).square().sum(1) for one in at.unbind(1)], 1)
        distance = distance.where(there, INF)
        blocks.append(in_order(distance, kept[at], k, dtype))
    return tuple(torch.cat(parts) for parts in zip(*blocks, strict=True))


def in_order(sqdist: Tensor, index: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k nearest of candidates ``(n, some)`` in the order of their index; NaN and -1 for those that are infinitely
    far, and beyond the last."""
    sqdist, order = sqdist.sort(dim=1, stable=True)
    sqdist, index = sqdist[:, :k], index.gather(1, order)[:, :k]
    none, short = sqdist == INF, max(0, k - index.shape[1])
    sqdist = F.pad(sqdist.masked_fill(none, NAN).to(dtype), (0, short), value=NAN)
    return sqdist, F.pad(index.masked_fill(none, -1), (0, short), value=-1)


def nearest_neighbors_backward(
    g_sqdist: Tensor, sqdist: Tensor, index: Tensor, x: Tensor, rows: Tensor | None, k: int, valid: Tensor | None,
    allow_tf32: bool,
) -> Tensor:  # fmt: skip
    """``2 sum_j g_j (x - r_j)``, from differences as the distances are; NaN where a distance is, unless its g is 0."""
    rows = x if rows is None else rows
    out = torch.empty_like(x)
    for here in row_blocks(x.shape[0], 2 * k * x.shape[1]):
        g = torch.where((index[here] < 0) & (g_sqdist[here] != 0), NAN, g_sqdist[here])
        near = rows[index[here].clamp(min=0)].to(g.dtype)
        difference = (x[here].to(g.dtype)[:, None] - near).where(g[:, :, None] != 0, 0)
        out[here] = 2 * torch.einsum("nk,nkd->nd", g, difference)
    return out
