"""What is left of a training pass once it is over: the geometry of the kept classes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import tables
from ..ops.checks import check_device, check_floating, check_integer, check_shape
from .blocks import blocks

if TYPE_CHECKING:
    from .classes import ClassStatistics

FREQUENT = 10
"""Coverage reports how many classes have at least this many rows."""


@dataclass(frozen=True, repr=False)
class ClassGeometry:
    """Means, variances and counts of K kept classes, and pooled numbers of all classes.

    Made by :meth:`ncops.ClassStatistics.compute`. Everything has K rows, not ``num_classes``.

    Attributes:
        classes: ``(K,) int64`` ascending: which classes are kept.
        counts: ``(K,) int64`` rows of each.
        class_var: ``(K,) float64``, tr Sigma_c = mean squared distance of a class's rows from its mean (divided by n).
        means: ``(K, D) float64``.
        within_cov: ``(D, D) float64``, pooled within-class covariance Sigma_W over all counted rows, kept class or not,
            divided by ``num_samples``; None without ``scatter=True``.
        within_trace: ``() float64``, its trace, known with and without scatter.
        global_mean: ``(D,) float64``, unweighted mean of the kept class means.
        sample_mean: ``(D,) float64``, mean of all counted rows.
        num_samples: rows counted, over all classes.
        num_classes: C, the range of the labels.
        input_dtype: dtype of the features; decides which singular values count as rounding.
        variances: ``(K, D) float64``, variance of each class in each dimension (divided by n); None without
            ``diagonal=True``.
        coverage: numbers that say what the geometry rests on; see :func:`ncops.collapse`.
    """

    classes: Tensor
    counts: Tensor
    class_var: Tensor
    means: Tensor
    within_cov: Tensor | None
    within_trace: Tensor
    global_mean: Tensor
    sample_mean: Tensor
    num_samples: int
    num_classes: int
    input_dtype: torch.dtype = torch.float32
    coverage: dict[str, Any] = field(default_factory=dict)
    variances: Tensor | None = None

    def __repr__(self) -> str:
        return tables.short_repr(self, vars(self))

    @property
    def num_kept(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    @property
    def device(self) -> torch.device:
        return self.means.device

    def to(self, device: torch.device | str) -> ClassGeometry:
        """The same geometry with its tensors on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass
class PooledRows:
    """Sums over all rows of all classes, kept or not, before anything is divided; those of disjoint classes add up.

    Attributes:
        trace: ``() float64``, sum over the classes of the squared distances of their rows from their mean.
        total: ``(D,) float64``, sum of the rows.
        within: ``(D, D) float64``, sum of the outer products of the rows' distances from their class mean, or None.
        samples: rows counted. classes_seen, classes_frequent: classes with rows, with at least ``FREQUENT`` rows.
        skipped, ignored: rows left out.
    """

    trace: Tensor
    total: Tensor
    within: Tensor | None
    samples: int
    classes_seen: int
    classes_frequent: int
    skipped: int
    ignored: int


def kept_classes(state: ClassStatistics, min_count: int) -> Tensor:
    """The classes with at least ``min_count`` rows, ``(K,) int64`` ascending; raises as ``compute`` does."""
    min_count = check_integer(min_count, "min_count")
    if min_count < 1:
        raise ValueError(f"min_count: expected at least 1 (a class without rows has no mean), got {min_count}")
    if int(state.invalid) > 0:
        raise ValueError(f"labels: {int(state.invalid)} rows had a label outside [0, {state.num_classes})")
    return (state.counts >= min_count).nonzero()[:, 0]


def describe_classes(state: ClassStatistics, classes: Tensor) -> tuple[Tensor, Tensor]:
    """``(tr Sigma_c (P,), means (P, D))`` of P classes with rows, float64."""
    n = state.counts[classes].double()
    means = state.sums[classes]
    means /= n[:, None]
    class_var = (state.sqnorms[classes] / n - means.square().sum(1)).clamp_min(0)
    means += state.center[classes].double()
    return class_var, means


