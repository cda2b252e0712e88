"""The two passes of a measurement over batches of features and labels: class geometry, then decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .classes import ClassStatistics
from .decisions import DecisionStatistics
from .geometry import ClassGeometry

Batches = Iterable[tuple[Tensor, Tensor]]
"""Features ``(..., D)`` and integer labels ``(...)``, batch by batch."""


def class_pass(
    batches: Batches, num_classes: int, dim: int, *, min_count: int = 1, all_ranks: bool = False, **options: Any
) -> ClassGeometry:
    """The geometry of all batches; ``options`` are those of :class:`ncops.ClassStatistics`.

    Args:
        all_ranks: sum over the ranks of torch.distributed; every rank must call it.
    """
    statistics = ClassStatistics(num_classes, dim, **options)
    for x, labels in batches:
        statistics.update(x, labels)
    if all_ranks:
        statistics.all_reduce(inplace=True)
    return statistics.compute(min_count=min_count)


def decision_pass(
    batches: Batches,
    geometry: ClassGeometry,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    all_ranks: bool = False,
    **options: Any,
) -> DecisionStatistics:
    """The decisions on all batches of a classifier, which is taken in the dtype of the features.

    ``options`` are those of :class:`ncops.DecisionStatistics`, whose ``classifier`` tells what was taken.
    """
    decisions = DecisionStatistics(geometry, *in_dtype_of(geometry, weight, bias), **options)
    for x, labels in batches:
        decisions.update(x, labels)
    if all_ranks:
        decisions.all_reduce(inplace=True)
    return decisions


def in_dtype_of(
    geometry: ClassGeometry, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A classifier in the dtype of the features: :func:`ncops.linear_stats` takes one dtype."""
    dtype = geometry.input_dtype
    return None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)
