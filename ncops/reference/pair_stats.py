"""Statistics over all pairs of rows, upper triangle by row blocks, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks

INF = float("inf")
NAN = float("nan")
CLOSE = 0.01  # below this share of |u|^2 + |v|^2 a squared distance is recomputed from the difference
PRODUCTS = ("dot", "cosine")
DISTANCES = {
    "distance": (lambda d2, power: d2.sqrt(), lambda d2, power: d2.rsqrt()),
    "log_distance": (lambda d2, power: 0.5 * d2.log(), lambda d2, power: d2.reciprocal()),
    "riesz": (lambda d2, power: d2.pow(-power / 2), lambda d2, power: -power * d2.pow(-power / 2 - 1)),
    "gaussian": (lambda d2, power: (-power * d2).exp(), lambda d2, power: -2 * power * (-power * d2).exp()),
}
"""Of a squared distance and the power: the kernel, and twice its derivative by the squared distance."""


class _Rows(NamedTuple):
    """The valid rows as the kernels need them."""

    kept: Tensor  # (k,) their indices
    raw: Tensor  # (k, D) in the compute dtype
    points: Tensor  # raw, normalised for cosine, centred on the global mean for the distance kernels
    norms: Tensor  # (k,) of raw for cosine, squared and of the points for the distance kernels
    variances: Tensor | None


def _prepare(rows: Tensor, kernel: str, variances: Tensor | None, valid: Tensor | None) -> _Rows:
    kept = torch.arange(rows.shape[0], device=rows.device) if valid is None else valid.nonzero().squeeze(1)
    raw = rows[kept].to(compute_dtype(rows.dtype))
    points, norms = raw, raw.new_empty(0)
    if kernel == "cosine":
        norms = raw.double().norm(dim=1).to(raw.dtype)
        points = torch.where(norms[:, None] == 0, NAN, raw / norms[:, None])
    elif kernel != "dot" and kept.numel():
        points = raw - raw.mean(0, dtype=torch.float64).to(raw.dtype)
        norms = points.square().sum(1, dtype=torch.float64).to(raw.dtype)
    return _Rows(kept, raw, points, norms, None if variances is None else variances[kept])


def _close(p: _Rows, d2: Tensor, block: slice, first: int) -> tuple[Tensor, Tensor]:
    """Indices of the pairs whose squared distance has lost digits in ``|u|^2 + |v|^2 - 2 u.v``."""
    i, j = (d2 < CLOSE * (p.norms[block, None] + p.norms[None, first:])).nonzero(as_tuple=True)
    keep = i + block.start != j + first
    return i[keep] + block.start, j[keep] + first


def _tile(p: _Rows, kernel: str, block: slice, first: int) -> Tensor:
    """Products, or squared distances, of the rows in ``block`` with the rows from ``first`` on."""
    product = p.points[block] @ p.points[first:].t()
    if kernel in PRODUCTS:
        # Without a dimension every row is zero, and no NaN among the points says so.
        return product.fill_(NAN) if kernel == "cosine" and p.points.shape[1] == 0 else product
    d2 = p.norms[block, None] + p.norms[None, first:] - 2 * product
    d2 = d2.clamp_(min=0)
    i, j = _close(p, d2, block, first)
    for part in row_blocks(i.numel(), p.raw.shape[1]):
        exact = (p.raw[i[part]] - p.raw[j[part]]).square().sum(1)
        d2[i[part] - block.start, j[part] - first] = exact
    return d2


def _value(p: _Rows, kernel: str, power: float, tile: Tensor, block: slice, first: int) -> Tensor:
    if kernel in PRODUCTS:
        return tile
    if kernel in DISTANCES:
        return DISTANCES[kernel][0](tile, power)
    return (p.variances[block, None] + p.variances[None, first:]) / (2 * tile.pow(power))


def pair_stats(
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, allow_tf32: bool
) -> tuple[Tensor, ...]:
    """``(mean, var, min, max, row_max (K,), count, row_argmax (K,))`` of the kernel over valid pairs i < j."""
    p = _prepare(rows, kernel, variances, valid)
    k, dtype = p.raw.shape[0], p.raw.dtype
    best, where = p.raw.new_full((k,), NAN), p.kept.new_full((k,), -1)
    count = 0
    mean, squares = (rows.new_zeros((), dtype=torch.float64) for _ in range(2))
    low, high = p.raw.new_full((), INF), p.raw.new_full((), -INF)
    for block in row_blocks(k, k):
        value = _value(p, kernel, power, _tile(p, kernel, block, block.start), block, block.start)
        upper = torch.ones_like(value, dtype=torch.bool).triu_(1)
        picked = value[upper]
        if picked.numel() == 0:
            continue
        # Chan's rule for the moments of a union.
        n, block_mean = picked.numel(), picked.mean(dtype=torch.float64)
        delta, count = block_mean - mean, count + n
        mean = block_mean if count == n else mean + delta * (n / count)
        squares = squares + (picked - block_mean.to(dtype)).square().sum(dtype=torch.float64)
        if count > n:
            squares = squares + delta.square() * (n * (count - n) / count)
        low, high = torch.minimum(low, picked.amin()), torch.maximum(high, picked.amax())
        # A row meets its partners in ascending order: first as a column of earlier rows, then along its own row.
        value = value.masked_fill_(~upper, -INF)
        for axis, own in ((0, slice(block.start, None)), (1, block)):
            found, first = upper.any(axis), upper.int().argmax(axis)
            index = value.argmax(axis, keepdim=True)
            top = value.gather(axis, index).squeeze(axis)
            index = torch.where(top == -INF, first, index.squeeze(axis)) + block.start
            better = found & ((top > best[own]) | top.isnan() | ((where[own] < 0) & best[own].isnan()))
            better &= ~(best[own].isnan() & (where[own] == -2))
            best[own] = torch.where(better, top, best[own])
            where[own] = torch.where(better, torch.where(top.isnan(), -2, index), where[own])  # -2: met a NaN
    if count == 0:
        mean = squares = low = high = torch.full_like(mean, NAN)
    row_max = p.raw.new_full((rows.shape[0],), NAN)
    row_argmax = p.kept.new_full((rows.shape[0],), -1)
    if k:
        row_max[p.kept] = best
        row_argmax[p.kept] = p.kept[where.clamp(min=0)].where(where >= 0, -1)
    scalars = [value.to(dtype) for value in (mean, squares / max(count, 1), low, high)]
    return (*scalars, row_max, torch.tensor(count, device=rows.device), row_argmax)


def _slope(p: _Rows, kernel: str, power: float, d2: Tensor, block: slice) -> Tensor:
    """Twice the derivative of a distance kernel by the squared distance; 0 for coincident rows."""
    if kernel in DISTANCES:
        slope = DISTANCES[kernel][1](d2, power)
    else:
        slope = -power * (p.variances[block, None] + p.variances) * d2.pow(-power - 1)
    return torch.where(d2 == 0, 0, slope)


def pair_stats_backward(
    g_mean: Tensor, g_row_max: Tensor, count: Tensor, row_argmax: Tensor,
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of ``rows (K, D)`` and of ``variances (K,)`` (size 0 without) through mean and row_max."""
    p = _prepare(rows, kernel, variances, valid)
    k = p.raw.shape[0]
    grad = torch.zeros_like(p.raw)
    g_variances = p.raw.new_zeros(0 if variances is None else k)
    place = torch.full_like(row_argmax, -1)
    place[p.kept] = torch.arange(k, device=rows.device)
    partner = row_argmax[p.kept]
    partner = place[partner.clamp(min=0)].where(partner >= 0, -1) if k else partner
    g_row = g_row_max[p.kept].where(partner >= 0, 0)
    share = g_mean / count.clamp(min=1)
    every = torch.arange(k, device=rows.device)
    for block in row_blocks(k, k):
        tile = _tile(p, kernel, block, 0)
        # The weight of a pair: its share of the mean, and the row maxima that it gives.
        weight = share.expand(tile.shape).clone()
        mine = every[block]
        weight[mine - block.start, partner[block].clamp(min=0)] += g_row[block]
        theirs = (partner >= block.start) & (partner < block.stop)
        weight[partner[theirs] - block.start, every[theirs]] += g_row[theirs]
        weight[mine - block.start, mine] = 0
        if kernel in PRODUCTS:
            grad[block] = weight @ p.points
            continue
        factor = torch.where(weight == 0, 0, weight * _slope(p, kernel, power, tile, block))
        if kernel == "cdnv":
            by_variance = torch.where(weight == 0, 0, weight * tile.pow(-power) / 2)
            g_variances[block] = by_variance.sum(1, dtype=torch.float64).to(grad.dtype)
        # Close pairs again from their differences: a large factor times a cancelled difference has no digits.
        i, j = _close(p, tile, block, 0)
        for part in row_blocks(i.numel(), p.raw.shape[1]):
            a, b = i[part], j[part]
            grad.index_add_(0, a, factor[a - block.start, b][:, None] * (p.raw[a] - p.raw[b]))
        factor[i - block.start, j] = 0
        grad[block] += factor.sum(1, keepdim=True) * p.points[block] - factor @ p.points
    if kernel == "cosine":
        grad = (grad - (grad * p.points).sum(1, keepdim=True) * p.points) / p.norms[:, None]
    full = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
    full[p.kept] = grad.to(rows.dtype)
    if variances is None:
        return full, g_variances
    full_variances = torch.zeros_like(variances)
    full_variances[p.kept] = g_variances.to(variances.dtype)
    return full, full_variances
