"""NC1: how much classes spread, measured against how far apart they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import pair_stats
from ..ops.checks import check_shape
from ..ops.pinv_trace import between_spectrum, between_svd, pinv_trace, solve_trace
from .common import between_trace, centred, check_rows, nan_like


def rounding_rtol(means: Tensor, input_dtype: torch.dtype, *, global_mean: Tensor | None = None) -> float | None:
    """The ``rtol`` that drops singular values of the centred means which rounding of the features explains.

    Means accumulated in float64 carry the rounding of the features they came from. ``input_dtype`` of
    :func:`ncops.pinv_trace` judges every direction by itself; this is the largest it drops, in units of the largest of
    all, for code that takes one number. float64 features need no override, so the result is None.

    Args:
        means: ``(K, D)``. input_dtype: dtype of the features. global_mean: ``(D,)`` or None.
    """
    if input_dtype == torch.float64 or means.shape[0] < 2 or not torch.isfinite(centred(means, global_mean)).all():
        return None
    found = between_spectrum(means, global_mean=global_mean, input_dtype=input_dtype)
    dropped = found.s[found.dropped]
    return float(dropped[0] / found.s[0]) * (1 + 1e-9) if dropped.numel() else 0.0


def dropped_directions(
    means: Tensor, *, global_mean: Tensor | None = None, input_dtype: torch.dtype | None = None
) -> int:
    """Directions of the centred means that :func:`nc1_pinv` and :func:`vci` leave out: rounding explains their spread.

    Directions in which the means do not differ at all are not counted. 0 for means that are not finite.
    """
    check_rows(means, "means")
    if means.shape[0] < 2 or not torch.isfinite(centred(means, global_mean)).all():
        return 0
    return int(between_spectrum(means, global_mean=global_mean, input_dtype=input_dtype).dropped.sum())


def lost_directions(within_cov: Tensor) -> int:
    """Directions of ``Sigma_W (D, D)`` that are no more than its rounding, after each coordinate is scaled to 1.

    A covariance has no negative eigenvalue. Where the largest of those that rounding has made is -e, it may have made
    any eigenvalue up to e. 0 for a matrix that is not finite.
    """
    if not torch.isfinite(within_cov).all():
        return 0
    scale = within_cov.diagonal().double().rsqrt()
    scale = scale.where(scale.isfinite(), 0.0)
    scaled = within_cov.double() * scale[:, None] * scale
    scaled.diagonal()[scale == 0] = 1.0
    guard = torch.full_like(scale, 1e-10)  # float64 has rounding too
    if int(torch.linalg.cholesky_ex(scaled + guard.diag()).info) == 0:
        return 0
    values = torch.linalg.eigvalsh(scaled)
    return int((values <= -values[0]).sum())


def nc1_pinv(
    within_cov: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None, divide: bool = True, input_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """``tr(Sigma_W Sigma_B^+) / K``, Sigma_B = (1/K) sum of centred outer products. Papyan, Han and Donoho 2020.

    Args:
        within_cov: ``(D, D)`` Sigma_W, divided by the number of samples.
        means: ``(K, D)`` class means.
        global_mean: ``(D,)``; None: the unweighted mean of ``means`` (Zhu et al. take the mean of all samples).
        weights: ``(K,)`` class weights of Sigma_B; None: 1/K each.
        rtol, input_dtype: see :func:`ncops.pinv_trace`.
        divide: by K (Papyan's notebook does not).

    Returns:
        float64 scalar, 0 at collapse; NaN for K < 2.
    """
    check_rows(means, "means")
    if means.shape[0] < 2:
        return nan_like(means)
    return pinv_trace(
        within_cov, means, global_mean=global_mean, weights=weights, rtol=rtol, divide=divide, input_dtype=input_dtype
    )


def nc1_basis(
    means: Tensor, *, global_mean: Tensor | None = None, rtol: float | None = None,
    input_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """``(r, D) float64`` basis B with ``tr(Sigma_W Sigma_B^+)`` = mean of ``|B (x - mu_label)|^2`` over the samples.

    For NC1 without a D x D scatter: a second pass sums :func:`ncops.projected_sqnorms` with this basis, the labels and
    the class means as centres; divided by the number of samples (and by K) that is :func:`nc1_pinv`.
    """
    singular, basis = between_svd(means, global_mean=global_mean, rtol=rtol, input_dtype=input_dtype)
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
    rtol: float | None = None, input_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Variability collapse index ``1 - tr(Sigma_T^+ Sigma_B) / rank Sigma_B``, Sigma_T = Sigma_W + Sigma_B. Xu et al.
    2023.

    Invariant to invertible linear maps of the features. The rank is the numerical one (``rtol`` and ``input_dtype`` as
    in :func:`ncops.pinv_trace`), so that means in a proper subspace do not read as spread.

    Returns:
        float64 scalar between 0 (collapse) and 1 (no class structure); NaN for K < 2, when all means coincide, or when
        they hold a NaN or an infinity.
    """
    check_rows(means, "means")
    if not torch.isfinite(centred(means, global_mean)).all():
        return nan_like(means)
    singular, basis = between_svd(
        means, global_mean=global_mean, weights=weights, rtol=rtol, input_dtype=input_dtype
    )
    rank = singular.shape[0]
    if means.shape[0] < 2 or rank == 0:
        return nan_like(means)
    between = singular[:, None] * basis
    total = within_cov.double() + between.T @ between
    origin = torch.zeros_like(basis[0])
    return (1 - solve_trace(total, between * rank**0.5, global_mean=origin) / rank).clamp(0, 1)
