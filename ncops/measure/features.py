"""A file of features and labels to a report: one pass for the classes, and with a classifier one for decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..errors import CommandError
from ..memory import available
from ..ops.checks import FLOATING, INTEGER, check_shape
from ..report.measured import Measured, assemble, geometry_facts
from ..stats.arrays import Arrays, Classifier, type_name
from ..stats.passes import class_pass, decision_pass

FEATURES, LABELS = ("features", "x", "H"), ("labels", "y")
LABEL_TYPES = (*INTEGER, torch.uint16, torch.uint32, torch.uint64)
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
            if x.dtype not in FLOATING:
                raise CommandError(
                    f"{self.arrays.path}: {self.features}: expected float32, float64, bfloat16 or float16, "
                    f"got {type_name(x)}"
                )
            if y.dtype not in LABEL_TYPES:
                raise CommandError(f"{self.arrays.path}: {self.labels}: expected integers, got {type_name(y)}")
            wide = y.long()
            if y.dtype == torch.uint64 and (wide < 0).any():
                raise CommandError(f"{self.arrays.path}: {self.labels}: expected integers below 2^63")
            yield x, wide


def _count_classes(part: Part, batch: int) -> int:
    top = max((int(y.max()) for _, y in part.batches(batch) if y.numel()), default=-1)
    if top < 0:
        raise CommandError(f"{part.arrays.path}: {part.labels} names no class")
    return top + 1


def _check_memory(part: Part, classes: int, dim: int, scatter: bool) -> None:
    """Refuses a number of classes whose statistics fit no memory, which a single wrong label asks for."""
    need, free = 12 * classes * dim + (16 * dim * dim if scatter else 0), available()
    if free is not None and need > free:
        raise CommandError(
            f"{part.arrays.path}: statistics of {classes} classes ({part.labels} or --num-classes) in {dim} dimensions "
            f"({part.features}) take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


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
    shape = train.arrays.shape(train.features)
    dim = shape[1] if len(shape) == 2 else 1  # else the first batch says what is wrong
    _check_memory(train, classes, dim, scatter)
    if classifier is not None and len(shape) == 2:
        check_shape(classifier.weight, "weight", (classes, dim), "(num_classes, D)")
    geometry = class_pass(train.batches(batch), classes, dim, min_count=min_count, scatter=scatter, nonfinite=nonfinite)
    decisions = None
    notes = [NO_CLASSIFIER] if classifier is None else [NOT_HELD_OUT] if decide is None else []
    if classifier is not None:
        decisions = decision_pass((decide or train).batches(batch), geometry, *classifier, convention=convention)
    facts = {"model_name": train.arrays.path.name, **geometry_facts(geometry)}
    if classifier is not None:
        facts["decisions_on"] = "training data" if decide is None else "held-out data"
    weight, bias = decisions.classifier if decisions is not None else (None, None)
    measured = assemble(geometry, weight, bias, decisions, convention=convention, notes=notes, facts=facts)
    measured.details["run"]["seconds"] = round(time.perf_counter() - started, 2)
    return measured
