"""The two passes over a corpus: class statistics of the train part, decisions on the held-out part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..report.collapse import collapse
from ..report.details import trajectory
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.state import StreamingState
from .load import LoadedModel
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


class Corpus:
    """A model and its windows, run part by part; keeps the place on disk."""

    def __init__(self, loaded: LoadedModel, windows: Windows, batch_size: int, ranks: Ranks, progress: bool | None):
        self.model, self.windows, self.batch_size, self.ranks = loaded.model, windows, batch_size, ranks
        self.device = next(loaded.model.parameters()).device
        self.pad = getattr(loaded.tokenizer, "pad_token_id", None) or 0
        self.hide = True if not ranks.speaks else None if progress is None else not progress

    def batches(self, indices: range, what: str, done: int = 0) -> Iterator[tuple[int, Batch]]:
        """``(windows done after it, batch)`` of this rank's share of the windows, from the ``done``-th on."""
        mine = self.ranks.share(indices)
        bar = tqdm(total=len(mine), initial=done, desc=what, unit="window", disable=self.hide)
        with bar:
            for batch in self.windows.batches(mine[done:], self.batch_size, self.pad, self.device):
                done += batch.input_ids.shape[0]
                yield done, batch
                bar.update(batch.input_ids.shape[0])

    def run(
        self, part: str, indices: range, step: Callable[[Batch], None], states: Callable[[], dict[str, StreamingState]],
        place: Progress, done: int,
    ) -> None:  # fmt: skip
        """Every batch of a part through ``step``; ``states`` are stored every so many batches and at the end."""
        since = 0
        for position, batch in self.batches(indices, part, done):
            step(batch)
            since += 1
            if since == place.every:
                place.save(part, position, states())
                since = 0
        if since:
            place.save(part, len(self.ranks.share(indices)), states())


def collect_classes(
    corpus: Corpus, run: Callable, indices: range, place: Progress, vocabulary: int, dim: int,
    hidden: LayerStatistics | None,
) -> ClassStatistics:  # fmt: skip
    """Class statistics of these windows over all ranks, from the last checkpoint on; ``hidden`` is filled beside them.

    ``run(ids, mask, with hidden layers)`` gives the features of the LM head and the hidden layers.
    """
    statistics = ClassStatistics(num_classes=vocabulary, dim=dim, scatter=True, device=corpus.device)
    done, stored = place.restore("train", corpus.device)
    if stored:
        statistics.load_state_dict(stored["classes"])
        if hidden is not None:
            hidden.restore(stored)

    def step(batch: Batch) -> None:
        features, layers = run(batch.input_ids, batch.attention_mask, hidden is not None)
        statistics.update(features, batch.labels)
        if hidden is not None:
            hidden.update(layers, batch.labels)

    def states() -> dict[str, StreamingState]:
        return {"classes": statistics, **({} if hidden is None else hidden.states())}

    corpus.run("train", indices, step, states, place, done)
    if corpus.ranks.size > 1:
        statistics.all_reduce(inplace=True)
        if hidden is not None:
            if not corpus.ranks.share(indices):  # a rank without windows takes part all the same
                (batch,) = corpus.windows.batches(range(1), 1, corpus.pad, corpus.device)
                hidden.start(run(batch.input_ids, batch.attention_mask, True)[1])
            hidden.all_reduce()
    return statistics


def collect_decisions(
    corpus: Corpus, run: Callable, indices: range, place: Progress, decisions: DecisionStatistics
) -> None:
    """Fills ``decisions`` from these windows over all ranks, from the last checkpoint on."""
    done, stored = place.restore("held-out", corpus.device)
    if stored:
        decisions.load_state_dict(stored["decisions"])

    def step(batch: Batch) -> None:
        decisions.update(run(batch.input_ids, batch.attention_mask)[0], batch.labels)

    corpus.run("held-out", indices, step, lambda: {"decisions": decisions}, place, done)
    if corpus.ranks.size > 1:
        decisions.all_reduce(inplace=True)
