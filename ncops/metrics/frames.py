"""Target configurations of class means and classifier rows, and how far rows are from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import check_beside, check_device, check_floating, check_integer, check_number, check_shape
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


def unconstrained_features(weight: Tensor, target: Tensor, feature_decay: float, *, tol: float = 1e-12) -> Tensor:
    """``(B, D) float64`` features that a fixed head asks for: ``argmin_h CE(W h, t) + lH |h|^2 / 2`` for each row t.

    They are ``h = W^T (t - softmax(W h)) / lH``: those of cross entropy for ``t = e_y``, those of mixup for
    ``t = lam e_i + (1 - lam) e_j`` (Fisher et al. 2024). Newton's method; the minimum is unique.

    Args:
        weight: ``(K, D)``, W, without a bias. target: ``(B, K)``, rows t that sum to 1.
        feature_decay: lH, above 0. tol: of the gradient, relative to the longest row of W.

    Raises:
        ValueError: wrong shapes, an lH of 0 or less, a weight or target that is not finite.
    """
    check_rows(weight, "weight")
    check_beside(target, "target", (None, weight.shape[0]), "(B, K)", weight, "weight")
    decay = check_number(feature_decay, "feature_decay", "it has no gradient")
    if not decay > 0:
        raise ValueError(f"feature_decay: expected a number above 0, got {decay}")
    for given, name in ((weight, "weight"), (target, "target")):
        if not bool(given.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got a NaN or an infinity")
    basis = torch.linalg.qr(weight.double().T)[0]  # of the rows of W, where the features lie
    w, t = weight.double() @ basis, target.double()
    ridge = decay * torch.eye(w.shape[1], dtype=torch.float64, device=w.device)

    def loss(h: Tensor) -> Tensor:
        z = h @ w.T
        return z.logsumexp(1) - (t * z).sum(1) + decay / 2 * h.square().sum(1)

    h = w.new_zeros(len(t), w.shape[1])
    for _ in range(200):
        z = h @ w.T
        p = z.softmax(1)
        slope = (p - t) @ w + decay * h
        if bool((slope.norm(dim=1) <= tol * w.norm(dim=1).amax()).all()):
            break
        mean = p @ w
        curvature = torch.einsum("bk,kd,ke->bde", p, w, w) - mean[:, :, None] * mean[:, None] + ridge
        step = torch.linalg.solve(curvature, slope)
        gain, size = (slope * step).sum(1), w.new_ones(len(t))
        before = loss(h) + 1e-14 * (1 + z.abs().amax(1))  # with its rounding
        for _ in range(40):  # less of a step that overshoots, which those of a small lH do
            over = loss(h - size[:, None] * step) > before - size * gain / 4
            if not bool(over.any()):
                break
            size = size.where(~over, size / 2)
        h = h - size[:, None] * step
    return h @ basis.T


def hierarchy_similarity(distance: Tensor, *, gamma: float, least: float | None = None) -> Tensor:
    """``(K, K) float64`` cosines ``S = (1 - s) e^(-gamma d / max d) + s`` of classes in a tree. Liang and Davis 2023.

    Args:
        distance: ``(K, K)``, d, symmetric, 0 on the diagonal alone; such as the height of the lowest common ancestor.
        gamma: how fast the similarity falls.
        least: s, the offset. None: the smallest for which S is positive semidefinite, so that vectors have these
            cosines: ``s = -t / (1 - t)`` with ``t = 1 / (1^T E^-1 1)`` and E the exponential. The authors' code
            takes the next one of a grid from -1 / (K - 1) down to -1.

    Raises:
        ValueError: a shape that is not (K, K) with K >= 2, a matrix that is not symmetric, an E that is not positive
            definite (distances in a tree have one that is).
    """
    check_floating(distance, "distance", 2)
    k = distance.shape[0]
    check_shape(distance, "distance", (k, k), "(K, K)")
    if k < 2:
        raise ValueError(f"distance: expected at least two classes, got {k}")
    if not torch.equal(distance, distance.T):
        raise ValueError("distance: expected a symmetric matrix of numbers, got one that is not")
    gamma = check_number(gamma, "gamma", "it has no gradient")
    exponential = (-gamma * distance.double() / distance.double().max()).exp()
    if least is None:
        lower, info = torch.linalg.cholesky_ex(exponential)
        if int(info):
            raise ValueError(
                f"distance: expected e^-(gamma d / max d) to be positive definite, got minor {int(info)} that is not"
            )
        t = 1 / torch.cholesky_solve(exponential.new_ones(k, 1), lower).sum()
        least = float(-t / (1 - t))
    least = check_number(least, "least", "it has no gradient")
    return (1 - least) * exponential + least


def similarity_frame(
    similarity: Tensor, dim: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(K, D)`` rows whose inner products are ``similarity (K, K)``, in a random orientation. Liang and Davis 2023.

    A fixed classifier for classes of a hierarchy: :func:`hierarchy_similarity` has ones on the diagonal, so rows have
    length 1. ``V sqrt(lambda) U^T`` of the eigenvectors V, with orthonormal columns U.

    Args:
        similarity: symmetric, positive semidefinite up to 1e-6 of its largest eigenvalue.
        dim: D, at least its rank. generator: of the orientation; None: torch's own.
    """
    check_floating(similarity, "similarity", 2)
    k, d = similarity.shape[0], check_integer(dim, "dim", 1)
    check_shape(similarity, "similarity", (k, k), "(K, K)")
    if k < 1:
        raise ValueError("similarity: expected at least one class, got shape (0, 0)")
    if not bool(similarity.isfinite().all()):
        raise ValueError("similarity: expected finite numbers, got a NaN or an infinity")
    values, vectors = torch.linalg.eigh(similarity.double())
    if not bool(values[0] >= -1e-6 * values[-1]):
        raise ValueError(f"similarity: expected a positive semidefinite matrix, got an eigenvalue of {values[0]:.3g}")
    kept = values > 10 * k * torch.finfo(similarity.dtype).eps * values[-1]
    rank = int(kept.sum())
    if d < rank:
        raise ValueError(f"dim: expected at least {rank}, the rank of similarity, got {d}")
    turn = torch.linalg.qr(torch.randn(d, rank, dtype=torch.float64, generator=generator))[0].to(values.device)
    return (vectors[:, kept] * values[kept].sqrt() @ turn.T).to(dtype)
