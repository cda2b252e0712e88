"""The two passes that a callback makes: class statistics of the training data, decisions on the evaluation data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..conventions import Convention
from ..metrics.table import NAMES, SCATTER, needing
from ..model import evaluating, features_into, find_classifier, prove_product, rows
from ..names import Preset
from ..report.collapse import CollapseReport, collapse
from ..stats.collectives import dist
from ..stats.passes import class_pass, decision_pass
from .loaders import same_data, to_device, untouched_randomness

MEANS_FROM = ("train", "eval")

Unpack = Callable[[Any], tuple[Any, Tensor]]
"""A batch -> what the model is called with (a mapping as keywords, a tuple as arguments, or one argument), and labels.
"""
Align = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Features as they enter the classifier, and labels as the batch has them -> rows and labels that belong together."""


@dataclass(kw_only=True, eq=False, repr=False)
class TwoPasses:
    """What both callbacks take and do; they say what it means."""

    classifier = None  # a field of theirs, where it has its place among the arguments without a name
    train_loader: Iterable[Any] | None = None
    means_from: str = "train"
    max_batches: int | None = None
    min_count: int = 1
    scatter: bool = True
    metrics: Sequence[str] | None = None
    prefix: str = "nc"
    convention: Preset | Convention = "ncops"
    ignore_index: int = -100
    unpack: Unpack | None = None
    align: Align | None = None
    report: CollapseReport | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.means_from not in MEANS_FROM:
            raise ValueError(f"means_from: expected one of {', '.join(MEANS_FROM)}, got {self.means_from!r}")
        if self.max_batches is not None and self.max_batches < 1:
            raise ValueError(f"max_batches: expected at least 1 or None, got {self.max_batches}")
        unknown = [name for name in self.metrics or () if name not in NAMES]
        if unknown:
            raise ValueError(f"metrics: expected names out of {', '.join(NAMES)}, got {', '.join(unknown)}")

    def flat(self, report: CollapseReport, name: str = "") -> dict[str, float]:
        """``prefix/metric -> value``, the same names at every evaluation, and how much they rest on."""
        chosen = self.metrics or [n for n in NAMES if self.scatter or n not in needing(SCATTER)]
        values = {n: report[n] for n in chosen}
        values |= {n: float(report.coverage[n]) for n in ("classes_kept", "samples", "decision_samples")}
        place = f"{self.prefix}/{name}/" if name else f"{self.prefix}/"
        return {place + n: value for n, value in values.items()}

    def prove(self, model: nn.Module, inputs: Any, features: Callable[[Any], Tensor]) -> None:
        """Raises ValueError for a model that must not be measured; called once, with the first inputs."""

    def measure(
        self,
        model: nn.Module,
        train: Any,
        evaluation: Any,
        limit: int | None = None,
        *,
        align: Align | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> CollapseReport:
        """Both passes over this rank's batches, one batch at a time, summed over the ranks: the same report on each.

        ``train`` and ``evaluation`` are loaders, of the latter the first ``limit`` batches count; ``align`` stands in
        for one that the user has not given, ``precision`` makes the context that the model runs in. Random generators
        and the mode of every submodule are put back.
        """
        rank, ranks = world()
        model = unwrapped(model)
        module = find_classifier(model, self.classifier)
        weight, bias = rows(module)
        shared = {"all_ranks": ranks > 1, "ignore_index": self.ignore_index}

        with untouched_randomness(), evaluating(model), features_into(module) as trap:
            proved = False

            def features(loader: Any, batches: int | None, drawn: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
                nonlocal proved
                for batch in same_data(loader, batches, rank, ranks, drawn=drawn):
                    inputs, labels = self.unpack(to_device(batch, weight.device))
                    with precision():
                        x = trap.run(lambda inputs=inputs: _call(model, inputs))
                        if not proved:
                            with trap.disarmed():
                                prove_product(module, x)
                            self.prove(model, inputs, lambda inputs: trap.run(lambda: _call(model, inputs)))
                            proved = True
                    yield _matched(x, labels.to(x.device), self.align or align)

            first = (evaluation, limit) if self.means_from == "eval" else (train, self.max_batches)
            geometry = class_pass(
                features(*first, drawn=self.means_from == "train"), *weight.shape,
                min_count=self.min_count, scatter=self.scatter, device=weight.device, **shared,
            )  # fmt: skip
            # Under autocast the features come in another dtype than the rows: the pass takes what autocast multiplies.
            decisions = decision_pass(
                features(evaluation, limit), geometry, weight, bias,
                convention=self.convention, scale=scale, softcap=softcap, **shared,
            )  # fmt: skip
            return collapse(geometry, *decisions.classifier, decisions=decisions, convention=self.convention)


def split_labels(batch: Any, names: Sequence[str]) -> tuple[dict[str, Any], Tensor] | None:
    """The keywords of the model and the labels of a mapping with one of these names; None for anything else."""
    name = next((name for name in names if isinstance(batch, Mapping) and name in batch), None)
    return None if name is None else ({n: value for n, value in batch.items() if n != name}, batch[name])


def kind(batch: Any) -> str:
    """What a batch is, for an error."""
    return f"keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__


def world() -> tuple[int, int]:
    """``(rank, number of ranks)`` of torch.distributed; ``(0, 1)`` without it."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that torch.compile and data-parallel wrappers hold: their forward would wait for other ranks."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


def _matched(x: Tensor, labels: Tensor, align: Align | None) -> tuple[Tensor, Tensor]:
    if align is not None:
        x, labels = align(x, labels)
    if tuple(labels.shape) != tuple(x.shape[:-1]):
        raise ValueError(
            f"labels: expected shape {tuple(x.shape[:-1])}, one label per row that enters the classifier, "
            f"got {tuple(labels.shape)}; align= can pick the rows and labels that belong together"
        )
    return x, labels
