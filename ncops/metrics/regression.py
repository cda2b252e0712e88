"""Neural collapse of multivariate regression. Andriopoulos, Dong, Guo, Zhao and Ross 2024."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.checks import check_beside, check_floating, check_integer


def _residual(features: Tensor, directions: Tensor) -> Tensor:
    """Mean squared part of the unit features outside the span of orthonormal ``directions (r, D)``."""
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    return (1 - (unit @ directions.T).square().sum(1)).clamp_min(0).mean()


def nrc1(features: Tensor, dim: int) -> Tensor:
    """Features collapse to the ``dim`` widest of their principal components: mean squared residual of unit features.

    Args:
        features: ``(N, D)``, centred beforehand where the convention asks for it. dim: n, the number of targets.

    Returns:
        float64 scalar between 0 (collapse) and 1.
    """
    check_floating(features, "features", 2)
    dim = check_integer(dim, "dim", 1)
    rows = features.double()
    return _residual(features, torch.linalg.eigh(rows.T @ rows)[1][:, -dim:].T)


def nrc2(features: Tensor, weight: Tensor) -> Tensor:
    """Features collapse to the span of the rows of the last layer: mean squared residual of unit features.

    Args:
        features: ``(N, D)``. weight: ``(n, D)``.

    Returns:
        float64 scalar between 0 (collapse) and 1.
    """
    check_floating(features, "features", 2)
    check_beside(weight, "weight", (None, features.shape[1]), "(n, D)", features, "features")
    left, s, rows = torch.linalg.svd(weight.double(), full_matrices=False)
    return _residual(features, rows[s > s.max() * max(weight.shape) * torch.finfo(torch.float64).eps])


def nrc3(weight: Tensor, target_cov: Tensor, gamma: float | None = None) -> Tensor:
    """``| W W^T / |.|_F - A / |A|_F |_F^2`` with ``A = Sigma_Y^(1/2) - sqrt(gamma) I``.

    Args:
        weight: ``(n, D)`` of the last layer. target_cov: ``(n, n)`` covariance of the targets.
        gamma: between 0 and the least eigenvalue of ``target_cov``; None takes the best one.

    Returns:
        float64 scalar between 0 (collapse) and 4.
    """
    check_floating(weight, "weight", 2)
    n = weight.shape[0]
    check_beside(target_cov, "target_cov", (n, n), "(n, n)", weight, "weight")
    gram = weight.double() @ weight.double().T
    gram = gram / gram.norm()
    values, vectors = torch.linalg.eigh(target_cov.double())
    roots = values.clamp_min(0).sqrt()
    along = (vectors * (gram @ vectors)).sum(0)  # the diagonal of the Gram matrix among the eigenvectors

    def error(shift: Tensor) -> Tensor:
        target = roots - shift
        return 2 - 2 * along @ target / target.norm()

    if gamma is not None:
        return error(torch.as_tensor(gamma, dtype=torch.float64, device=roots.device).sqrt())
    # The cosine of two vectors along a line has one stationary point: there, or at an end of the range.
    trace, total = along.sum(), roots.sum()
    best = (along @ roots * total - trace * roots.square().sum()) / (along @ roots * n - trace * total)
    zero = torch.zeros_like(best)
    shifts = torch.stack([zero, best.nan_to_num(0.0).clamp(zero, roots[0]), roots[0]])
    return torch.stack([error(shift) for shift in shifts]).nan_to_num(2.0).amin()
