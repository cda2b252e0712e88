"""What ncops adds to torchmetrics' Metric: states that keep their dtype, and sums over ranks without a gather."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..model import Classifier, prove_product
from ..stats.collectives import sum_over_ranks
from ._need import missing

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.distributed import gather_all_tensors
    from torchmetrics.utilities.exceptions import TorchMetricsUserError
except ModuleNotFoundError:
    raise missing("torchmetrics", "metrics") from None


class ExactMetric(Metric):
    """A Metric whose states stay float64 and int64 whatever the module around it is cast to.

    Its ``classifier`` is a module, whose rows are read when they are needed, a weight, or ``(weight, bias)``.

    Subclasses add states up in :meth:`_reduce_states` and over ranks in :meth:`_all_reduce`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, classifier: Classifier = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.classifier = classifier
        self._proved = False

    def _prove_classifier(self, features: Tensor) -> None:
        """Once for every classifier that is a module: raises ValueError where it is more than its rows."""
        if not self._proved and isinstance(self.classifier, torch.nn.Module):
            prove_product(self.classifier, features)
        self._proved = True

    def __setattr__(self, name: str, value: Any) -> None:
        """A classifier that is a module does not become a part of the metric, nor do its parameters."""
        if name == "classifier":
            object.__setattr__(self, name, value)
            self._proved = False
        else:
            super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict) -> ExactMetric:
        """A copy for the same classifier, as ``clone`` and ``MetricCollection`` want it, unless that is copied too."""
        memo.setdefault(id(self.classifier), self.classifier)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__({name: deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return copied

    def _apply(self, fn: Callable, exclude_state: Any = "") -> ExactMetric:
        """Moves to other devices, never to another dtype: float32 sums would forget rows from 2^24 on."""

        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(move, exclude_state)
        if isinstance(self.classifier, Tensor):
            self.classifier = move(self.classifier)
        elif isinstance(self.classifier, tuple):
            self.classifier = tuple(t if t is None else move(t) for t in self.classifier)
        return self

    def set_dtype(self, dst_type: str | torch.dtype) -> ExactMetric:
        """Leaves the states as they are; they are exact in float64 and int64 only."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The value of the batch, which joins the state. A batch that raises leaves the state as it was."""
        before, count = self.metric_state, self._update_count
        try:
            return super().forward(*args, **kwargs)
        except Exception:
            for name, state in before.items():
                setattr(self, name, state)
            self._update_count, self._computed = count, None
            self._to_sync, self._should_unsync, self._enable_grad = self.sync_on_compute, True, False
            raise

    def _refuse_if_synced(self) -> None:
        if self._is_synced:
            raise TorchMetricsUserError("update: the states hold the sum over all ranks; call unsync() first")

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any = None) -> None:
        """Sums over the ranks in place: nobody holds the states of all ranks. A function of the user's gathers."""
        group = process_group or self.process_group
        if dist_sync_fn is gather_all_tensors:
            self._all_reduce(group)
            return
        gathered = {name: dist_sync_fn(state, group=group) for name, state in self.metric_state.items()}
        for name, states in gathered.items():
            setattr(self, name, states[0].clone())
        for rank in range(1, len(next(iter(gathered.values())))):
            self._reduce_states({name: states[rank] for name, states in gathered.items()})

    def _all_reduce(self, group: Any) -> None:
        sum_over_ranks(self.metric_state.values(), group)
