"""Features and labels to a report: one pass for the classes, and with a classifier one for decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..conventions import Convention, resolve
from ..memory import available
from ..names import Nonfinite, Preset
from ..ops.checks import INTEGER, check_integer, check_shape
from ..report.measured import Measured, assemble, geometry_facts
from ..stats.arrays import Classifier
from ..stats.passes import class_pass, decision_pass

LABEL_TYPES = (*INTEGER, torch.uint16, torch.uint32, torch.uint64)
BATCH = 65536
"""Rows of a batch."""


class Part(Protocol):
    """Features and labels that are read together, in batches.

    Attributes:
        name: of the data, for the reader; empty where they have none. features, labels: their names in messages.
        dim: D. device: where the statistics are kept.
        no_classifier, no_held_out: what is told of a measurement without them.
    """

    name: str
    features: str
    labels: str
    no_classifier: str
    no_held_out: str

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features ``(n, D)`` and int64 labels ``(n)``, in an order that is always the same."""
        ...

    def label_batches(self, size: int) -> Iterator[Tensor]:
        """The labels alone."""
        ...

    def refusal(self, problem: str) -> Exception:
        """The error that says what is wrong with these data."""
        ...


def wide_labels(labels: Tensor) -> Tensor | None:
    """Labels of any type of integers as int64; None where one does not fit."""
    wide = labels.long()
    return None if labels.dtype == torch.uint64 and (wide < 0).any() else wide


def count_classes(part: Part, batch: int, ignore_index: int = -100) -> int:
    """The highest label + 1, that of rows which count nowhere aside."""
    counted = (y[y != ignore_index] for y in part.label_batches(batch))
    top = max((int(y.max()) for y in counted if y.numel()), default=-1)
    if top < 0:
        raise part.refusal(f"{part.labels}: names no class")
    return top + 1


def _check_memory(part: Part, classes: int, scatter: bool) -> None:
    """Refuses a number of classes whose statistics fit no memory, which a single wrong label asks for."""
    need = 12 * classes * part.dim + (16 * part.dim * part.dim if scatter else 0)
    free = available() if part.device.type == "cpu" else None
    if free is not None and need > free:
        raise part.refusal(
            f"statistics of {classes} classes ({part.labels} or num_classes) in {part.dim} dimensions "
            f"({part.features}) take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def measure_features(
    train: Part,
    decide: Part | None = None,
    classifier: Classifier | None = None,
    *,
    num_classes: int | None = None,
    min_count: int = 1,
    ignore_index: int = -100,
    batch: int = BATCH,
    convention: Preset | Convention = "ncops",
    scatter: bool = True,
    nonfinite: Nonfinite = "propagate",
) -> Measured:
    """One pass over ``train``; with a classifier a second one over ``decide``, which is ``train`` where it is None."""
    started = time.perf_counter()
    convention, batch = resolve(convention), check_integer(batch, "batch", 1)
    min_count = check_integer(min_count, "min_count", 1)
    classes = num_classes or (
        classifier.weight.shape[0] if classifier else count_classes(train, batch, ignore_index)
    )
    _check_memory(train, classes, scatter)
    if classifier is not None:
        check_shape(classifier.weight, "weight", (classes, train.dim), "(num_classes, D)")
    geometry = class_pass(
        train.batches(batch), classes, train.dim, min_count=min_count, scatter=scatter, nonfinite=nonfinite,
        ignore_index=ignore_index, device=train.device,
    )  # fmt: skip
    decisions = None
    notes = [train.no_classifier] if classifier is None else [train.no_held_out] if decide is None else []
    if classifier is not None:
        decisions = decision_pass(
            (decide or train).batches(batch), geometry, *classifier, convention=convention, ignore_index=ignore_index
        )
    facts = {**({"model_name": train.name} if train.name else {}), **geometry_facts(geometry)}
    if classifier is not None:
        facts["decisions_on"] = "training data" if decide is None else "held-out data"
    weight, bias = decisions.classifier if decisions is not None else (None, None)
    measured = assemble(geometry, weight, bias, decisions, convention=convention, notes=notes, facts=facts)
    measured.details["run"]["seconds"] = round(time.perf_counter() - started, 2)
    return measured
