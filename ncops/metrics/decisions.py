"""NC4 and the quality of decisions, from counts that a decision pass has collected."""

from __future__ import annotations

import torch
from torch import Tensor


def share(hits: Tensor, counts: Tensor) -> Tensor:
    """Sum of ``hits`` over sum of ``counts``, both ``(C,)``: agreement, accuracy or NCC accuracy. NaN of nothing.

    With hits = rows on which the classifier and the nearest class mean agree this is NC4 of Wu and Papyan 2024; one
    minus it is the mismatch of Papyan, Han and Donoho 2020.
    """
    return hits.sum().double() / counts.sum().double()


def mean_nll(nll: Tensor, counts: Tensor) -> Tensor:
    """Mean of -log p(label), or of the entropy, in nats from per-class sums ``nll (C,)`` and ``counts (C,)``.

    NaN of nothing.
    """
    return nll.sum().double() / counts.sum().double()


def per_class_share(hits: Tensor, counts: Tensor) -> Tensor:
    """``(C,) float64`` share of hits of each class; NaN where a class has no rows."""
    return hits.double() / torch.where(counts > 0, counts.double(), float("nan"))
