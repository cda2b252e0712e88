"""Statistics over all pairs of rows, upper triangle by row blocks, in plain PyTorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks

INF = float("inf")
NAN = float("nan")
CLOSE = 0.01  # below this share of |u|^2 + |v|^2 a squared distance is recomputed from the difference
PRODUCTS = ("dot", "cosine")
UNIT = ("cosine", "angle")
DISTANCES = {
    "angle": (lambda d2, power: 2 * (d2.sqrt() / 2).asin(), lambda d2, power: 2 * (d2 * (4 - d2)).rsqrt()),
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
    points: Tensor  # raw, normalised for cosine and angle, centred on the global mean for the distance kernels
    norms: Tensor  # (k,) of raw in float64 for cosine and angle, squared and of the points for the distance kernels
    variances: Tensor | None
    labels: Tensor | None


class _Tile(NamedTuple):
    """Pairs of the rows in a block with the rows from a first one on."""

    values: Tensor  # products, or squared distances: for angle, of unit rows, or of one and the other's opposite, ...
    opposite: Tensor | None  # ... where that is the nearer


def _prepare(
    rows: Tensor, kernel: str, variances: Tensor | None, valid: Tensor | None, labels: Tensor | None, ignore_index: int
) -> _Rows:
    good = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device) if valid is None else valid
    if labels is not None:
        good = good & (labels >= 0) & (labels != ignore_index)
    kept = good.nonzero().squeeze(1)
    raw = rows[kept].to(compute_dtype(rows.dtype))
    points, norms = raw, raw.new_empty(0)
    if kernel in UNIT:
        norms = raw.double().norm(dim=1)
        points = torch.where(norms[:, None] == 0, NAN, raw / norms[:, None].to(raw.dtype))
    elif kernel != "dot" and kept.numel():
        points = raw - raw.mean(0, dtype=torch.float64).to(raw.dtype)
        norms = points.square().sum(1, dtype=torch.float64).to(raw.dtype)
    given = [None if t is None else t[kept] for t in (variances, labels)]
    return _Rows(kept, raw, points, norms, *given)


def _close(p: _Rows, tile: _Tile, block: slice, first: int) -> tuple[Tensor, Tensor]:
    """Indices of the pairs whose squared distance has lost digits in ``|u|^2 + |v|^2 - 2 u.v``."""
    sizes = 2 if tile.opposite is not None else p.norms[block, None] + p.norms[None, first:]
    i, j = (tile.values < CLOSE * sizes).nonzero(as_tuple=True)
    keep = i + block.start != j + first
    return i[keep] + block.start, j[keep] + first


def _differences(p: _Rows, tile: _Tile, i: Tensor, j: Tensor, block: slice, first: int) -> Tensor:
    """Rows i less rows j; for angle of unit rows in float64, the former turned round where they are opposite."""
    if tile.opposite is None:
        return p.raw[i] - p.raw[j]
    sign = torch.where(tile.opposite[i - block.start, j - first], -1.0, 1.0).double()
    return p.raw[i] * (sign / p.norms[i])[:, None] - p.raw[j] / p.norms[j][:, None]


def _tile(p: _Rows, kernel: str, block: slice, first: int) -> _Tile:
    """Products, or squared distances, of the rows in ``block`` with the rows from ``first`` on."""
    product = p.points[block] @ p.points[first:].t()
    if kernel in UNIT and p.points.shape[1] == 0:
        product = product.fill_(NAN)  # without a dimension every row is zero, and no NaN among the points says so
    if kernel in PRODUCTS:
        return _Tile(product, None)
    if kernel == "angle":
        tile = _Tile((2 - 2 * product.abs()).clamp_(min=0), product < 0)
    else:
        d2 = p.norms[block, None] + p.norms[None, first:] - 2 * product
        tile = _Tile(d2.clamp_(min=0), None)
    i, j = _close(p, tile, block, first)
    for part in row_blocks(i.numel(), p.raw.shape[1]):
        exact = _differences(p, tile, i[part], j[part], block, first).square().sum(1)
        tile.values[i[part] - block.start, j[part] - first] = exact.to(p.raw.dtype)
    return tile


def _value(p: _Rows, kernel: str, power: float, tile: _Tile, block: slice, first: int) -> Tensor:
    if kernel in PRODUCTS:
        return tile.values
    if kernel in DISTANCES:
        value = DISTANCES[kernel][0](tile.values, power)
        return value if tile.opposite is None else torch.where(tile.opposite, math.pi - value, value)
    return (p.variances[block, None] + p.variances[None, first:]) / (2 * tile.values.pow(power))


def _same(p: _Rows, block: slice, first: int) -> Tensor:
    return p.labels[block, None] == p.labels[None, first:]


class _Side:
    """What has been seen of the pairs that are counted together."""

    def __init__(self, p: _Rows):
        self.dtype = p.raw.dtype
        self.best, self.where = p.raw.new_full((p.kept.numel(),), NAN), p.kept.new_full((p.kept.numel(),), -1)
        self.count = 0
        self.mean, self.squares = (p.raw.new_zeros((), dtype=torch.float64) for _ in range(2))
        self.low, self.high = p.raw.new_full((), INF), p.raw.new_full((), -INF)

    def add(self, value: Tensor, wanted: Tensor, block: slice) -> None:
        """The wanted pairs of the rows in ``block`` with the rows from its start on."""
        picked = value[wanted]
        if picked.numel() == 0:
            return
        # Chan's rule for the moments of a union.
        n, block_mean = picked.numel(), picked.mean(dtype=torch.float64)
        delta, self.count = block_mean - self.mean, self.count + n
        count = self.count
        self.mean = block_mean if count == n else self.mean + delta * (n / count)
        self.squares = self.squares + (picked - block_mean.to(self.dtype)).square().sum(dtype=torch.float64)
        if count > n:
            self.squares = self.squares + delta.square() * (n * (count - n) / count)
        self.low, self.high = torch.minimum(self.low, picked.amin()), torch.maximum(self.high, picked.amax())
        # A row meets its partners in ascending order: first as a column of earlier rows, then along its own row.
        value, best, where = value.masked_fill(~wanted, -INF), self.best, self.where
        for axis, own in ((0, slice(block.start, None)), (1, block)):
            found, first = wanted.any(axis), wanted.int().argmax(axis)
            index = value.argmax(axis, keepdim=True)
            top = value.gather(axis, index).squeeze(axis)
            index = torch.where(top == -INF, first, index.squeeze(axis)) + block.start
            better = found & ((top > best[own]) | top.isnan() | ((where[own] < 0) & best[own].isnan()))
            better &= ~(best[own].isnan() & (where[own] == -2))
            best[own] = torch.where(better, top, best[own])
            where[own] = torch.where(better, torch.where(top.isnan(), -2, index), where[own])  # -2: met a NaN

    def results(self, p: _Rows, rows: int) -> tuple[Tensor, ...]:
        mean, squares, low, high = self.mean, self.squares, self.low, self.high
        if self.count == 0:
            mean = squares = low = high = torch.full_like(mean, NAN)
        row_max, row_argmax = p.raw.new_full((rows,), NAN), p.kept.new_full((rows,), -1)
        if p.kept.numel():
            row_max[p.kept] = self.best
            row_argmax[p.kept] = p.kept[self.where.clamp(min=0)].where(self.where >= 0, -1)
        scalars = [value.to(self.dtype) for value in (mean, squares / max(self.count, 1), low, high)]
        return (*scalars, row_max, torch.tensor(self.count, device=row_max.device), row_argmax)


def pair_stats(
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, labels: Tensor | None,
    ignore_index: int, allow_tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(mean, var, min, max, row_max (K,), count, row_argmax (K,))`` of the kernel over valid pairs i < j.

    With labels each has a leading dimension of 2: pairs of one class, pairs of different classes.
    """
    p = _prepare(rows, kernel, variances, valid, labels, ignore_index)
    k = p.raw.shape[0]
    sides = [_Side(p) for _ in range(1 if labels is None else 2)]
    for block in row_blocks(k, k):
        value = _value(p, kernel, power, _tile(p, kernel, block, block.start), block, block.start)
        upper = torch.ones_like(value, dtype=torch.bool).triu_(1)
        if labels is None:
            sides[0].add(value, upper, block)
            continue
        same = _same(p, block, block.start)
        sides[0].add(value, upper & same, block)
        sides[1].add(value, upper & ~same, block)
    found = [side.results(p, rows.shape[0]) for side in sides]
    return found[0] if labels is None else tuple(torch.stack(pair) for pair in zip(*found, strict=True))


