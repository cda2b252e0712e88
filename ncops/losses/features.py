"""Losses of features: class by class, or over all pairs of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import class_moments, linear_stats, pair_stats
from ..ops.checks import check_number, flatten_labels


def class_spread(x: Tensor, labels: Tensor, centers: Tensor, *, ignore_index: int = -100) -> Tensor:
    """``(1 / C) sum_c (1 / n_c) sum |x - m_c|^2`` about learned centres: L_NC1 for long tails. Liu et al. 2023.

    Args:
        x: ``(N, D)``. labels: ``(N,)``.
        centers: ``(C, D)``, learned with the network. A class without rows adds 0, and is counted in C.

    Returns:
        a scalar; gradients flow to x and centers.
    """
    moments = class_moments(x, labels, centers.shape[0], center=centers, ignore_index=ignore_index)
    return (moments.sqnorms / moments.counts.clamp(min=1)).mean()


def mean_angle(means: Tensor, *, center: bool = True, clamp: float = 0.99999) -> Tensor:
    """``-mean_c arccos(max_{c' != c} cos(m_c, m_c'))``: L_NC2 for long tails. Liu et al. 2023.

    Args:
        means: ``(C, D)`` class means, centres or classifier rows, at least two. center: on their own mean first.
        clamp: of the cosine, whose arccos has an infinite slope at 1.

    Returns:
        a scalar in radians, least for a simplex: ``-arccos(-1 / (C - 1))``.
    """
    rows = means - means.mean(0) if center else means
    closest = pair_stats(rows, "cosine").row_max
    return -closest.clamp(-clamp, clamp).arccos().mean()


def uniformity(unit: Tensor, *, t: float = 2.0) -> Tensor:
    """``log E e^(-t |u - u'|^2)`` over pairs of different rows of length 1. Wang and Isola 2020.

    N x N never exists. Lower is more uniform; ``-4 t`` at the least.
    """
    return pair_stats(unit, "gaussian", power=t).mean.log()


def supervised_contrastive(unit: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss, the mean over the rows that have a positive. Khosla et al. 2020.

    ``-1 / |P(i)| sum_{j in P(i)} [u_i.u_j / tau - log sum_{l != i} e^(u_i.u_l / tau)]``, with P(i) the other rows of
    the class. The sums over positives are products with class sums, and the log-sum-exp is that of ``linear_stats`` of
    the rows as their own classifier, so that N x N never exists.

    Args:
        unit: ``(N, D)`` features of length 1. labels: ``(N,)``, all counted. temperature: tau.

    Returns:
        a scalar; NaN where no row has a positive. Its gradient flows through both sides of each pair.
    """
    tau = check_number(temperature, "temperature", "divide the features by its root")
    classes, own = flatten_labels(labels, "labels", unit, "unit").unique(return_inverse=True)
    counts = own.bincount(minlength=len(classes))
    sums = class_moments(unit, own, len(classes)).sums
    positives = counts[own] - 1
    alike = (unit * sums[own]).sum(1) - unit.square().sum(1)
    # Without the row itself: its logit, of size 1 / tau, is the target's, and 1 - p of it is exact.
    stats = linear_stats(unit, unit, None, torch.arange(len(unit), device=unit.device), scale=1 / tau)
    others = stats.lse + torch.log(-torch.expm1(-stats.nll))
    values = others - alike / tau / positives.clamp(min=1)
    return values.where(positives > 0, 0.0).sum() / (positives > 0).sum()
