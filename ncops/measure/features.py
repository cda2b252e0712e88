"""A file of features and labels to a report: one pass for the classes, and with a classifier one for decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..errors import CommandError
from ..report.measured import Measured, assemble, geometry_facts
from ..stats.arrays import Arrays, Classifier
from ..stats.passes import class_pass, decision_pass

FEATURES, LABELS = ("features", "x", "H"), ("labels", "y")
NO_CLASSIFIER = "No classifier was given: NC3, NC4 and everything about decisions needs its weight (--classifier FILE)."
NOT_HELD_OUT = "The file has no held-out part (val_features, val_labels): decisions are on the training data itself."


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


def _count_classes(part: Part, batch: int) -> int:
    top = max((int(y.max()) for _, y in part.batches(batch) if y.numel()), default=-1)
    if top < 0:
        raise CommandError(f"{part.arrays.path}: {part.labels} names no class")
    return top + 1


def measure_features(
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
    geometry = class_pass(train.batches(batch), classes, dim, min_count=min_count, scatter=scatter, nonfinite=nonfinite)
    decisions = None
    notes = [NO_CLASSIFIER] if classifier is None else [NOT_HELD_OUT] if decide is None else []
    if classifier is not None:
        decisions = decision_pass((decide or train).batches(batch), geometry, *classifier, convention=convention)
    facts = {"model_name": train.arrays.path.name, **geometry_facts(geometry)}
    weight, bias = decisions.classifier if decisions is not None else (None, None)
    measured = assemble(geometry, weight, bias, decisions, convention=convention, notes=notes, facts=facts)
    measured.details["run"]["seconds"] = round(time.perf_counter() - started, 2)
    return measured
