"""Scores of how far a sample is from the training distribution: higher is further in, lower is out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..ops import nearest_class_mean
from ..ops.checks import check_beside, check_floating, check_integer
from .common import check_rows


def whitening(within_cov: Tensor) -> Tensor:
    """``(D, D) float64`` W with ``W Sigma W^T = 1`` where Sigma is a positive definite ``(D, D)``.

    Distances of ``x @ W.T`` are Mahalanobis distances. ValueError where Sigma is not positive definite: add a ridge to
    its diagonal, or take a subspace.
    """
    check_floating(within_cov, "within_cov", 2)
    lower, info = torch.linalg.cholesky_ex(within_cov.double())
    if int(info):
        raise ValueError(
            "within_cov: expected a positive definite matrix, got one whose leading minor of order "
            f"{int(info)} is not positive: add a ridge to its diagonal"
        )
    eye = torch.eye(len(lower), dtype=torch.float64, device=lower.device)
    return torch.linalg.solve_triangular(lower, eye, upper=False)


def mahalanobis_score(x: Tensor, means: Tensor, within_cov: Tensor) -> Tensor:
    """``-min_c (x - mu_c)^T Sigma_W^-1 (x - mu_c)``. Lee et al. 2018.

    N x K never exists: the nearest mean of whitened features is found by :func:`ncops.nearest_class_mean`.

    Args:
        x: ``(N, D)``. means: ``(K, D)``. within_cov: ``(D, D)``, positive definite.

    Returns:
        ``(N,)`` in the compute dtype of x; differentiable in no argument.
    """
    check_rows(means, "means")
    check_beside(x, "x", (None, means.shape[1]), "(N, D)", means, "means")
    matrix, origin = whitening(within_cov), means.double().mean(0)
    dtype = compute_dtype(x.dtype)
    rows = ((x.double() - origin) @ matrix.T).to(dtype)
    return -nearest_class_mean(rows, ((means.double() - origin) @ matrix.T).to(dtype)).sqdist


class PrincipalSpace(NamedTuple):
    """A mean and orthonormal directions of the training features, widest first; float64."""

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, total_cov: Tensor, mean: Tensor, k: int) -> PrincipalSpace:
        """The ``k`` widest directions of a covariance ``(D, D)``."""
        check_floating(total_cov, "total_cov", 2)
        k = check_integer(k, "k", 1)
        if k > total_cov.shape[0]:
            raise ValueError(f"k: expected at most the {total_cov.shape[0]} dimensions of total_cov, got {k}")
        vectors = torch.linalg.eigh(total_cov.double())[1]
        return cls(mean.double(), vectors[:, -k:].flip(1).T)


def neco_score(x: Tensor, space: PrincipalSpace, max_logit: Tensor | None = None) -> Tensor:
    """``|P (x - mean)| / |x|``, times the largest logit where it is given. Ben Ammar et al. 2024.

    Args:
        x: ``(N, D)`` features, standardised beforehand where the training features were. The norm in the denominator is
            not centred.
        space: of the training features. max_logit: ``(N,)``, ``stats.max``; the paper leaves it out for ResNet.

    Returns:
        ``(N,) float64``; between 0 and 1 without a logit for centred features.
    """
    check_beside(x, "x", (None, len(space.mean)), "(N, D)", space.mean, "space.mean")
    rows = x.double()
    score = ((rows - space.mean) @ space.directions.T).norm(dim=1) / rows.norm(dim=1)
    return score if max_logit is None else score * max_logit.double()


def virtual_logit_scale(x: Tensor, space: PrincipalSpace, max_logit: Tensor) -> Tensor:
    """alpha of ViM: mean largest logit over mean residual norm, of training features. Wang et al. 2022."""
    return max_logit.double().mean() / residual_norm(x, space).mean()


def residual_norm(x: Tensor, space: PrincipalSpace) -> Tensor:
    """``(N,) float64`` norm of what ``x - mean`` has outside the principal space."""
    check_beside(x, "x", (None, len(space.mean)), "(N, D)", space.mean, "space.mean")
    rows = x.double() - space.mean
    inside = rows @ space.directions.T
    return (rows - inside @ space.directions).norm(dim=1)


def vim_score(x: Tensor, space: PrincipalSpace, lse: Tensor, alpha: Tensor | float) -> Tensor:
    """``lse - alpha |residual|``: the energy against a virtual logit of the residual. Wang et al. 2022.

    Args:
        x: ``(N, D)``. space: of the training features, about the point that the head sends to 0, ``-pinv(W) b``.
        lse: ``(N,)`` log-sum-exp of the logits, :func:`ncops.linear_stats`. alpha: :func:`virtual_logit_scale`.
    """
    return lse.double() - alpha * residual_norm(x, space)
