"""Intrinsic dimension, from the distances to the nearest neighbours of each point."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.checks import check_floating


def lid_mle(distances: Tensor, *, numerator: str = "k", eps: float = 0.0) -> Tensor:
    """Local intrinsic dimension by maximum likelihood. Levina and Bickel 2004, Amsaleg et al. 2015.

    ``-m / sum_{j < k} log(r_j / r_k)``, which gives the k-th neighbour as a scale only.

    Args:
        distances: ``(N, k)`` to the k nearest neighbours, in rising order, the point itself not among them.
        numerator: m: ``"k"``, as LDReg (Huang et al. 2024) and Amsaleg have it, or ``"k-1"``, without the bias of a
            factor k / (k - 1), as scikit-dimension has it.
        eps: added to the ratio, 1e-4 in LDReg's code.

    Returns:
        ``(N,)`` in the dtype of the distances; differentiable.
    """
    k = _check(distances, 2)
    if numerator not in ("k", "k-1"):
        raise ValueError(f"numerator: expected 'k' or 'k-1', got {numerator!r}")
    logs = (distances[:, :-1] / distances[:, -1:] + eps).log().sum(1)
    return -(k if numerator == "k" else k - 1) / logs


def lid_moments(distances: Tensor) -> Tensor:
    """Local intrinsic dimension by the method of moments, ``m / (r_k - m)`` with the mean m of r_j, j < k.

    Amsaleg et al. 2018; the one that LDReg trains with. ``distances (N, k)`` as for :func:`lid_mle`; ``(N,)``.
    """
    _check(distances, 2)
    mean = distances[:, :-1].mean(1)
    return mean / (distances[:, -1] - mean)


def two_nn(distances: Tensor, *, fit: str = "slope", discard: float = 0.1) -> Tensor:
    """Intrinsic dimension of a set from the ratio of each point's two nearest distances. Facco et al. 2017.

    Args:
        distances: ``(N, 2)`` or more columns, of which two are used.
        fit: ``"slope"`` of ``-log(1 - i / N)`` on ``log(r2 / r1)`` in rising order through the origin, or ``"mle"``,
            ``N / sum log(r2 / r1)``.
        discard: share of the largest ratios that the slope leaves out.

    Returns:
        float64 scalar. It is too low for many dimensions: 24 for a Gaussian of 30 with 800 points.
    """
    _check(distances, 2)
    if fit not in ("slope", "mle"):
        raise ValueError(f"fit: expected 'slope' or 'mle', got {fit!r}")
    ratios = (distances[:, 1].double() / distances[:, 0].double()).log().sort().values
    n = len(ratios)
    if fit == "mle":
        return n / ratios.sum()
    kept = int(n * (1 - discard))
    x, y = ratios[:kept], -(1 - torch.arange(kept, dtype=torch.float64, device=ratios.device) / n).log()
    return x @ y / (x @ x)


def _check(distances: Tensor, least: int) -> int:
    check_floating(distances, "distances", 2)
    k = distances.shape[1]
    if k < least:
        raise ValueError(f"distances: expected at least {least} neighbours of each point, got shape (N, {k})")
    return k
