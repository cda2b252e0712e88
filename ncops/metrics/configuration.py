"""NC2 and its generalisation: the shape that the class means form, whatever happens inside the classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import PairStats, pair_stats
from ..stats.blocks import blocks
from .common import centred, check_rows, global_mean_of, nan_like, spread

ANGLE_TILE = 512
"""Rows and columns of a tile of cosines, 2 MB. All take 1.2 times the time of ``pair_stats`` (K = 10000, D = 576)."""


class PairMoments(NamedTuple):
    """Mean, variance and standard deviation of a quantity over pairs of classes; float64 scalars."""

    mean: Tensor
    var: Tensor
    std: Tensor

    @classmethod
    def of(cls, stats: PairStats, ddof: int = 0) -> PairMoments:
        """Those of :func:`ncops.pair_stats`, variance and deviation over the number of pairs less ``ddof``."""
        pairs = stats.count.double()
        var = stats.var * pairs / (pairs - ddof) if ddof else stats.var
        return cls(stats.mean, var, var.sqrt())


def mean_norms(means: Tensor, *, global_mean: Tensor | None = None) -> Tensor:
    """``(K,) float64`` norms of the means about ``global_mean`` (None: about their own unweighted mean)."""
    origin = global_mean_of(means, global_mean)
    norms = [(means[rows].double() - origin).norm(dim=1) for rows in blocks(*means.shape)]
    return torch.cat(norms) if norms else origin.new_zeros(0)


def norm_variation(
    means: Tensor, *, global_mean: Tensor | None = None, log: bool = False, squared: bool = False, ddof: int = 0
) -> Tensor:
    """Equinorm: standard deviation over magnitude of the mean of ``|mu_c - mu_G|``. Papyan, Han and Donoho 2020, who
    have it of the classifier's rows too.

    Args:
        means: ``(K, D)``. global_mean: ``(D,)``, None: the unweighted mean of ``means``; zeros take rows as they are.
        log: of the logarithm of the norm (Wu and Papyan 2024).
        squared: of the squared norm.
        ddof: of the standard deviation; torch's own default is 1.

    Returns:
        float64 scalar, 0 for equal norms; NaN for K < 2.
    """
    if means.shape[0] < 2:
        return nan_like(means)
    norms = mean_norms(means, global_mean=global_mean)
    if squared:
        norms = norms.square()
    return spread(norms.log() if log else norms, ddof)


def pair_similarity(
    means: Tensor, *, global_mean: Tensor | None = None, similarity: str = "cosine", ddof: int = 0
) -> PairMoments:
    """Moments over pairs i < j of the cosine (or inner product) of two centred means; K x K never exists.

    Args:
        means: ``(K, D)``. global_mean: ``(D,)``, None: the unweighted mean of ``means``; zeros take rows as they are.
        similarity: ``"cosine"``, or ``"dot"`` for the raw Gram matrix of the library neural-collapse.
        ddof: of variance and standard deviation over the K (K - 1) / 2 pairs.

    A simplex has mean -1 / (K - 1) and standard deviation 0. NaN for K < 2.
    """
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity: expected 'cosine' or 'dot', got {similarity!r}")
    check_rows(means, "means")
    if means.shape[0] < 2:
        return PairMoments(*[nan_like(means)] * 3)
    return PairMoments.of(pair_stats(centred(means, global_mean), similarity), ddof)


def angle_error(means: Tensor, *, global_mean: Tensor | None = None) -> Tensor:
    """Maximal-angle equiangularity: mean over pairs i < j of ``|cos(mu_i, mu_j) + 1 / (K - 1)|``, the distance of the
    angles from those of a simplex. Papyan, Han and Donoho 2020, who have it of the classifier's rows too.

    Args:
        means: ``(K, D)``. global_mean: ``(D,)``, None: the unweighted mean of ``means``; zeros take rows as they are.

    Returns:
        float64 scalar in [0, 2], 0 for the directions of a simplex, above 0 for K > D + 1; NaN for K < 2 and where a
        row is 0. K x K never exists: tiles of 2 MB, of one triangle.
    """
    check_rows(means, "means")
    k = means.shape[0]
    if k < 2:
        return nan_like(means)
    rows = centred(means, global_mean)
    unit = rows / rows.norm(dim=1, keepdim=True)
    total = unit.new_zeros(())
    for start in range(0, k, ANGLE_TILE):
        rows = unit[start : start + ANGLE_TILE]
        tile = (rows @ rows.T).add_(1 / (k - 1)).abs()
        total = total + (tile.sum() - tile.diagonal().sum()) / 2
        for other in range(start + ANGLE_TILE, k, ANGLE_TILE):
            total = total + (rows @ unit[other : other + ANGLE_TILE].T).add_(1 / (k - 1)).abs().sum()
    return total / (k * (k - 1) / 2)


def log_uniformity(means: Tensor, *, global_mean: Tensor | None = None, center: bool = True) -> PairMoments:
    """GNC2: moments over pairs i < j of ``-ln |u_i - u_j|`` of the means as directions. Liu et al. 2023, Wu and Papyan
    2024.

    Args:
        means: ``(K, D)``. global_mean: ``(D,)``, None: the unweighted mean of ``means``.
        center: False takes the directions of the means as they are, which Wu and Papyan's tables do.

    Lower means are more uniform; a simplex has variance 0 and mean ``-ln(2 K / (K - 1)) / 2``. NaN for K < 2.
    """
    check_rows(means, "means")
    if means.shape[0] < 2:
        return PairMoments(*[nan_like(means)] * 3)
    rows = centred(means, global_mean) if center else means.double()
    stats = pair_stats(rows / rows.norm(dim=1, keepdim=True), "log_distance")
    return PairMoments(-stats.mean, stats.var, stats.var.sqrt())


def simplex_error(left: Tensor, right: Tensor) -> Tensor:
    """``| G / |G|_F - (I - 1 1^T / K) / sqrt(K - 1) |_F`` with ``G = left right^T``; both ``(K, D)``, used as they are.

    K x K never exists. For K <= D + 1, where a simplex is possible and the error can vanish, rows of G are formed in
    blocks and compared entry by entry. For larger K the error is bounded away from 0 (G has rank D at most), and the
    expansion ``sqrt(2 - 2 c)`` costs D x D only:
    ``c = (sum_c left_c.right_c - (sum left).(sum right) / K) / (sqrt(K - 1) sqrt(tr(left^T left right^T right)))``.
    """
    check_rows(left, "left")
    check_rows(right, "right", left)
    k, d = left.shape
    if k < 2:
        return nan_like(left)
    return _simplex_error_by_rows(left, right) if k <= d + 1 else _simplex_error_expanded(left, right)


def _simplex_error_by_rows(left: Tensor, right: Tensor) -> Tensor:
    k = left.shape[0]
    right = right.double()
    norm = sum((left[rows].double() @ right.T).square().sum() for rows in blocks(k, k)).sqrt()
    total = torch.zeros_like(norm)
    for rows in blocks(k, k):
        difference = left[rows].double() @ right.T / norm + (k - 1) ** -0.5 / k
        index = torch.arange(rows.stop - rows.start, device=left.device)
        difference[index, index + rows.start] -= (k - 1) ** -0.5
        total = total + difference.square().sum()
    return total.sqrt()


def _simplex_error_expanded(left: Tensor, right: Tensor) -> Tensor:
    k, d = left.shape
    zero = torch.zeros((d, d), dtype=torch.float64, device=left.device)
    gram_left, gram_right, inner = zero, zero, zero[0, 0]
    sum_left, sum_right = zero[0], zero[0]
    for rows in blocks(k, d):
        a, b = left[rows].double(), right[rows].double()
        gram_left, gram_right = gram_left + a.T @ a, gram_right + b.T @ b
        inner, sum_left, sum_right = inner + (a * b).sum(), sum_left + a.sum(0), sum_right + b.sum(0)
    norm = (gram_left * gram_right).sum().clamp_min(0).sqrt()
    cosine = (inner - sum_left @ sum_right / k) / ((k - 1) ** 0.5 * norm)
    return (2 - 2 * cosine).clamp_min(0).sqrt()


def etf_error(means: Tensor, *, global_mean: Tensor | None = None) -> Tensor:
    """Distance of the centred means' Gram matrix from a simplex equiangular tight frame. Zhu et al. 2021.

    Args:
        means: ``(K, D)``. global_mean: ``(D,)``, None: the unweighted mean of ``means``.

    Returns:
        float64 scalar in [0, 2], 0 for a simplex; NaN for K < 2. See :func:`simplex_error`; with K > D + 1 it cannot be
        0.
    """
    check_rows(means, "means")
    rows = centred(means, global_mean)
    return simplex_error(rows, rows)
