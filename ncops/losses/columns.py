"""Losses of the columns of :class:`ncops.ops.LinearStats`, row by row."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.columns import LinearStats, need_target


def _of_targets(stats: LinearStats, values: Tensor) -> Tensor:
    return values.where(stats.valid, 0.0)


def max_suppression(stats: LinearStats) -> Tensor:
    """``max z - mean z``: MaxSup, added to the cross entropy with a factor of 0.1 to 0.2. Zhou et al. 2025.

    Label smoothing of share a adds ``a (z_y - mean z)``, which pushes a wrong row further from its label; this lowers
    the largest logit, whose ever it is. Without a target every row counts.
    """
    values = stats.max - stats.mean
    return values if stats.valid is None else _of_targets(stats, values)


def spherical_z_loss(stats: LinearStats, *, a: float = 0.1, b: float = 10.0) -> Tensor:
    """``log(1 + exp(a (b - (z_y - mean z) / std z))) / a``, std over V. De Brébisson and Vincent 2016.

    Invariant to scale and shift of a row's logits; 0 is never reached. A row of equal logits has a NaN.
    """
    need_target(stats, "stats")
    standard = (stats.target_logit - stats.mean) / stats.var.sqrt()
    return _of_targets(stats, F.softplus(a * (b - standard)) / a)


def comp_sum(stats: LinearStats, *, q: float = 0.0) -> Tensor:
    """Comp-sum losses of ``u = sum_{k != y} e^(z_k - z_y)``, which is ``e^nll - 1``. Mao, Mohri and Zhong 2023.

    ============  ==========================================================================================
    ``q = 0``     ``log(1 + u)``: cross entropy
    ``q = -1``    ``u``: the sum-exponential loss
    ``0 < q < 1`` ``(1 - (1 + u)^-q) / q``: generalised cross entropy (Zhang and Sabuncu 2018)
    ``q = 1``     ``u / (1 + u)``: mean absolute error
    ============  ==========================================================================================

    All are ``(1 - e^(-q nll)) / q``, formed without a difference of numbers near 1.
    """
    need_target(stats, "stats")
    return _of_targets(stats, stats.nll if q == 0 else -torch.expm1(-q * stats.nll) / q)


def ldr_kl(stats: LinearStats, *, temperature: float = 1.0, margin: float = 0.0) -> Tensor:
    """``lam log[(1 / V) sum_k exp((z_k + c 1{k != y} - z_y) / lam)]``. Zhu, Ying and Yang 2023.

    Args:
        stats: of logits divided by lam: ``ncops.linear_stats(x, weight, None, target, scale=1 / lam)``.
        temperature: lam, that the logits were divided by. margin: c.

    For lam = 1 and c = 0 it is the cross entropy less ``log V``.
    """
    need_target(stats, "stats")
    others = math.exp(margin / temperature) * torch.expm1(stats.nll)
    return _of_targets(stats, temperature * (torch.log1p(others) - math.log(stats.num_classes)))
