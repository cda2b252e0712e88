"""How alike the classes are at one threshold of similarity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.checks import check_device, check_floating, flatten_labels
from ..stats.blocks import blocks
from .common import check_rows


class OperatingPoints(NamedTuple):
    """See :func:`operating_points`."""

    sensitivity: Tensor
    specificity: Tensor
    false_accept: Tensor
    inconsistency: Tensor


def operating_points(unit: Tensor, labels: Tensor, thresholds: Tensor) -> OperatingPoints:
    """What each class accepts and refuses at common thresholds of the cosine, and OPIS, how much classes differ in it.

    ``OPIS = mean_{c, d} (U_c(d) - mean_c U_c(d))^2`` with the utility ``U_c(d) = 2 se sp / (se + sp)``, 0 where both
    are 0: sensitivity se_c(d) is the share of the pairs inside class c whose cosine is d or more, specificity sp_c(d)
    the share of its pairs with other classes below d. Zhang et al. 2024, who take the d between two false accept
    rates, 0.01 and 0.1.

    Args:
        unit: ``(N, D)`` features of length 1. labels: ``(N,)``, all counted.
        thresholds: ``(T,)`` values of d, rising.

    Returns:
        ``sensitivity, specificity (C, T)`` of the classes that have two samples or more, in the order of their labels;
        ``false_accept (T,)``, the share of all pairs of two classes at d or above; ``inconsistency ()``, OPIS, between
        0 and 1/4. All float64; NaN where there is no pair, or a
        feature that is not finite. N x N is formed in blocks of rows. At exact collapse
        cosines are tied, and rounding decides.
    """
    check_rows(unit, "unit")
    n = len(unit)
    check_floating(thresholds, "thresholds", 1)
    check_device(thresholds, "thresholds", unit, "unit")
    if bool((thresholds.diff() < 0).any()):
        raise ValueError("thresholds: expected rising values, got some that fall")
    classes, own = flatten_labels(labels, "labels", unit, "unit").unique(return_inverse=True)
    bins = len(thresholds) + 1
    counts = torch.zeros(2 * len(classes) * bins, dtype=torch.int64, device=unit.device)
    rows, at = unit.double(), thresholds.double()
    for block in blocks(n, n):
        below = torch.bucketize((rows[block] @ rows.T).contiguous(), at, right=True)  # thresholds up to the cosine
        key = (2 * own[block, None] + (own[block, None] == own)) * bins + below
        index = torch.arange(block.start, block.stop, device=unit.device)
        others = torch.arange(n, device=unit.device) != index[:, None]
        counts += key[others].bincount(minlength=len(counts))
    # [class, of one class or of two, threshold]: pairs at the threshold or above it, and all.
    above = counts.view(-1, 2, bins).flip(2).cumsum(2).flip(2).double()
    above = above + 0 * rows.sum()  # NaN where a feature is
    kept = above[:, 1, 0] != 0
    accepted = above[:, :, 1:] / above[:, :, :1]
    sensitivity, specificity = accepted[kept, 1], 1 - accepted[kept, 0]
    both = sensitivity + specificity
    utility = (2 * sensitivity * specificity / both).where(both != 0, 0.0)
    false_accept = above[:, 0, 1:].sum(0) / above[:, 0, 0].sum()
    return OperatingPoints(sensitivity, specificity, false_accept, (utility - utility.mean(0)).square().mean())
