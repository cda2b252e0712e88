"""The two passes over a corpus: class statistics of the train part, decisions on the held-out part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..report.collapse import collapse
from ..report.details import trajectory
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.state import StreamingState
from .load import Head, LoadedModel, body
from .progress import Progress
from .ranks import Ranks
from .windows import IGNORE, Batch, Windows


class LayerStatistics:
    """Class statistics of chosen hidden layers over the classes that the train part holds.

    States of all C classes would cost 12 bytes * C * D for each layer (340 MB for a vocabulary of 49,152 and D = 576);
    the classes that occur are known from the text beforehand, and only they get a row.
    """

    def __init__(self, layers: Sequence[int], labels: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.layers = list(layers)
        self.classes = len(labels)
        self._row = torch.full((vocabulary,), IGNORE, dtype=torch.int64, device=device)
        self._row[torch.tensor(labels, dtype=torch.int64, device=device)] = torch.arange(len(labels), device=device)
        self._statistics: list[ClassStatistics] = []

    def __bool__(self) -> bool:
        return bool(self.layers)

    def start(self, hidden: Sequence[torch.Tensor]) -> None:
        """Makes the states, once the widths of the layers are seen."""
        if not self._statistics:
            self._statistics = [
                ClassStatistics(num_classes=self.classes, dim=hidden[i].shape[-1], device=hidden[i].device)
                for i in self.layers
            ]

    def update(self, hidden: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        rows = torch.where(labels == IGNORE, labels, self._row[labels.clamp_min(0)])
        self.start(hidden)
        for layer, statistics in zip(self.layers, self._statistics, strict=True):
            statistics.update(hidden[layer], rows)

    def states(self) -> dict[str, ClassStatistics]:
        return {f"layer {i}": s for i, s in zip(self.layers, self._statistics, strict=False)}

    def restore(self, states: dict[str, dict[str, Any]]) -> None:
        """Takes up what :meth:`states` gave; nothing where no batch had been seen."""
        found = [states[f"layer {i}"] for i in self.layers if f"layer {i}" in states]
        self._statistics = [
            ClassStatistics.from_state(s["config"], {k: v for k, v in s.items() if k != "config"}) for s in found
        ]

    def all_reduce(self) -> None:
        for statistics in self._statistics:
            statistics.all_reduce(inplace=True)

    def compute(self, min_count: int, metrics: Sequence[str]) -> dict[str, Any]:
        reports = [collapse(statistics.compute(min_count=min_count)) for statistics in self._statistics]
        return trajectory("layer", self.layers, reports, metrics)


class ClassPass:
    """The train part: statistics of the features that enter the head, and of hidden layers beside them."""

    part = "train"

    def __init__(self, statistics: ClassStatistics, layers: LayerStatistics) -> None:
        self.statistics, self.layers = statistics, layers

    def states(self) -> dict[str, StreamingState]:
        return {"classes": self.statistics, **self.layers.states()}

    def restore(self, stored: dict[str, dict[str, Any]]) -> None:
        self.statistics.load_state_dict(stored["classes"])
        self.layers.restore(stored)

    def update(self, features: torch.Tensor, hidden: Sequence[torch.Tensor] | None, labels: torch.Tensor) -> None:
        self.statistics.update(features, labels)
        if self.layers:
            self.layers.update(hidden, labels)

    def all_reduce(self) -> None:
        self.statistics.all_reduce(inplace=True)
        self.layers.all_reduce()


class DecisionPass:
    """The held-out part: decisions about the features that enter the head."""

    part, layers = "held-out", None

    def __init__(self, decisions: DecisionStatistics) -> None:
        self.decisions = decisions

    def states(self) -> dict[str, StreamingState]:
        return {"decisions": self.decisions}

    def restore(self, stored: dict[str, dict[str, Any]]) -> None:
        self.decisions.load_state_dict(stored["decisions"])

    def update(self, features: torch.Tensor, hidden: Sequence[torch.Tensor] | None, labels: torch.Tensor) -> None:
        self.decisions.update(features, labels)

    def all_reduce(self) -> None:
        self.decisions.all_reduce(inplace=True)


class Corpus:
    """A model and its windows, run part by part; keeps the place on disk."""

    def __init__(
        self, loaded: LoadedModel, head: Head, windows: Windows, batch_size: int, ranks: Ranks, progress: bool | None
    ) -> None:
        self.windows, self.batch_size, self.ranks = windows, batch_size, ranks
        self.device = next(loaded.model.parameters()).device
        self.pad = getattr(loaded.tokenizer, "pad_token_id", None) or 0
        self.hide = True if not ranks.speaks else None if progress is None else not progress
        self._body = body(loaded.model, head)

    def batches(self, indices: range, what: str, done: int = 0) -> Iterator[tuple[int, Batch]]:
        """``(windows done after it, batch)`` of this rank's share of the windows, from the ``done``-th on."""
        mine = self.ranks.share(indices)
        bar = tqdm(total=len(mine), initial=done, desc=what, unit="window", disable=self.hide)
        with bar:
            for batch in self.windows.batches(mine[done:], self.batch_size, self.pad, self.device):
                done += batch.input_ids.shape[0]
                yield done, batch
                bar.update(batch.input_ids.shape[0])

    def run(self, indices: range, into: ClassPass | DecisionPass, place: Progress) -> None:
        """Fills a pass from these windows over all ranks, from its last checkpoint on."""
        done, stored = place.restore(into.part, self.device)
        if stored:
            into.restore(stored)
        since = 0
        for position, batch in self.batches(indices, into.part, done):
            into.update(*self._features(batch, into), batch.labels)
            since += 1
            if since == place.every:
                place.save(into.part, position, into.states())
                since = 0
        mine = self.ranks.share(indices)
        if since:
            place.save(into.part, len(mine), into.states())
        if self.ranks.size > 1:
            if into.layers and not mine:  # a rank without windows takes part all the same
                (batch,) = self.windows.batches(range(1), 1, self.pad, self.device)
                into.layers.start(self._features(batch, into)[1])
            into.all_reduce()

    def _features(
        self, batch: Batch, into: ClassPass | DecisionPass
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        return self._body(batch.input_ids, batch.attention_mask, bool(into.layers))
