"""ncops as torchmetrics: neural collapse of a stream of features, and running means of logit statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..backends.dtypes import outside_autocast
from ..conventions import Convention, resolve
from ..metrics.table import PAIRS, SCATTER, WEIGHT, needing
from ..model import Classifier, rows
from ..names import Nonfinite, Preset
from ..ops import linear_stats, logit_stats
from ..ops.checks import FLOATING, check_floating, check_integer, check_number, check_shape, check_softcap, shape
from ..report.collapse import CollapseReport, collapse
from ..stats.batch import NONFINITE
from ..stats.classes import ClassStatistics
from ..stats.geometry import ClassGeometry
from ._metric_state import ExactMetric

__all__ = ["LogitStatistics", "NeuralCollapse"]

DUALITY = needing(WEIGHT)
GEOMETRY = tuple(name for name in needing(PAIRS) if name not in DUALITY)


class NeuralCollapse(ExactMetric):
    """NC1 to NC3 of features and labels; a ``torchmetrics.Metric`` around :class:`ncops.ClassStatistics`.

    ``update(features, target)``: ``(..., D)`` and ``(...)``. ``compute()``: a dictionary of float64 scalars,
    ``nc1_pinv`` and so on (:data:`ncops.report.NAMES`), those that the arguments allow. NC4 and accuracy need
    a second pass: ``ncops.DecisionStatistics(metric.geometry(), weight, bias)``.

    Between ranks the states are summed (``ClassStatistics.all_reduce``), not gathered; a ``dist_sync_fn`` given by the
    user gathers with that function and then merges. ``forward`` costs one more state of ``C * D`` numbers and a
    ``compute`` per batch: prefer ``update`` for many classes.

    Args:
        num_classes: C. dim: D.
        classifier: for the ``nc3_*``: a module (its rows are read at every ``compute``, and the metric does not own
            it), a ``(C, D)`` weight, or ``(weight, bias)``. Also an attribute that can be set later.
        scatter: also ``nc1_pinv`` and ``vci``, for ``D * D`` float64.
        min_count: samples that a class needs to be kept.
        convention: as in :func:`ncops.collapse`.
        nonfinite, ignore_index: as in :class:`ncops.ClassStatistics`.
        kwargs: of every torchmetrics Metric.
    """

    higher_is_better = None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        classifier: Classifier = None,
        *,
        scatter: bool = True,
        min_count: int = 1,
        convention: Preset | Convention = "ncops",
        nonfinite: Nonfinite = "propagate",
        ignore_index: int = -100,
        **kwargs: Any,
    ):
        super().__init__(classifier, **kwargs)
        self.convention, self.min_count = resolve(convention), check_integer(min_count, "min_count", 1)
        fresh = ClassStatistics(num_classes, dim, scatter, nonfinite=nonfinite, ignore_index=ignore_index)
        if classifier is not None and not is_lazy(getattr(classifier, "weight", None)):  # that has no shape yet
            check_shape(rows(classifier)[0], "classifier", (fresh.num_classes, fresh.dim), "(num_classes, dim)")
        self._config = {name: value for name, value in fresh.config().items() if name != "input_dtype"}
        self.center: Tensor
        self.meta: Tensor
        for name, tensor in self._as_states(fresh).items():
            self.add_state(name, tensor, dist_reduce_fx="sum")

    # -- states <-> ClassStatistics ------------------------------------------------------------------------------------

    def _as_states(self, statistics: ClassStatistics) -> dict[str, Tensor]:
        """The statistics' tensors, and what else tells two of them apart, as tensors that torchmetrics can carry."""
        tensors = statistics.tensors()
        device = statistics.device
        if statistics.center is None:
            tensors["center"] = torch.zeros((0, statistics.dim), device=device)
        dtype = -1 if statistics.input_dtype is None else FLOATING.index(statistics.input_dtype)
        # Collections share the states of metrics that have equal ones, and these two arguments make them unequal.
        settings = [dtype, NONFINITE.index(statistics.nonfinite), statistics.ignore_index]
        return {**tensors, "meta": torch.tensor(settings, device=device)}

    def _statistics(self, states: Mapping[str, Tensor] | None = None) -> ClassStatistics:
        """ClassStatistics over these states, without a copy; by default over the metric's own."""
        states = self.metric_state if states is None else states
        absent = [name for name in self._defaults if name not in states]
        if absent:
            raise ValueError(f"incoming_state: expected the states {', '.join(self._defaults)}; {absent[0]} is missing")
        dtype = int(states["meta"][0])
        tensors = {name: states[name] for name in self._defaults if name != "meta"}
        if dtype < 0:
            del tensors["center"]
        name = None if dtype < 0 else str(FLOATING[dtype]).removeprefix("torch.")
        return ClassStatistics.from_state({**self._config, "input_dtype": name}, tensors)

    def _store(self, statistics: ClassStatistics) -> None:
        for name, tensor in self._as_states(statistics).items():
            setattr(self, name, tensor)

    def _reduce_states(self, incoming_state: Mapping[str, Tensor]) -> None:
        self._store(self._statistics().merge(self._statistics(incoming_state)))

    def _all_reduce(self, group: Any) -> None:
        self._store(self._statistics().all_reduce(group, inplace=True))

    # -- the metric ----------------------------------------------------------------------------------------------------

    def update(self, features: Tensor, target: Tensor) -> None:
        """Adds a batch: ``(..., D)`` features, ``(...)`` integer classes; raises as :class:`ncops.ClassStatistics`."""
        self._refuse_if_synced()
        statistics = self._statistics()
        if isinstance(features, Tensor) and features.shape[-1:] == (self._config["dim"],):
            self._prove_classifier(features)
        statistics.update(features, target)
        self._store(statistics)

    def compute(self) -> dict[str, Tensor]:
        report = self._report()
        names = [n for n in GEOMETRY if self._config["scatter"] or n not in needing(SCATTER)]
        names += [] if self.classifier is None else DUALITY
        return {n: torch.tensor(report[n], dtype=torch.float64, device=self.counts.device) for n in names}

    def _report(self) -> CollapseReport:
        weight, bias = (None, None) if self.classifier is None else rows(self.classifier)
        return collapse(self._statistics().compute(self.min_count), weight, bias, convention=self.convention)

    def geometry(self) -> ClassGeometry:
        """The class means and covariance behind :meth:`compute`, over all ranks; every rank must ask."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced):
            return self._statistics().compute(self.min_count)

    def report(self) -> CollapseReport:
        """All of it as a :class:`ncops.CollapseReport` with its coverage, over all ranks; every rank must ask."""
        with self.sync_context(self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced):
            return self._report()

    def plot(self, val: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Distances from full collapse, or, for a list of results, every metric over steps. Returns ``(fig, ax)``."""
        if val is not None and not isinstance(val, Mapping):
            return self._plot(val, ax)
        values = self.compute() if val is None else val
        return CollapseReport({name: float(value) for name, value in values.items()}).plot(ax)


