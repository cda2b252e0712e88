"""Features and labels in a file, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from ..errors import CommandError
from ..ops.checks import FLOATING
from ..stats.arrays import Arrays, type_name
from .features import LABEL_TYPES, wide_labels

FEATURES, LABELS = ("features", "x", "H"), ("labels", "y")


class FilePart(NamedTuple):
    """Two arrays of one file, a :class:`.features.Part`."""

    arrays: Arrays
    features: str
    labels: str

    no_classifier = (
        "No classifier was given: NC3, NC4 and everything about decisions needs its weight (--classifier FILE)."
    )
    no_held_out = "The file has no held-out part (val_features, val_labels): decisions are on the training data itself."

    @property
    def name(self) -> str:
        return self.arrays.path.name

    @property
    def dim(self) -> int:
        shape = self.arrays.shape(self.features)
        return shape[1] if len(shape) == 2 else 1  # else the first batch says what is wrong

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def refusal(self, problem: str) -> CommandError:
        return CommandError(f"{self.arrays.path}: {problem}")

    def _rows(self) -> int:
        shape, count = self.arrays.shape(self.features), self.arrays.shape(self.labels)
        if len(shape) != 2 or count != shape[:1]:
            raise self.refusal(f"expected {self.features} (N, D) and {self.labels} (N), got {shape} and {count}")
        return shape[0]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows, features, labels = self._rows(), self.arrays.rows(self.features), self.arrays.rows(self.labels)
        for start in range(0, rows, size):
            x = features(start, start + size)
            if x.dtype not in FLOATING:
                raise self.refusal(
                    f"{self.features}: expected float32, float64, bfloat16 or float16, got {type_name(x)}"
                )
            yield x, self._labels(labels, start, start + size)

    def label_batches(self, size: int) -> Iterator[torch.Tensor]:
        rows, labels = self._rows(), self.arrays.rows(self.labels)
        for start in range(0, rows, size):
            yield self._labels(labels, start, start + size)

    def _labels(self, read: Callable[[int, int], torch.Tensor], start: int, stop: int) -> torch.Tensor:
        y = read(start, stop)
        if y.dtype not in LABEL_TYPES:
            raise self.refusal(f"{self.labels}: expected integers, got {type_name(y)}")
        wide = wide_labels(y)
        if wide is None:
            raise self.refusal(f"{self.labels}: expected integers below 2^63")
        return wide