def _slope(p: _Rows, kernel: str, power: float, d2: Tensor, block: slice) -> Tensor:
    """Twice the derivative of a distance kernel by the squared distance; 0 for coincident rows."""
    if kernel in DISTANCES:
        slope = DISTANCES[kernel][1](d2, power)
    else:
        slope = -power * (p.variances[block, None] + p.variances) * d2.pow(-power - 1)
    return torch.where(d2 == 0, 0, slope)


def pair_stats_backward(
    g_mean: Tensor, g_row_max: Tensor, count: Tensor, row_argmax: Tensor,
    rows: Tensor, kernel: str, variances: Tensor | None, power: float, valid: Tensor | None, labels: Tensor | None,
    ignore_index: int, allow_tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of ``rows (K, D)`` and of ``variances (K,)`` (size 0 without) through mean and row_max."""
    p = _prepare(rows, kernel, variances, valid, labels, ignore_index)
    k = p.raw.shape[0]
    grad = torch.zeros_like(p.raw)
    g_variances = p.raw.new_zeros(0 if variances is None else k)
    place = torch.full((rows.shape[0],), -1, dtype=torch.int64, device=rows.device)
    place[p.kept] = torch.arange(k, device=rows.device)
    share = (g_mean / count.clamp(min=1)).reshape(-1)
    partners, g_rows = [], []
    for index, g in zip(row_argmax.reshape(len(share), -1), g_row_max.reshape(len(share), -1), strict=True):
        partner = index[p.kept]
        partners.append(place[partner.clamp(min=0)].where(partner >= 0, -1) if k else partner)
        g_rows.append(g[p.kept].where(partners[-1] >= 0, 0))
    every = torch.arange(k, device=rows.device)
    for block in row_blocks(k, k):
        tile = _tile(p, kernel, block, 0)
        # The weight of a pair: its share of the mean, and the row maxima that it gives.
        if labels is None:
            weight = share.expand(tile.values.shape).clone()
        else:
            weight = torch.where(_same(p, block, 0), share[0], share[1])
        mine = every[block]
        for partner, g_row in zip(partners, g_rows, strict=True):
            weight[mine - block.start, partner[block].clamp(min=0)] += g_row[block]
            theirs = (partner >= block.start) & (partner < block.stop)
            weight[partner[theirs] - block.start, every[theirs]] += g_row[theirs]
        weight[mine - block.start, mine] = 0
        if kernel in PRODUCTS:
            grad[block] = weight @ p.points
            continue
        factor = torch.where(weight == 0, 0, weight * _slope(p, kernel, power, tile.values, block))
        if kernel == "cdnv":
            by_variance = torch.where(weight == 0, 0, weight * tile.values.pow(-power) / 2)
            g_variances[block] = by_variance.sum(1, dtype=torch.float64).to(grad.dtype)
        # Close pairs again from their differences: a large factor times a cancelled difference has no digits.
        i, j = _close(p, tile, block, 0)
        for part in row_blocks(i.numel(), p.raw.shape[1]):
            a, b = i[part], j[part]
            apart = factor[a - block.start, b][:, None] * _differences(p, tile, a, b, block, 0)
            grad.index_add_(0, a, apart.to(grad.dtype))
        factor[i - block.start, j] = 0
        grad[block] += factor.sum(1, keepdim=True) * p.points[block] - factor @ p.points
    if kernel in UNIT:
        grad = (grad - (grad * p.points).sum(1, keepdim=True) * p.points) / p.norms[:, None].to(grad.dtype)
    full = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
    full[p.kept] = grad.to(rows.dtype)
    if variances is None:
        return full, g_variances
    full_variances = torch.zeros_like(variances)
    full_variances[p.kept] = g_variances.to(variances.dtype)
    return full, full_variances
