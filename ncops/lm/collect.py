"""The two passes over a corpus: class statistics of the train part, decisions on the held-out part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..report.collapse import collapse
from ..report.details import trajectory
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from .head import Head, body
from .load import LoadedModel
from .progress import Progress
from .ranks import Ranks
from .token_rows import TokenRows
from .windows import IGNORE, Batch, Windows


class LayerStatistics:
    """Class statistics of chosen hidden layers over the classes that the train part holds.

    States of all C classes would cost 12 bytes * C * D for each layer (340 MB for a vocabulary of 49,152 and D = 576);
    the classes that occur are known from the text beforehand, and only they get a row.

    Args:
        labels: the classes that occur. hidden: the states of all layers for some text, which have their widths.
    """

    def __init__(
        self, layers: Sequence[int], labels: Sequence[int], vocabulary: int, hidden: Sequence[torch.Tensor]
    ) -> None:
        device = hidden[0].device
        self._row = torch.full((vocabulary,), IGNORE, dtype=torch.int64, device=device)
        self._row[torch.tensor(labels, dtype=torch.int64, device=device)] = torch.arange(len(labels), device=device)
        self.statistics = {
            layer: ClassStatistics(num_classes=len(labels), dim=hidden[layer].shape[-1], device=hidden[layer].device)
            for layer in layers
        }

    def update(self, hidden: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        labels = labels.to(self._row.device)
        rows = torch.where(labels == IGNORE, labels, self._row[labels.clamp_min(0)])
        for layer, statistics in self.statistics.items():
            statistics.update(hidden[layer], rows.to(hidden[layer].device))

    def compute(self, min_count: int, metrics: Sequence[str]) -> dict[str, Any]:
        reports = [collapse(statistics.compute(min_count=min_count)) for statistics in self.statistics.values()]
        return trajectory("layer", list(self.statistics), reports, metrics)


class Pass:
    """A part of the corpus, and statistics of the features that enter the head and of hidden layers beside them.

    Attributes:
        states: all statistics by their names in a checkpoint. rows: what gets the columns of every scored token.
    """

    def __init__(
        self,
        part: str,
        name: str,
        statistics: ClassStatistics | DecisionStatistics,
        layers: LayerStatistics | None = None,
        rows: TokenRows | None = None,
    ) -> None:
        self.part, self.statistics, self.layers, self.rows = part, statistics, layers, rows
        self.states = {name: statistics}
        if layers is not None:
            self.states |= {f"layer {i}": of_layer for i, of_layer in layers.statistics.items()}

    def update(self, features: torch.Tensor, hidden: Sequence[torch.Tensor] | None, batch: Batch) -> None:
        columns = self.statistics.update(features, batch.labels)
        if self.layers is not None:
            self.layers.update(hidden, batch.labels)
        if self.rows is not None:
            self.rows.add(batch.windows, columns)


class Corpus:
    """A model and its windows, run part by part; keeps the place on disk."""

    def __init__(
        self, loaded: LoadedModel, head: Head, windows: Windows, batch_size: int, ranks: Ranks, progress: bool | None
    ) -> None:
        self.windows, self.batch_size, self.ranks = windows, batch_size, ranks
        self.device = head.weight.device
        self.hide = True if not ranks.speaks else None if progress is None else not progress
        self.model, self.head = loaded.model, head

    def batches(self, indices: range, what: str, done: int = 0) -> Iterator[tuple[int, Batch]]:
        """``(windows done after it, batch)`` of this rank's share of the windows, from the ``done``-th on."""
        from tqdm.auto import tqdm

        mine = self.windows.by_length(self.ranks.share(indices))
        with tqdm(total=len(mine), initial=done, desc=what, unit="window", disable=self.hide) as bar:
            for batch in self.windows.batches(mine[done:], self.batch_size, self.device):
                done += batch.input_ids.shape[0]
                yield done, batch
                bar.update(batch.input_ids.shape[0])

    def run(self, indices: range, into: Pass, place: Progress) -> None:
        """Fills a pass from these windows over all ranks, from its last checkpoint on."""
        done, stored = place.restore(into.part, self.device)
        for name, state in stored.items():
            into.states[name].load_state_dict(state)
        last = len(self.ranks.share(indices))
        for count, (position, batch) in enumerate(self.batches(indices, into.part, done), 1):
            into.update(*self.features(batch, into.layers is not None), batch)
            if count % place.every == 0 or position == last:
                place.save(into.part, position, into.states)
        if self.ranks.size > 1:
            for state in into.states.values():
                state.all_reduce(inplace=True)

    def features(self, batch: Batch, hidden: bool) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        return body(self.model, self.head, batch.input_ids, batch.attention_mask, hidden)
