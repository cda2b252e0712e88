"""Target configurations of class means and classifier rows, and how far rows are from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import check_device, check_floating, check_integer, check_shape
from ..stats.blocks import blocks
from .common import check_rows, nan_like


def simplex_etf(
    classes: int, dim: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(K, D)`` unit rows of a simplex equiangular tight frame in a random orientation. Papyan, Han and Donoho 2020.

    ``sqrt(K / (K - 1)) (I - 1 1^T / K) U^T`` with orthonormal columns U: every pair has cosine -1 / (K - 1), and the
    rows sum to 0. Fixed as a classifier it is that of MASIL and its like.

    Args:
        classes: K, at least 2. dim: D, at least K - 1, or there is no such frame.
        generator: of the orientation; None: torch's own.
    """
    k, d = check_integer(classes, "classes", 2), check_integer(dim, "dim", 1)
    if d < k - 1:
        raise ValueError(f"dim: expected at least K - 1 = {k - 1}, the dimensions of a simplex of K rows, got {d}")
    # Rows of a basis of the vectors that sum to 0 (Helmert's): row j is (1, ..., 1, -j, 0, ...) / sqrt(j (j + 1)).
    steps = torch.arange(1, k, dtype=torch.float64)
    helmert = torch.ones(k - 1, k, dtype=torch.float64).tril(0) - torch.diag_embed(steps, 1)[: k - 1]
    helmert /= (steps * (steps + 1)).sqrt()[:, None]
    turn = torch.linalg.qr(torch.randn(d, k - 1, dtype=torch.float64, generator=generator))[0]
    return (math.sqrt(k / (k - 1)) * helmert.T @ turn.T).to(dtype)


def frame_error(left: Tensor, right: Tensor | None = None, *, target: str | Tensor = "orthogonal") -> Tensor:
    """``| G / |G|_F - T / |T|_F |_F`` with the Gram matrix ``G = left right^T`` of K rows; rows are used as they are.

    Args:
        left: ``(K, D)``. right: ``(K, D)``, None: ``left``.
        target: T: ``"orthogonal"``, the identity (Kini et al. 2024: means of ReLU features, not centred); or a ``(K,)``
            diagonal, as unconstrained features of unbalanced classes have (|w_c|^2, or the products of norms of w_c and
            mu_c; Dang et al. 2023); or a ``(K, K)`` matrix, such as the similarities of a hierarchy (Liang and Davis
            2023). For a simplex see :func:`simplex_error`.

    Returns:
        float64 scalar in [0, 2], 0 where the frame is met up to scale. G is formed in blocks of rows, except that a
        matrix target is there as a whole. For K > D the rank of G keeps it from a full diagonal: at least
        ``sqrt(2 - 2 sqrt(D / K))`` for the identity. NaN for K < 1.
    """
    check_rows(left, "left")
    right = left if right is None else right
    check_rows(right, "right", left)
    k = left.shape[0]
    if k < 1:
        return nan_like(left)
    target = _target(target, left)
    size = target.norm()
    columns = right.double().T
    norm = sum((left[rows].double() @ columns).square().sum() for rows in blocks(k, k)).sqrt()
    total = torch.zeros_like(norm)
    for rows in blocks(k, k):
        difference = left[rows].double() @ columns / norm
        if target.ndim == 2:
            difference = difference - target[rows] / size
        else:
            index = torch.arange(rows.stop - rows.start, device=left.device)
            difference[index, index + rows.start] -= target[rows] / size
        total = total + difference.square().sum()
    return total.sqrt()


def _target(target: str | Tensor, like: Tensor) -> Tensor:
    k = like.shape[0]
    if isinstance(target, str):
        if target != "orthogonal":
            raise ValueError(f"target: expected 'orthogonal', a (K,) diagonal or a (K, K) matrix, got {target!r}")
        return torch.ones(k, dtype=torch.float64, device=like.device)
    check_floating(target, "target")
    meaning = "(K,) or (K, K)"
    check_shape(target, "target", (k,) * min(2, max(1, target.ndim)), meaning)
    check_device(target, "target", like, "left")
    return target.double()


def unconstrained_singular_values(counts: Tensor, weight_decay: float, feature_decay: float) -> Tensor:
    """``(K,) float64`` products ``m_c = |w_c| |h_c|`` at the optimum of unconstrained features with a squared loss.

    Of ``|W H - Y|^2 / (2 N) + lW |W|^2 / 2 + lH |H|^2 / 2``, Y one-hot with ``counts (K,)`` columns of each class:
    ``m_c = max(0, 1 - N sqrt(lW lH / n_c))``, ``|w_c|^2 = m_c sqrt(n_c lH / lW)``,
    ``|h_c|^2 = m_c sqrt(lW / (n_c lH))`` (Dang et al. 2023). A class with ``n_c <= N^2 lW lH`` has collapsed to 0:
    minority collapse.
    """
    n = counts.double()
    return (1 - n.sum() * (weight_decay * feature_decay / n).sqrt()).clamp_min(0)