class LogitStatistics(ExactMetric):
    """Running means over rows of what :func:`ncops.linear_stats` or :func:`ncops.logit_stats` tell about their logits.

    ``update(features, target=None)`` with a classifier, else ``update(logits, target=None)``; the N x V logits of
    features never exist. ``compute()``: a dictionary of float64 scalars,

    - ``entropy``, ``max_prob``, ``lse``, ``z_loss`` (lse^2), ``logit_mean``, ``logit_var``;
    - where targets were given ``nll``, ``perplexity`` (exp of the mean nll), ``accuracy``, ``top5_accuracy``,
      ``margin``, ``rank`` (classes above the target, 0 is the best).

    A row with a NaN logit makes every mean NaN. Features under autocast are multiplied with the classifier in the
    features' own dtype. Between ranks two small tensors are summed.

    Args:
        classifier: a module (its rows are read at every ``update``, and the metric does not own it), a ``(V, D)``
            weight, or ``(weight, bias)``; None takes logits.
        scale: multiplies the products, or the logits. softcap: as in :func:`ncops.linear_stats`.
        ignore_index: target of rows that count nowhere.
        kwargs: of every torchmetrics Metric.
    """

    higher_is_better = None
    FREE = ("entropy", "max_prob", "lse", "z_loss", "logit_mean", "logit_var")
    TARGET = ("nll", "accuracy", "top5_accuracy", "margin", "rank")

    def __init__(
        self, classifier: Classifier = None, *,
        scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(classifier, **kwargs)
        self.scale = check_number(scale, "scale", "nothing is learned here, give float(scale)")
        self.softcap = check_softcap(softcap) or None
        self.ignore_index = check_integer(ignore_index, "ignore_index")
        self.counts: Tensor
        self.sums: Tensor
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")  # rows, rows with a target
        self.add_state("sums", torch.zeros(len(self.FREE + self.TARGET), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor | None = None) -> None:
        """Adds a batch: ``(..., D)`` features, or ``(..., V)`` logits without a classifier; ``(...)`` targets."""
        self._refuse_if_synced()
        options = {"scale": self.scale, "softcap": self.softcap, "ignore_index": self.ignore_index}
        check_floating(features, "features" if self.classifier is not None else "logits")
        with outside_autocast(features.device):
            if self.classifier is None:
                stats = logit_stats(features, target, **options)
            else:
                head = [t if t is None else t.to(features.dtype) for t in rows(self.classifier)]
                dim = head[0].shape[1]
                if features.ndim < 1 or features.shape[-1] != dim:
                    raise ValueError(f"features: expected shape (..., D) with D = {dim}, got {shape(features)}")
                self._prove_classifier(features)
                stats = linear_stats(features, *head, target, **options)
        columns = [stats.entropy, stats.max_prob, stats.lse, stats.lse.double().square(), stats.mean, stats.var]
        valid = torch.ones_like(stats.lse, dtype=torch.bool) if target is None else stats.valid
        if target is not None:
            rank = stats.target_rank
            columns += [stats.nll, stats.correct, (rank >= 0) & (rank < 5), stats.margin, rank]
        rows_counted = valid.sum()
        sums = torch.stack([column.double().where(valid, 0.0).sum() for column in columns])
        self.sums[: len(columns)] += sums
        self.counts[0] += rows_counted
        self.counts[1] += 0 if target is None else rows_counted

    def compute(self) -> dict[str, Tensor]:
        every, targets = self.counts.double()
        free = len(self.FREE)
        values = dict(zip(self.FREE, self.sums[:free] / every, strict=True))
        if targets > 0 or every == 0:
            values |= zip(self.TARGET, self.sums[free:] / targets, strict=True)
            values["perplexity"] = values["nll"].exp()
        return values

    def plot(self, val: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Every mean as a point, or, for a list of results, as a line over steps. Returns ``(fig, ax)``."""
        return self._plot(val, ax)
