"""Features and labels in memory: :func:`measure`, one line from tensors or arrays to a report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conventions import Convention, resolve
from ..names import Nonfinite, Preset
from ..ops.checks import (
    check_floating,
    check_integer,
    check_label_values,
    check_shape,
    check_tensor,
    flatten_labels,
    raise_bad_label,
)
from ..report.collapse import CollapseReport
from ..stats.arrays import Classifier
from ..stats.batch import NONFINITE
from .features import BATCH, LABEL_TYPES, count_classes, measure_features, wide_labels

Array = Any
"""A tensor on any device, a NumPy array, or whatever else has ``__dlpack__`` or ``__array__``."""


def measure(
    features: Array,
    labels: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    val_features: Array | None = None,
    val_labels: Array | None = None,
    num_classes: int | None = None,
    min_count: int = 1,
    ignore_index: int = -100,
    convention: Preset | Convention = "ncops",
    scatter: bool = True,
    nonfinite: Nonfinite = "propagate",
    batch: int = BATCH,
) -> CollapseReport:
    """Neural collapse of features that are in memory, in one line: every metric, NC1 to NC4, as a report.

    One pass for the classes and, with a classifier, one for its decisions, in batches and on the features' device: what
    is kept beside the arguments is C x D, and D x D with scatter. Data that do not fit go batch by batch through
    :class:`ncops.ClassStatistics` and :class:`ncops.DecisionStatistics`.

    Args:
        features: ``(..., D)``, usually ``(N, D)``; float32, float64, bfloat16 or float16. A tensor on any device, a
            NumPy array (also one mapped to a file), or what has ``__dlpack__`` or ``__array__``; not a list.
        labels: ``(...)`` integer classes of any width; ``ignore_index`` rows count nowhere.
        weight: ``(C, D)`` rows of the classifier, taken in the dtype of the features, for NC3 and all decisions.
            bias: ``(C,)`` or None.
        val_features, val_labels: held-out rows for the decisions (NC4, accuracy, NLL, calibration), which are else on
            the rows themselves.
        num_classes: C; default: the rows of ``weight``, else the highest label + 1.
        min_count: rows that a class needs to be kept.
        convention: a name or a :class:`ncops.conventions.Convention`; see :func:`ncops.collapse`.
        scatter: keep the D x D scatter that ``nc1_pinv`` and ``vci`` need.
        nonfinite: a row with a NaN or an infinity spoils its class (``"propagate"``), is left out and counted
            (``"skip"``), or is an error (``"raise"``).
        batch: rows at a time.

    Returns:
        :class:`ncops.CollapseReport`; ``report.details`` has the histograms that its page shows.

    Raises:
        TypeError: a list, or anything else that is neither tensor nor array.
        ValueError: shapes or dtypes that do not fit, a label outside ``[0, C)``, held-out rows without labels or
            without a classifier, an unknown option. All before any work, but for ``nonfinite="raise"``.
    """
    settings, batch = resolve(convention), check_integer(batch, "batch", 1)
    min_count, ignore_index = check_integer(min_count, "min_count", 1), check_integer(ignore_index, "ignore_index")
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite: expected one of {', '.join(NONFINITE)}, got {nonfinite!r}")
    classes = None if num_classes is None else check_integer(num_classes, "num_classes", 1)
    train, held_out = ArrayPart(features, labels), None
    classifier = _classifier(weight, bias, train, classes)
    if (val_features is None) != (val_labels is None):
        given, other = ("val_labels", "val_features") if val_features is None else ("val_features", "val_labels")
        raise ValueError(f"{other}: expected it beside {given}, got None")
    if val_features is not None:
        if classifier is None:
            raise ValueError("weight: expected the classifier whose decisions val_features are for, got None")
        held_out = ArrayPart(val_features, val_labels, "val_features", "val_labels", like=train)
    if classes is None:
        classes = count_classes(train, batch, ignore_index) if classifier is None else classifier.weight.shape[0]
    for part in (train, held_out):
        if part is not None:
            part.check_labels(classes, ignore_index)
    return measure_features(
        train, held_out, classifier, num_classes=classes, min_count=min_count, ignore_index=ignore_index, batch=batch,
        convention=settings, scatter=bool(scatter), nonfinite=nonfinite,
    ).report  # fmt: skip


def _classifier(weight: Array | None, bias: Array | None, train: ArrayPart, classes: int | None) -> Classifier | None:
    if weight is None:
        if bias is not None:
            raise ValueError("weight: expected the rows that bias belongs to, got None")
        return None
    weight = _tensor(_array(weight, "weight"), train.device)
    check_floating(weight, "weight", 2)
    if weight.shape[0] < 1:
        raise ValueError(f"weight: expected at least one class, got shape {tuple(weight.shape)}")
    rows = weight.shape[0] if classes is None else classes
    check_shape(weight, "weight", (rows, train.dim), "(num_classes, D)")
    if bias is not None:
        bias = _tensor(_array(bias, "bias"), train.device)
        check_floating(bias, "bias", 1)
        check_shape(bias, "bias", (rows,), "(num_classes,)")
    return Classifier(weight, bias)


class ArrayPart:
    """Features and labels in memory, a :class:`.features.Part`. NumPy's become tensors batch by batch.

    Args:
        names of both in messages. like: the part whose width, dtype and device it has to have.
    """

    name = ""
    no_classifier = "No classifier was given: NC3, NC4 and everything about decisions needs its weight."
    no_held_out = "No held-out part (val_features, val_labels) was given: decisions are on the training data itself."

    def __init__(
        self, features: Array, labels: Array, x_name: str = "features", y_name: str = "labels",
        like: ArrayPart | None = None,
    ):  # fmt: skip
        self.features, self.labels = x_name, y_name
        x = _array(features, x_name)
        shape = tuple(x.shape)
        if len(shape) < 2 or shape[-1] < 1:
            raise ValueError(f"{x_name}: expected shape (N, D), got {shape}")
        if like is not None and shape[-1] != like.dim:
            raise ValueError(f"{x_name}: expected {like.features}' width, D = {like.dim}, got shape {shape}")
        first = _tensor(x[:0])
        check_floating(first, x_name)
        if like is not None and first.dtype != like.dtype:
            raise ValueError(f"{x_name}: expected {like.dtype}, the dtype of {like.features}, got {first.dtype}")
        self.dim, self.dtype = shape[-1], first.dtype
        self.device = first.device if like is None else like.device
        y = _tensor(_array(labels, y_name), self.device)
        if y.dtype in LABEL_TYPES:
            wide = wide_labels(y)
            if wide is None:
                raise ValueError(f"{y_name}: expected integers below 2^63")
            y = wide
        one = torch.empty((), dtype=self.dtype, device=self.device)
        self._y = flatten_labels(y, y_name, one.expand(shape), x_name)
        while len(shape) > 2 and shape[0] == 1:
            x, shape = x[0], shape[1:]
        self._x = x

    def check_labels(self, classes: int, ignore_index: int) -> None:
        """Raises ValueError for a label outside ``[0, classes)``; on a GPU it waits for the answer."""
        check_label_values(self._y, classes, ignore_index, self.labels)
        if self._y.device.type != "cpu":
            bad = ((self._y < 0) | (self._y >= classes)) & (self._y != ignore_index)
            if bad.any():
                raise_bad_label(self._y, classes, ignore_index, self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As many of the leading slices at once as have ``size`` rows, at least one."""
        inner = math.prod(self._x.shape[1:-1])
        step = max(1, size // max(1, inner))
        for start in range(0, self._x.shape[0], step):
            x = _tensor(self._x[start : start + step], self.device)
            yield x.reshape(-1, self.dim), self._y[start * inner : (start + step) * inner]

    def label_batches(self, size: int) -> Iterator[Tensor]:
        return iter(self._y.split(size))

    def refusal(self, problem: str) -> ValueError:
        return ValueError(problem)


def _array(value: Any, name: str) -> Tensor | np.ndarray:
    """A detached tensor, or a NumPy array whose memory is the caller's."""
    if isinstance(value, Tensor):
        check_tensor(value, name)
        if value.layout != torch.strided:
            raise ValueError(f"{name}: expected a dense tensor, got layout {value.layout}")
        return value.detach()
    if isinstance(value, torch.nn.Module):
        raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}: give its weight and bias")
    if isinstance(value, (list, tuple)) or not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        hint = f": numpy.asarray({name}) is one" if isinstance(value, (list, tuple)) else ""
        raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}{hint}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask; leave rows out by labels of ignore_index")
    if isinstance(value, np.ndarray):
        return _real(np.asarray(value), name)
    if hasattr(value, "__dlpack__"):  # which leaves an array of a GPU where it is
        try:
            return torch.from_dlpack(value).detach()
        except (RuntimeError, TypeError, ValueError, BufferError):
            if not hasattr(value, "__array__"):
                raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}") from None
    return _real(np.asarray(value), name)


def _real(array: np.ndarray, name: str) -> np.ndarray:
    """The array, of a dtype that torch has too."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind in "iub" or (kind == "f" and size <= 8):
        return array
    raise ValueError(f"{name}: expected float32, float64, float16 or integers, got {array.dtype}")


def _tensor(array: Tensor | np.ndarray, device: torch.device | None = None) -> Tensor:
    """The array as a tensor on ``device`` (None: where it is), without a copy where none is needed."""
    if not isinstance(array, Tensor):
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        array = torch.from_numpy(native if native.flags.writeable else native.copy())
    return array if device is None else array.to(device)
