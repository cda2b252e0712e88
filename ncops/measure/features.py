"""A file of features and labels to a report: safetensors or npz, read in batches, never pickle."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import CommandError
from ..report.collapse import collapse
from ..report.details import Measured, class_rows, decision_details, geometry_details
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.geometry import ClassGeometry

FEATURES, LABELS = ("features", "x", "H"), ("labels", "y")
WEIGHT, BIAS = (
    ("weight", "W", "classifier.weight", "fc.weight", "lm_head.weight"),
    ("bias", "b", "classifier.bias", "fc.bias", "lm_head.bias"),
)


class Arrays:
    """Named arrays of one file; rows of an array are read as they are asked for.

    Raises:
        CommandError: if the file is missing, of another format, or holds Python objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[str, np.ndarray] = {}
        if not self.path.is_file():
            raise CommandError(f"no file {str(path)!r}")
        try:
            if self.path.suffix == ".safetensors":
                from safetensors import safe_open

                self._file: Any = safe_open(str(self.path), framework="pt")
                self.names: list[str] = list(self._file.keys())
            elif self.path.suffix == ".npz":
                self._file = np.load(self.path, allow_pickle=False)
                self.names = list(self._file.files)
            else:
                raise CommandError(f"{self.path}: expected a .safetensors or .npz file")
        except CommandError:
            raise
        except (OSError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise CommandError(
                f"{self.path} is not a readable {self.path.suffix} file: {str(error).splitlines()[0]}"
            ) from None
        except Exception as error:  # safetensors raises a class of its own, derived from Exception only
            raise CommandError(f"{self.path} is not a readable {self.path.suffix} file: {error}") from None

    def find(self, wanted: str | None, usual: Sequence[str], option: str) -> str | None:
        """The array that ``wanted`` names, else the first usual name that is there, else None.

        Raises:
            CommandError: if ``wanted`` is not in the file.
        """
        if wanted is not None:
            if wanted not in self.names:
                raise CommandError(
                    f"{option}: {self.path} has no array {wanted!r}, it has {', '.join(self.names) or 'none'}"
                )
            return wanted
        return next((name for name in usual if name in self.names), None)

    def require(self, wanted: str | None, usual: Sequence[str], what: str, option: str) -> str:
        name = self.find(wanted, usual, option)
        if name is None:
            raise CommandError(
                f"{self.path}: no {what}: expected an array named {' or '.join(usual)}, "
                f"got {', '.join(self.names) or 'none'} ({option} names it)"
            )
        return name

    def rows(self, name: str) -> Callable[[int, int], torch.Tensor]:
        """A function (start, stop) -> rows of the array as a tensor. One in a zip archive is read once, as a whole."""
        if self.path.suffix == ".safetensors":
            part = self._file.get_slice(name)
            return lambda start, stop: part[start:stop]
        array = self._array(name)
        return lambda start, stop: torch.from_numpy(np.ascontiguousarray(array[start:stop]))

    def _array(self, name: str) -> np.ndarray:
        if name not in self._read:
            try:
                self._read[name] = self._file[name]
            except ValueError as error:
                raise CommandError(f"{self.path}: {name} cannot be read without pickle: {error}") from None
        return self._read[name]

    def shape(self, name: str) -> tuple[int, ...]:
        if self.path.suffix == ".safetensors":
            return tuple(self._file.get_slice(name).get_shape())
        return tuple(self._array(name).shape)

    def tensor(self, name: str) -> torch.Tensor:
        """The whole array."""
        return self.rows(name)(0, self.shape(name)[0])


class Part(NamedTuple):
    """Features and labels that are read together, in batches."""

    arrays: Arrays
    features: str
    labels: str

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        shape, count = self.arrays.shape(self.features), self.arrays.shape(self.labels)
        if len(shape) != 2 or count != shape[:1]:
            raise CommandError(
                f"{self.arrays.path}: expected {self.features} (N, D) and {self.labels} (N), got {shape} and {count}"
            )
        features, labels = self.arrays.rows(self.features), self.arrays.rows(self.labels)
        for start in range(0, shape[0], size):
            x, y = features(start, start + size), labels(start, start + size)
            if y.dtype.is_floating_point or y.dtype in (torch.bool, torch.complex64, torch.complex128):
                raise CommandError(
                    f"{self.arrays.path}: {self.labels}: expected integers, got {str(y.dtype).removeprefix('torch.')}"
                )
            yield x, y.long()


class Classifier(NamedTuple):
    """Rows (C, D) and bias (C) of a linear classifier."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def read_classifier(path: Path | None, features: Arrays, weight: str | None, bias: str | None) -> Classifier | None:
    """The classifier from its own file, or from the features file where that holds one, or None.

    Raises:
        CommandError: if the file that was named has no weight.
    """
    arrays = features if path is None else Arrays(path)
    name = arrays.find(weight, WEIGHT, "--weight-key")
    if name is None:
        if path is None:
            return None
        name = arrays.require(weight, WEIGHT, "classifier weight", "--weight-key")
    other = arrays.find(bias, BIAS, "--bias-key")
    tensor = arrays.tensor(name)
    if tensor.dim() != 2:
        raise CommandError(f"{arrays.path}: {name}: expected (C, D), got {tuple(tensor.shape)}")
    return Classifier(tensor, None if other is None else arrays.tensor(other))


def _count_classes(part: Part, batch: int) -> int:
    top = max((int(y.max()) for _, y in part.batches(batch) if y.numel()), default=-1)
    if top < 0:
        raise CommandError(f"{part.arrays.path}: {part.labels} names no class")
    return top + 1


def _common_dtype(classifier: Classifier, like: torch.dtype) -> Classifier:
    """The classifier in the dtype of the features: linear_stats takes one dtype."""
    return Classifier(classifier.weight.to(like), None if classifier.bias is None else classifier.bias.to(like))


def measure(
    train: Part,
    decide: Part | None = None,
    classifier: Classifier | None = None,
    *,
    num_classes: int | None = None,
    min_count: int = 1,
    batch: int = 65536,
    convention: str = "ncops",
    scatter: bool = True,
    nonfinite: str = "propagate",
) -> Measured:
    """One pass over ``train``; with a classifier a second one over ``decide``, which is ``train`` where it is None."""
    started = time.perf_counter()
    classes = num_classes or (classifier.weight.shape[0] if classifier else _count_classes(train, batch))
    dim = train.arrays.shape(train.features)[1]
    statistics = ClassStatistics(num_classes=classes, dim=dim, scatter=scatter, nonfinite=nonfinite)
    dtype = None
    for x, y in train.batches(batch):
        statistics.update(x, y)
        dtype = x.dtype
    geometry: ClassGeometry = statistics.compute(min_count=min_count)
    del statistics
    decisions = None
    if classifier is not None:
        classifier = _common_dtype(classifier, dtype or torch.float32)
        decisions = DecisionStatistics(geometry, classifier.weight, classifier.bias, convention=convention)
        for x, y in (decide or train).batches(batch):
            decisions.update(x, y)
        report = collapse(geometry, classifier.weight, classifier.bias, decisions=decisions, convention=convention)
    else:
        report = collapse(geometry, convention=convention)
    weight = classifier.weight if classifier else None
    details = geometry_details(geometry, weight)
    if decisions is not None:
        details["histograms"].update(decision_details(decisions))
    details["classes"] = class_rows(geometry, weight, decisions, lambda c: f"class {c}", noun="class")
    details["notes"] = []
    if classifier is None:
        details["notes"].append(
            "No classifier was given: NC3, NC4 and everything about decisions needs its weight (--classifier FILE)."
        )
    elif decide is None:
        details["notes"].append(
            "The file has no held-out part (val_features, val_labels): decisions are on the training data itself."
        )
    details["run"] = {
        "model_name": train.arrays.path.name,
        "dim": geometry.dim,
        "dtype": str(dtype).removeprefix("torch."),
        "min_count": min_count,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return Measured(report, details)
