"""NC1: how much classes spread, measured against how far apart they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import pair_stats
from ..ops.checks import check_shape
from ..ops.pinv_trace import between_svd, pinv_trace, solve_trace
from .common import between_trace, centred, check_rows, nan_like


def rounding_rtol(means: Tensor, input_dtype: torch.dtype, *, global_mean: Tensor | None = None) -> float | None:
    """The ``rtol`` that drops singular values of the centred means which rounding of the features explains.

    Means accumulated in float64 carry the rounding of the features they came from. The rule is the one of
    :func:`ncops.pinv_trace`, ``4 eps |means|_F (K^-1/2 + D^-1/2)``, with the eps of float32 (half-precision features
    were rounded before any statistic saw them); float64 features need no override, so the result is None.

    Args:
        means: ``(K, D)``. input_dtype: dtype of the features. global_mean: ``(D,)`` or None.
    """
    if input_dtype == torch.float64 or means.shape[0] < 2:
        return None
    k, d = means.shape
    rows = centred(means, global_mean)
    gram = rows.T @ rows if k > d else rows @ rows.T
    if not torch.isfinite(gram).all():
        return None
    largest = torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()
    floor = 4 * torch.finfo(torch.float32).eps * means.double().norm() * (k**-0.5 + d**-0.5)
    return float(floor / largest) if largest > 0 else None


def nc1_pinv(
    within_cov: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None, divide: bool = True,
) -> Tensor:  # fmt: skip
    """``tr(Sigma_W Sigma_B^+) / K``, Sigma_B = (1/K) sum of centred outer products. Papyan, Han and Donoho 2020.

    Args:
        within_cov: ``(D, D)`` Sigma_W, divided by the number of samples.
        means: ``(K, D)`` class means.
        global_mean: ``(D,)``; None: the unweighted mean of ``means`` (Zhu et al. take the mean of all samples).
        weights: ``(K,)`` class weights of Sigma_B; None: 1/K each.
        rtol: see :func:`ncops.pinv_trace` and :func:`rounding_rtol`.
        divide: by K (Papyan's notebook does not).

    Returns:
        float64 scalar, 0 at collapse; NaN for K < 2.
    """
    check_rows(means, "means")
    if means.shape[0] < 2:
        return nan_like(means)
    return pinv_trace(within_cov, means, global_mean=global_mean, weights=weights, rtol=rtol, divide=divide)


def nc1_basis(means: Tensor, *, global_mean: Tensor | None = None, rtol: float | None = None) -> Tensor:
    """``(r, D) float64`` basis B with ``tr(Sigma_W Sigma_B^+)`` = mean of ``|B (x - mu_label)|^2`` over the samples.

    For NC1 without a D x D scatter: a second pass sums :func:`ncops.projected_sqnorms` with this basis, the labels and
    the class means as centres; divided by the number of samples (and by K) that is :func:`nc1_pinv`.
    """
    singular, basis = between_svd(means, global_mean=global_mean, rtol=rtol)
    return basis / singular[:, None]


def nc1_quotient(within_trace: Tensor, means: Tensor, *, global_mean: Tensor | None = None) -> Tensor:
    """``tr Sigma_W / tr Sigma_B``: needs no covariance matrix. Tirer et al. 2023.

    Args:
        within_trace: ``()``, tr Sigma_W. means: ``(K, D)``. global_mean: ``(D,)`` or None as in :func:`nc1_pinv`.

    Returns:
        float64 scalar, 0 at collapse; NaN for K < 2.
    """
    check_rows(means, "means")
    if means.shape[0] < 2:
        return nan_like(means)
    return torch.as_tensor(within_trace, dtype=torch.float64, device=means.device) / between_trace(means, global_mean)


def nc1_cdnv(
    class_var: Tensor, means: Tensor, *, power: float = 1.0, counts: Tensor | None = None, ddof: int = 0
) -> Tensor:
    """Class-distance normalised variance, the mean over pairs i < j of ``(v_i + v_j) / (2 |mu_i - mu_j|^(2 power))``.

    Args:
        class_var: ``(K,)``, v_c = mean squared distance of a class's samples from its mean (over n).
        means: ``(K, D)``.
        power: 1 in Galanti et al. 2021; 2 in the tables of Wu and Papyan 2024.
        counts: ``(K,)``, needed for ``ddof=1``.
        ddof: 1 turns v_c into v_c n / (n - 1); a class of one sample is then NaN.

    Returns:
        float64 scalar, 0 at collapse; NaN for K < 2, inf when two means coincide and their classes spread.
    """
    check_rows(means, "means")
    check_shape(class_var, "class_var", (means.shape[0],), "(K,)")
    variances = class_var.double()
    if ddof:
        if counts is None:
            raise ValueError(f"counts: needed for ddof={ddof}, got None")
        check_shape(counts, "counts", (means.shape[0],), "(K,)")
        variances = variances * counts / (counts - ddof).clamp_min(0)
    return pair_stats(means.double(), "cdnv", variances=variances, power=power).mean


def vci(
    within_cov: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None,
) -> Tensor:  # fmt: skip
    """Variability collapse index ``1 - tr(Sigma_T^+ Sigma_B) / rank Sigma_B``, Sigma_T = Sigma_W + Sigma_B. Xu et al.
    2023.

    Invariant to invertible linear maps of the features. The rank is the numerical one (``rtol`` as in
    :func:`ncops.pinv_trace`), so that means in a proper subspace do not read as spread.

    Returns:
        float64 scalar between 0 (collapse) and 1 (no class structure); NaN for K < 2, when all means coincide, or when
        they hold a NaN or an infinity.
    """
    check_rows(means, "means")
    if not torch.isfinite(centred(means, global_mean)).all():
        return nan_like(means)
    singular, basis = between_svd(means, global_mean=global_mean, weights=weights, rtol=rtol)
    rank = singular.shape[0]
    if means.shape[0] < 2 or rank == 0:
        return nan_like(means)
    between = singular[:, None] * basis
    total = within_cov.double() + between.T @ between
    origin = torch.zeros_like(basis[0])
    return 1 - solve_trace(total, between * rank**0.5, global_mean=origin) / rank
