"""How classes stand apart, from class sums alone: quantities that are written over all pairs of samples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ops.checks import check_shape
from ..ops.pinv_trace import solve_trace
from .common import between_trace, check_rows, nan_like


class ConeEffect(NamedTuple):
    """Mean cosine of two samples of one class, and of two classes; float64 scalars."""

    same: Tensor
    different: Tensor


def class_separation(unit_means: Tensor) -> Tensor:
    """``R^2 = 1 - d_w / d_t`` of cosine distances within classes and over all pairs of classes. Kornblith et al. 2021.

    ``d_w`` is the mean over classes of the mean of ``1 - cos`` over the pairs of its samples, ``d_t`` that over all
    pairs of classes; both with each sample's pair with itself. Of means of unit rows these are ``1 - |u_c|^2`` and
    ``1 - |mean of u_c|^2``.

    Args:
        unit_means: ``(K, D)`` class means of features of length 1.

    Returns:
        float64 scalar: 1 at collapse of the directions, 0 without class structure; NaN for K < 1.
    """
    check_rows(unit_means, "unit_means")
    if unit_means.shape[0] < 1:
        return nan_like(unit_means)
    means = unit_means.double()
    within, total = 1 - means.square().sum(1).mean(), 1 - means.mean(0).square().sum()
    return 1 - within / total


def cone_effect(unit_means: Tensor, counts: Tensor) -> ConeEffect:
    """Mean cosine over the pairs i < j of samples of one class, and of different classes. Hasegawa and Sato 2023.

    ``(sum_c |S_c|^2 - N) / (2 pairs)`` and ``(|sum_c S_c|^2 - sum_c |S_c|^2) / (2 pairs)`` with the class sums S of
    unit rows.

    Args:
        unit_means: ``(K, D)`` class means of features of length 1. counts: ``(K,)`` their samples.

    Returns:
        ``(same, different)``; 1 and -1 / (K - 1) for a collapsed simplex of equal classes; NaN where there is no pair.
    """
    n, sums = _sums(unit_means, counts)
    own, samples = sums.square().sum(), n.sum()
    pairs = n @ (n - 1) / 2
    others = samples * (samples - 1) / 2 - pairs
    return ConeEffect((own - samples) / 2 / pairs, (sums.sum(0).square().sum() - own) / 2 / others)


def tolerance(unit_means: Tensor, counts: Tensor) -> Tensor:
    """``E[u . u' 1{same class}]`` of two samples drawn with replacement, unit rows. Wang and Liu 2021.

    ``sum_c |S_c|^2 / N^2``. float64 scalar; ``sum_c (n_c / N)^2`` at collapse, whatever lies between the classes.
    """
    n, sums = _sums(unit_means, counts)
    return sums.square().sum() / n.sum().square()


def _sums(unit_means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    check_rows(unit_means, "unit_means")
    check_shape(counts, "counts", (unit_means.shape[0],), "(K,)")
    n = counts.double()
    return n, n[:, None] * unit_means.double()


def fisher_ratio(
    within_cov: Tensor, means: Tensor, counts: Tensor, *, rtol: float | None = None, drop: float | None = None
) -> Tensor:
    """Fisher's discriminant ratio ``tr(S_W^-1 S_B)``, ``S_B = sum_c n_c (mu_c - xbar) (mu_c - xbar)^T``.

    Args:
        within_cov: ``(D, D)``, S_W over the number of samples. means: ``(K, D)``. counts: ``(K,)``, of all samples.
        rtol: of eigenvalues of S_W that count as 0, as for :func:`ncops.solve_trace`.
        drop: leaves out coordinates whose standard deviation within classes is at most ``drop`` times the size of their
            mean, 1e-3 in the code of Hasegawa and Sato 2023; None: none.

    Returns:
        float64 scalar, infinite in principle at collapse; NaN for K < 2.
    """
    check_rows(means, "means")
    check_shape(counts, "counts", (means.shape[0],), "(K,)")
    if means.shape[0] < 2:
        return nan_like(means)
    means, within = means.double(), within_cov.double()
    shares = counts.double() / counts.sum()
    if drop is not None:
        keep = within.diagonal().clamp_min(0).sqrt() > drop * (shares @ means).abs()
        means, within = means[:, keep], within[keep][:, keep]
    return solve_trace(within, means, weights=shares, rtol=rtol)


def energy_confusion(class_var: Tensor, means: Tensor) -> Tensor:
    """Mean over pairs of classes of ``E |x - x'|^2 = v_i + v_j + |mu_i - mu_j|^2``. Chen and Deng 2019.

    Args:
        class_var: ``(K,)``, mean squared distance of a class's samples from its mean. means: ``(K, D)``.

    Returns:
        float64 scalar; NaN for K < 2. Differentiable: a metric learner is confused by maximising, or regularised by
        minimising it.
    """
    check_rows(means, "means")
    check_shape(class_var, "class_var", (means.shape[0],), "(K,)")
    k = means.shape[0]
    if k < 2:
        return nan_like(means)
    return 2 * class_var.double().mean() + 2 * k / (k - 1) * between_trace(means, None)
