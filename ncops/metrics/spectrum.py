"""How many directions a matrix has, from its singular values ``s``; eigenvalues of a covariance are their squares.

All take ``s (r,)``, non-negative, in any order, and return float64 scalars; NaN where all are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import check_floating


def _shares(s: Tensor, power: float) -> Tensor:
    check_floating(s, "s", 1)
    values = s.double() ** power
    return values / values.sum()


def spectral_entropy(s: Tensor, *, power: float = 2, normalize: bool = False) -> Tensor:
    """``-sum q log q`` of the shares ``q = s^power / sum s^power``, in nats.

    Args:
        power: 2 for shares of the variance, 1 for those of the singular values.
        normalize: divided by ``log r``, so that it lies between 0 and 1.
    """
    entropy = torch.special.entr(_shares(s, power)).sum()
    return entropy / math.log(len(s)) if normalize else entropy


def effective_rank(s: Tensor, *, power: float = 1) -> Tensor:
    """``exp`` of the spectral entropy, between 1 and r. Roy and Vetterli 2007; of shares of the variance, ``power=2``.

    RankMe (Garrido et al. 2023) is that of the features with ``power=1``, up to an epsilon of 1e-7 in its shares.
    """
    return spectral_entropy(s, power=power).exp()


def participation_ratio(s: Tensor) -> Tensor:
    """``(sum s^2)^2 / sum s^4``, between 1 and r: the inverse of the mean share of variance."""
    return 1 / _shares(s, 2).square().sum()


def stable_rank(s: Tensor) -> Tensor:
    """``|A|_F^2 / |A|_2^2 = sum s^2 / max s^2``, between 1 and r."""
    return 1 / _shares(s, 2).max()


def top_energy(s: Tensor, k: int) -> Tensor:
    """Share of ``sum s^2`` that the k largest hold."""
    return _shares(s, 2).sort(descending=True).values[:k].sum()


def power_law(s: Tensor, *, first: int = 0, last: int | None = None) -> Tensor:
    """alpha of eigenvalues ``lambda_i ~ i^-alpha``, by least squares on logarithms. alpha-ReQ, Agrawal et al. 2022.

    Args:
        s: singular values; ``lambda = s^2``.
        first, last: the range of the eigenvalues, in falling order, that is fitted, as of a slice; zeros are left out.
    """
    check_floating(s, "s", 1)
    values = s.double().square().sort(descending=True).values[first:last]
    rank = torch.arange(first + 1, first + 1 + len(values), dtype=torch.float64, device=s.device)
    x, y = rank[values > 0].log(), values[values > 0].log()
    x, y = x - x.mean(), y - y.mean()
    return -(x @ y) / (x @ x)
