"""Diffusion spectral entropy: how many directions a diffusion over the samples has. Liao et al. 2024."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.checks import check_floating, check_integer, check_number, flatten_labels
from .common import nan_like


def diffusion_spectral_entropy(x: Tensor, *, sigma: float = 10.0, t: float = 1.0) -> Tensor:
    """``-sum q log2 q`` of the eigenvalues' shares ``q = |lambda|^t / sum |lambda|^t`` of a walk over the samples.

    The walk is ``D^-1 G`` with ``G = e^(-d^2 / 2 sigma^2)`` and its row sums D. Its eigenvalues are those of
    ``D^(-1/2) G D^(-1/2)``, the trivial one, 1, among them (older code of the authors leaves that out).

    Args:
        x: ``(N, D)``. The N x N matrix and its eigenvalues are formed, in float64: take a sample of 10,000 or less.
        sigma: of the kernel. t: steps of the walk.

    Returns:
        float64 scalar in bits, between 0 (all points alike) and ``log2 N`` (none near another). NaN for N < 1 and
        for a NaN or an infinity in x.
    """
    check_floating(x, "x", 2)
    sigma, t = _positive(sigma, "sigma"), _positive(t, "t")
    if len(x) == 0 or not bool(x.isfinite().all()):
        return nan_like(x)
    rows = x.double() / (math.sqrt(2) * sigma)
    kernel = (-torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()).exp()
    root = kernel.sum(1).rsqrt()
    values = torch.linalg.eigvalsh(root[:, None] * kernel * root).abs() ** t
    return torch.special.entr(values / values.sum()).sum() / math.log(2)


def diffusion_spectral_information(
    x: Tensor, labels: Tensor, *, sigma: float = 10.0, t: float = 1.0, draws: int = 5,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """DSMI with the classes: ``sum_c (n_c / N) [DSE of n_c samples of all - DSE of class c]``.

    The first is a mean over ``draws`` of ``torch.randperm(N, generator=generator)[:n_c]``, class after class in rising
    order, so that a small class is not taken for a simple one.

    Args:
        x: ``(N, D)``. labels: ``(N,)``, all counted. sigma, t: see :func:`diffusion_spectral_entropy`.
        draws: samples per class. generator: on the CPU; None: torch's own.

    Returns:
        float64 scalar in bits, about 0 where classes are like any other samples; NaN for N < 1.
    """
    check_floating(x, "x", 2)
    labels = flatten_labels(labels, "labels", x, "x")
    draws = check_integer(draws, "draws", 1)
    found = []
    for label, count in zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True):
        of_all = [
            diffusion_spectral_entropy(x[torch.randperm(len(x), generator=generator)[:count]], sigma=sigma, t=t)
            for _ in range(draws)
        ]
        own = diffusion_spectral_entropy(x[labels == label], sigma=sigma, t=t)
        found.append(count / len(x) * (torch.stack(of_all).mean() - own))
    return torch.stack(found).sum() if found else nan_like(x)


def _positive(value: float, name: str) -> float:
    found = check_number(value, name, "it has no gradient")
    if not found > 0:
        raise ValueError(f"{name}: expected a number above 0, got {found}")
    return found