def class_variances(state: ClassStatistics, classes: Tensor) -> Tensor:
    """Variances by dimension ``(P, D) float64`` of P classes with rows."""
    n = state.counts[classes].double()[:, None]
    found = state.squares[classes]
    found /= n
    return found.sub_((state.sums[classes] / n).square_()).clamp_min_(0)


def pool_rows(state: ClassStatistics) -> PooledRows:
    """The sums over every class with rows."""
    counted = state.counts.nonzero()[:, 0]
    trace = state.sums.new_zeros(())
    total = state.sums.new_zeros(state.dim)
    within = None if state.scatter is None else state.scatter.clone()
    for rows in blocks(counted.numel(), state.dim):
        classes = counted[rows]
        n = state.counts[classes].double()
        sums = state.sums[classes]
        drift = sums / n[:, None]
        trace += (state.sqnorms[classes] - (drift * sums).sum(1)).clamp_min(0).sum()
        if within is not None:
            within -= drift.T @ sums
        total += sums.sum(0)
        total += n @ state.center[classes].double()
    return PooledRows(
        trace=trace,
        total=total,
        within=within,
        samples=int(state.counts.sum()),
        classes_seen=counted.numel(),
        classes_frequent=int((state.counts >= FREQUENT).sum()),
        skipped=int(state.skipped),
        ignored=int(state.ignored),
    )


def class_geometry(
    classes: Tensor, counts: Tensor, class_var: Tensor, means: Tensor, pooled: PooledRows, *, num_classes: int,
    min_count: int, input_dtype: torch.dtype | None, variances: Tensor | None = None,
) -> ClassGeometry:  # fmt: skip
    """The geometry of K kept classes (arguments as its attributes) among all rows; takes ``means`` over as it is."""
    samples = pooled.samples
    rows = samples if samples else float("nan")
    within = pooled.within
    return ClassGeometry(
        classes=classes,
        counts=counts,
        class_var=class_var,
        means=means,
        within_cov=None if within is None else (within + within.T) / (2 * rows),
        within_trace=pooled.trace / rows,
        global_mean=means.mean(0),
        sample_mean=pooled.total / rows,
        num_samples=samples,
        num_classes=num_classes,
        input_dtype=input_dtype or torch.float32,
        variances=variances,
        coverage={
            "classes": num_classes,
            "classes_seen": pooled.classes_seen,
            "classes_kept": classes.numel(),
            "min_count": min_count,
            f"classes_with_{FREQUENT}_samples": pooled.classes_frequent,
            "samples": samples,
            "samples_in_kept": int(counts.sum()),
            "skipped_rows": pooled.skipped,
            "ignored_rows": pooled.ignored,
        },
    )


def check_geometry(geometry: Any) -> None:
    """Raises TypeError for anything else, such as features or the statistics that a geometry is computed from."""
    if not isinstance(geometry, ClassGeometry):
        hint = ""
        if isinstance(geometry, Tensor) or hasattr(geometry, "__array__"):
            hint = (
                ": it is what ClassStatistics.compute() returns; from features in one line it is "
                "ncops.measure(features, labels, weight, bias)"
            )
        elif hasattr(geometry, "compute"):  # which arrays of dask have too
            hint = ": give .compute() of it"
        raise TypeError(f"geometry: expected ClassGeometry, got {type(geometry).__name__}{hint}")


def check_head(geometry: ClassGeometry, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raises ValueError for a classifier that is not one of all classes of this geometry."""
    if weight is not None:
        check_floating(weight, "weight", 2)
        check_shape(weight, "weight", (geometry.num_classes, geometry.dim), "(num_classes, D)")
        check_device(weight, "weight", geometry.means, "geometry")
    if bias is not None:
        check_floating(bias, "bias", 1)
        check_shape(bias, "bias", (geometry.num_classes,), "(num_classes,)")
