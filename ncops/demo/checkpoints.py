"""Measures a network in training, checkpoint by checkpoint, in a table that grows while you watch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..metrics.table import CHECKPOINTS, meaning, shown_in
from ..report.collapse import collapse
from ..report.console import LiveTable
from ..report.details import trajectory
from ..report.measured import Measured, assemble
from ..report.numbers import format_value
from ..stats.passes import Batches, class_pass, decision_pass

COLUMNS = {
    "accuracy": "accuracy", "nc1_quotient": "NC1", "nc1_cdnv": "CDNV", "nc2_norm_cv": "NC2 norms",
    "nc2_cos_std": "NC2 angles", "nc3_cos_mean": "NC3", "nc4_agreement": "NC4",
}  # fmt: skip
HELD_COLUMNS = {"held_out_nll": "held-out NLL", "held_out_accuracy": "held-out accuracy"}
LEFT_OUT = ("nc1_cdnv", "nc2_cos_std", "held_out_accuracy")  # of the table, on a terminal narrower than WIDE
WIDE = 126


def schedule(last: int, first: int = 25) -> list[int]:
    """0, first, 2 first, 4 first, ... and ``last``."""
    steps, step = [0], first
    while step < last:
        steps.append(step)
        step *= 2
    return [*steps, last]


class Watch:
    """Keeps one report per checkpoint.

    Args:
        train: a function that gives the (features, labels) batches of the training data under the present weights.
        classifier: a function that gives (weight, bias) at present.
        held_out: the same for data never trained on; only its NLL and accuracy are shown.
    """

    def __init__(
        self,
        title: str,
        axis: str,
        train: Callable[[], Batches],
        held_out: Callable[[], Batches],
        classifier: Callable,
        classes: int,
        min_count: int,
        quiet: bool,
    ):
        self.axis, self.classes, self.min_count = axis, classes, min_count
        self.train, self.held_out, self.classifier = train, held_out, classifier
        self.points: list[int] = []
        self.reports: list[Any] = []
        self.held: list[dict[str, float]] = []
        self.shown = {"nll": "NLL", **COLUMNS, **HELD_COLUMNS}
        if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:
            self.shown = {name: label for name, label in self.shown.items() if name not in LEFT_OUT}
        self.table = LiveTable(title, [axis, *self.shown.values()], quiet)
        self.last: tuple[Any, ...] = ()

    @torch.no_grad()
    def checkpoint(self, point: int) -> None:
        weight, bias = self.classifier()
        geometry = class_pass(self.train(), self.classes, weight.shape[1], min_count=self.min_count, scatter=True)
        decisions, held_out = (decision_pass(part(), geometry, weight, bias) for part in (self.train, self.held_out))
        report = collapse(geometry, weight, bias, decisions=decisions)
        outside = collapse(geometry, weight, bias, decisions=held_out)
        self.points.append(point)
        self.reports.append(report)
        self.held.append({name: float(outside[name]) for name in ("nll", "accuracy", "nc4_agreement")})
        self.last = (geometry, weight, bias, decisions)
        row = {**report, **{f"held_out_{name}": value for name, value in self.held[-1].items()}}
        self.table.add([str(point), *(format_value(row[name]) for name in self.shown)])

    def fit(
        self,
        optimizer: torch.optim.Optimizer,
        rates: torch.optim.lr_scheduler.LRScheduler,
        losses: Callable[[], Iterable[torch.Tensor]],
        points: Sequence[int],
    ) -> None:
        """Trains as far as the last of ``points``, at each of which there is a checkpoint.

        Args:
            losses: a function that gives the losses of the batches up to the next point of the axis, one after the
                other, each under the weights that the one before has left.
        """
        with self.table:
            self.checkpoint(0)
            for point in range(1, points[-1] + 1):
                for loss in losses():
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                rates.step()
                self.table.note(f"{self.axis} {point:,} of {points[-1]:,} · loss of the batch {loss.item():.3f}")
                if point in points:
                    self.checkpoint(point)

    def measured(self, text: Callable[[int], str], noun: str, run: dict[str, Any]) -> Measured:
        """The last checkpoint's report, with all checkpoints in its details."""
        path = trajectory(self.axis, self.points, self.reports, shown_in(CHECKPOINTS))
        path["metrics"] |= {f"held_out_{name}": [h[name] for h in self.held] for name in ("nll", "accuracy")}
        held = self.held[-1]
        note = (
            "Decisions are on the training data, as collapse is a matter of the end of training. On held-out data: "
            f"accuracy {format_value(held['accuracy'])}, NLL {format_value(held['nll'])}, "
            f"NC4 agreement {format_value(held['nc4_agreement'])}."
        )
        notes = [note, *self.story()]
        facts = {**run, "min_count": self.min_count, "decisions_on": "training data"}
        return assemble(*self.last, text=text, noun=noun, facts=facts, notes=notes, checkpoints=path)

    def story(self) -> list[str]:
        """What training has moved towards collapse and what away from it, since the network was untrained."""
        first, last = self.reports[0], self.reports[-1]
        moved: dict[bool, list[str]] = {True: [], False: []}
        for name in shown_in(CHECKPOINTS):
            far = [report.goals.distance(name, report[name]) for report in (first, last)]
            if None not in far and far[0] != far[1]:
                change = f"{meaning(name).label} {format_value(first[name])} to {format_value(last[name])}"
                moved[far[1] < far[0]].append(change)
        told = (("Towards collapse", moved[True]), ("Away from it", moved[False]))
        start = f"Beside the untrained network ({self.axis} 0), at {self.axis} {self.points[-1]:,}."
        return [f"{start} " + " ".join(f"{way}: {'; '.join(found)}." for way, found in told if found)]
