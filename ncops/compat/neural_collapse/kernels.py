"""Pairwise kernels between class means. The K x K grid exists only where the function returns the grid itself."""

from __future__ import annotations

from collections.abc import Callable
from math import copysign, isqrt

import torch
from torch import Tensor

from ... import ops
from .util import normalize, symm_reduce, tiling

TILE_BYTES = 64 << 20  # differences of a tile, rows x rows x D, that exist at a time


def _rows_at_once(data: Tensor, tile_size: int | None) -> int:
    return tile_size or max(1, isqrt(TILE_BYTES // max(1, data.element_size() * data.shape[1])))


def _distances(u: Tensor, v: Tensor) -> Tensor:
    """From differences: products lose the digits of close pairs."""
    return (u[:, None] - v).norm(dim=-1)


def class_dist_norm_vars(V_norms: Tensor, M: Tensor, dist_exp: float = 1.0, tile_size: int | None = None) -> Tensor:  # noqa: N803
    """``(K, K)`` of ``(v_i + v_j) / (2 |m_i - m_j|^(2 dist_exp))``; :func:`measure.variability_cdnv` needs no grid."""
    bundle = torch.cat((M, V_norms.reshape(-1, 1).to(M.dtype)), 1)

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squared = (u[:, None, :-1] - v[:, :-1]).square().sum(-1)
        return (u[:, None, -1] + v[:, -1]) / 2 / squared**dist_exp

    return tiling(bundle, kernel, _rows_at_once(M, tile_size))


def dist_kernel(data: Tensor, tile_size: int | None = None) -> Tensor:
    """``(K, K)`` distances ``|u_i - u_j|``."""
    return tiling(data, _distances, _rows_at_once(data, tile_size))


def log_kernel(data: Tensor, exponent: int = -1, tile_size: int | None = None) -> Tensor:
    """``(K, K)`` of ``exponent * ln |u_i - u_j|``: by default the negative logarithm of the distance."""
    return tiling(data, lambda u, v: exponent * _distances(u, v).log(), _rows_at_once(data, tile_size))


def riesz_kernel(data: Tensor, tile_size: int | None = None) -> Tensor:
    """``(K, K)`` of ``sign(s) |u_i - u_j|^-s`` with s = D - 2, in float64: d^-510 is no float32 number."""
    s = data.shape[-1] - 2
    return tiling(
        data.double(), lambda u, v: copysign(1, s) * _distances(u, v) ** (-s), _rows_at_once(data.double(), tile_size)
    )


def kernel_grid(
    M: Tensor, m_G: Tensor | float = 0, kernel: Callable[..., Tensor] = dist_kernel, tile_size: int | None = None,  # noqa: N803
) -> Tensor:  # fmt: skip
    """``(K, K)``: ``kernel`` of the normalised rows of ``M - m_G``."""
    return kernel(normalize(M - m_G), tile_size=tile_size)


def kernel_stats(
    M: Tensor, m_G: Tensor | float = 0, kernel: Callable[..., Tensor] = dist_kernel, tile_size: int | None = None,  # noqa: N803
) -> tuple[float, float]:  # fmt: skip
    """Mean and population variance of ``kernel`` over pairs i < j of the normalised rows of ``M - m_G``.

    The kernels of this module are computed without the grid; ``tile_size`` then changes nothing. A kernel of your own
    gets ``(data, tile_size=...)`` and returns the grid.
    """
    rows = normalize(M - m_G)
    if kernel is dist_kernel:
        stats = ops.pair_stats(rows, "distance")
        return stats.mean.item(), stats.var.item()
    if kernel is log_kernel:
        stats = ops.pair_stats(rows, "log_distance")
        return -stats.mean.item(), stats.var.item()
    if kernel is riesz_kernel:
        s = rows.shape[-1] - 2
        stats = ops.pair_stats(rows.double(), "riesz", power=s)
        return copysign(1, s) * stats.mean.item(), stats.var.item()
    grid = kernel(rows, tile_size=tile_size)
    mean = symm_reduce(grid)
    return mean.item(), symm_reduce(grid, lambda row: (row - mean).square().sum()).item()
