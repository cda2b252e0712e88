"""The nearest rows of each row: k nearest neighbours, exact, without the N x M distances."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from ..names import Metric
from .checks import check_beside, check_integer, flatten_rows, refuse_forward_mode
from .op import define, differentiable
from .pair_stats import check_valid
from .precision import allow_tf32

METRICS = get_args(Metric)


class NearestNeighbors(NamedTuple):
    """See :func:`nearest_neighbors`."""

    sqdist: Tensor
    index: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


def nearest_neighbors(
    x: Tensor, rows: Tensor | None = None, *, k: int, metric: Metric = "euclidean", valid: Tensor | None = None
) -> NearestNeighbors:
    """The k rows nearest to each row of ``x``, the nearest first, and the squared distances to them.

    Args:
        x: ``(..., D)`` points; float32, float64, bfloat16 or float16; any strides.
        rows: ``(M, D)`` candidates, dtype of ``x``. None: the points themselves; none is its own neighbour.
        k: how many, 1 to M (M - 1 without ``rows``).
        metric: ``"euclidean"``; or ``"cosine"``: of rows divided by their length, of which the squared distance is
            ``2 - 2 cos``; a row of zeros has no direction, and counts as NaN.
        valid: ``(M,)`` bool, the candidates to choose from; None means all.

    Returns:
        ``sqdist (..., k)`` float32 (float64 for float64 ``x``), from differences of the rows: a coincident row is at 0.
        ``index (..., k)`` int64: of equal distances the lowest. NaN and -1 where a point holds a NaN or an infinity,
        and beyond the last candidate where there are fewer than k; rows with a NaN or an infinity are nobody's
        neighbours.

    Raises:
        ValueError: shape, dtype or device mismatch, an unknown metric, a k out of range.

    Candidates are found by products about a point amid the rows, eight more than k, and ordered by their differences:
    where more of them than that are closer to each other than products in the compute dtype tell, which are found is
    that of the products. Rows of length 1e19 and more are nobody's neighbours in float32.

    Gradients flow to ``x`` through ``sqdist``, as the points that look for neighbours: the neighbours are constants,
    also where they are rows of ``x``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    flat = flatten_rows(x)
    if rows is not None:
        check_beside(rows, "rows", (None, flat.shape[1]), "(M, D)", flat, "x")
        if rows.dtype != flat.dtype:
            raise ValueError(f"rows: expected the dtype of x, {flat.dtype}, got {rows.dtype}")
    number = (flat if rows is None else rows).shape[0]
    check_valid(valid, number, flat, "x" if rows is None else "rows", "(M,)")
    k, most = check_integer(k, "k", 1), number if rows is not None else number - 1
    if k > most:
        raise ValueError(f"k: expected at most {most}, the candidates of each point, got {k}")
    refuse_forward_mode("nearest_neighbors", flat, rows)
    if metric == "cosine":
        flat, rows = _directions(flat), None if rows is None else _directions(rows.detach())
    found = torch.ops.ncops.nearest_neighbors(flat, None if rows is None else rows.detach(), k, valid, allow_tf32(x))
    if len(x.shape) != 2:
        found = tuple(t.reshape(*x.shape[:-1], k) for t in found)
    return NearestNeighbors(*found)


def _directions(rows: Tensor) -> Tensor:
    rows = rows.to(compute_dtype(rows.dtype))
    return rows / rows.norm(dim=1, keepdim=True)


def _fake(x, rows, k, *_):
    sqdist = x.new_empty((x.shape[0], k), dtype=compute_dtype(x.dtype))
    return sqdist, torch.empty_like(sqdist, dtype=torch.int64)


_INPUTS = "Tensor x, Tensor? rows, int k, Tensor? valid, bool allow_tf32"
define(f"nearest_neighbors({_INPUTS}) -> (Tensor sqdist, Tensor index)", _fake)
define(
    f"nearest_neighbors_backward(Tensor g_sqdist, Tensor sqdist, Tensor index, {_INPUTS}) -> Tensor g_x",
)
differentiable("nearest_neighbors")
