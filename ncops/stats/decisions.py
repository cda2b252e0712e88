"""A second pass, over held-out data: what the classifier and the nearest class mean decide, and how sure it is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..backends.dtypes import outside_autocast
from ..conventions import Convention, resolve
from ..names import Preset
from ..ops import LinearStats, linear_stats, nearest_class_mean
from ..ops.checks import (
    check_device,
    check_dtype,
    check_floating,
    check_integer,
    check_label_values,
    check_number,
    check_softcap,
    flatten_labels,
    rows_of,
    shape,
)
from .collectives import fingerprint, sum_over_ranks
from .geometry import ClassGeometry, check_geometry, check_head
from .signals import uninterrupted
from .state import StreamingState, stateful
from .stored import check_config, check_counts, check_tensors, require

ENTROPY_BINS = 64
MARGIN_BINS = 64
MARGIN_LIMIT = 32.0
CONFIDENCE_BINS = 15
CLASSES = -1
STATES = {
    **dict.fromkeys(("count", "agree", "ncc_hit", "hit"), ((CLASSES,), torch.int64)),
    **dict.fromkeys(("nll", "entropy"), ((CLASSES,), torch.float64)),
    "entropy_hist": ((ENTROPY_BINS,), torch.int64),
    "margin_hist": ((MARGIN_BINS + 2,), torch.int64),
    **dict.fromkeys(("confidence_count", "confidence_correct"), ((CONFIDENCE_BINS,), torch.int64)),
    "confidence_sum": ((CONFIDENCE_BINS,), torch.float64),
    "kept": ((CLASSES,), torch.bool),
    **dict.fromkeys(("skipped", "ignored", "excluded"), ((), torch.int64)),
}
"""Shape (``CLASSES`` stands for the number of classes) and dtype of every tensor of the state."""


class DecisionStatistics(StreamingState):
    """Streaming decisions of a linear classifier and of the nearest class mean, per true class, with histograms.

    Args:
        geometry: class means of the training pass; their classes are the candidates of the nearest mean. A class whose
            mean is not finite is none.
        weight: ``(C, D)`` classifier rows, C = ``geometry.num_classes``. bias: ``(C,)`` or None. Both in the dtype of
            the features (see :func:`ncops.linear_stats`).
        convention: a name or a :class:`ncops.conventions.Convention`; its ``decision_*`` fields say which classes and
            rows take part in the agreement. :func:`ncops.collapse` has to be called with the same one.
        scale: multiplies the products, not the bias. softcap: as in :func:`ncops.linear_stats`: every logit z becomes
            softcap * tanh(z / softcap).
        ignore_index: label of rows that count nowhere.

    By default every row that is not ignored counts, the classifier chooses among all C classes and the nearest mean
    among the kept ones, so a row whose label is not kept is a miss of the nearest mean; the coverage tells their share.
    A row with a NaN or +inf logit (a NaN in its features, say) counts nowhere but in ``skipped``.

    Attributes:
        count, agree, ncc_hit, hit: ``(C,) int64`` per true class: rows; rows where both decide alike; where the nearest
            mean is right; where the classifier is right. nll, entropy: ``(C,) float64`` sums of -log p(label) and
            of the entropy over all classes, in nats.
        entropy_hist: ``(64,) int64`` on ``[0, ln C]``. margin_hist: ``(66,) int64``, below -32, 64 bins of width 1 on
            [-32, 32), from 32 on. Bins are closed on the left; the last of the entropy also on the right.
        confidence_count, confidence_correct: ``(15,) int64``; confidence_sum: ``(15,) float64``: rows, hits and sum of
            the largest probability on 15 equal bins ``(i/15, (i+1)/15]``.
        kept: ``(C,) bool``. skipped, ignored, excluded: ``() int64``; excluded rows are those of classes that are not
            kept under ``decision_rows="kept"``.
    """

    CONFIG = {
        "num_classes": int, "convention": dict, "scale": float, "softcap": (float, type(None)), "ignore_index": int,
    }  # fmt: skip
    """Names and types of :meth:`config`."""
    LATER = {"softcap": None}
    """What the configurations of files that know no such option stand for."""
    _TENSORS = tuple(STATES)

    @stateful
    def __init__(
        self,
        geometry: ClassGeometry,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        convention: Preset | Convention = "ncops",
        scale: float = 1.0,
        softcap: float | None = None,
        ignore_index: int = -100,
    ):
        check_geometry(geometry)
        self.convention = resolve(convention)
        self.scale = check_number(scale, "scale", "nothing is learned here, give float(scale)")
        self.softcap = check_softcap(softcap) or None
        self.ignore_index = check_integer(ignore_index, "ignore_index")
        self.num_classes = geometry.num_classes
        self._allocate(geometry.device)
        self.kept[geometry.classes] = True
        self.bind(geometry, weight, bias)

    def _allocate(self, device: torch.device | str) -> None:
        for name, (size, dtype) in STATES.items():
            shape = [self.num_classes if n == CLASSES else n for n in size]
            setattr(self, name, torch.zeros(shape, dtype=dtype, device=device))

    def bind(self, geometry: ClassGeometry, weight: Tensor, bias: Tensor | None = None) -> DecisionStatistics:
        """Sets the means and the classifier that :meth:`update` decides with; needed once after :func:`ncops.load`.

        Raises:
            TypeError: not a geometry.
            ValueError: shapes, dtypes or devices that do not fit, or a geometry that kept other classes than this state
                knows.
        """
        check_geometry(geometry)
        if geometry.num_classes != self.num_classes:
            raise ValueError(f"geometry: num_classes: expected {self.num_classes}, got {geometry.num_classes}")
        check_floating(weight, "weight", 2)  # check_head lets None pass
        check_head(geometry, weight, bias)
        if bias is not None:
            check_dtype(bias, "bias", weight.dtype, "the dtype of weight")
            check_device(bias, "bias", geometry.means, "geometry")
        if not torch.equal(self.kept.nonzero()[:, 0], geometry.classes.to(self.kept.device)):
            raise ValueError("geometry: it kept other classes than the one these statistics were made with")
        self._geometry = geometry
        self._finite = torch.isfinite(geometry.means).all(1)
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        return self

    _geometry: ClassGeometry | None = None
    _weight: Tensor | None = None
    _bias: Tensor | None = None

    @property
    def classifier(self) -> tuple[Tensor | None, Tensor | None]:
        """``(weight, bias)`` that decide; the weight is None in statistics from a file, before :meth:`bind`."""
        return self._weight, self._bias

    @property
    def device(self) -> torch.device:
        return self.count.device

    def __repr__(self) -> str:
        return (
            f"DecisionStatistics(num_classes={self.num_classes}, kept={int(self.kept.sum())}, "
            f"convention={self.convention.name!r}, samples={int(self.count.sum())})"
        )

    # -- the pass -----------------------------------------------------------------------------------------------------

    @stateful
    def update(self, x: Tensor, labels: Tensor) -> LinearStats:
        """Adds a batch: ``x (..., D)`` features in the classifier's dtype, ``labels (...)`` integer classes.

        Returns:
            What :func:`ncops.linear_stats` has for the rows, ``(N,)`` each.

        Raises:
            ValueError: shape, dtype or device mismatch, on the CPU also a label outside ``[0, C)``; nothing has
                changed.
            RuntimeError: statistics read from a file, before :meth:`bind`.
        """
        self._check_not_reduced("update")
        if self._geometry is None:
            raise RuntimeError("these statistics came from a file: call bind(geometry, weight, bias) before update")
        flat, y = self._check(x, labels)
        stats = self._logits(flat, self._weight, self._bias, y)
        chosen, nearest = stats.argmax, self._nearest(flat)
        agree = self._choice_for_agreement(flat, chosen) == nearest

        ignored, poisoned = y == self.ignore_index, chosen < 0
        inside = (y >= 0) & (y < self.num_classes)  # outside only where labels cannot raise: such rows are skipped
        counts = inside & ~poisoned & ~ignored
        excluded = torch.zeros_like(counts)
        if self.convention.decision_rows == "kept":
            excluded = counts & ~self.kept[y.clamp(0, self.num_classes - 1)]
            counts = counts & ~excluded
        y, right = y[counts], (chosen == y)[counts]
        ones = torch.ones_like(y)
        confidence = stats.max_prob[counts].double()
        bins = torch.ceil(confidence * CONFIDENCE_BINS).long().sub_(1).clamp_(0, CONFIDENCE_BINS - 1)
        entropy = stats.entropy[counts].double()
        sure = entropy * (ENTROPY_BINS / (math.log(self.num_classes) or 1.0))
        margin = (stats.margin[counts].double() + MARGIN_LIMIT) / (2 * MARGIN_LIMIT / MARGIN_BINS)
        additions = (
            (self.count, y, ones),
            (self.agree, y, agree[counts].long()),
            (self.ncc_hit, y, (nearest[counts] == y).long()),
            (self.hit, y, right.long()),
            (self.nll, y, stats.nll[counts].double()),
            (self.entropy, y, entropy),
            (self.confidence_count, bins, ones),
            (self.confidence_correct, bins, right.long()),
            (self.confidence_sum, bins, confidence),
            (self.entropy_hist, *_in_bins(sure.floor(), ENTROPY_BINS)),
            (self.margin_hist, *_in_bins(margin.floor() + 1, MARGIN_BINS + 2)),
        )
        scalars = (
            (self.skipped, ((poisoned | ~inside) & ~ignored).sum()),
            (self.ignored, ignored.sum()),
            (self.excluded, excluded.sum()),
        )
        with uninterrupted():
            for total, index, values in additions:
                total.index_add_(0, index, values)
            for total, value in scalars:
                total += value
        return stats

    def _check(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``(x (N, D), labels (N,) int64)`` of a batch that fits the classifier."""
        weight = self._weight
        check_floating(x, "x")
        if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x: expected shape (..., D) with D = {weight.shape[1]}, got {shape(x)}")
        check_dtype(x, "x", weight.dtype, "the dtype of weight")
        check_device(x, "x", weight, "weight")
        y = flatten_labels(labels, "labels", x, "x")
        check_label_values(y, self.num_classes, self.ignore_index, "labels")
        return rows_of(x), y

    def _nearest(self, x: Tensor) -> Tensor:
        """Class label of the nearest kept mean; -1 when there is none."""
        if self._geometry.num_kept == 0:
            return torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
        index = nearest_class_mean(x, self._geometry.means, valid=self._finite).index
        return torch.where(index < 0, -1, self._geometry.classes[index.clamp_min(0)])

    def _logits(self, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor | None = None) -> LinearStats:
        with outside_autocast(x.device):  # the model's own must not round what is measured
            return linear_stats(
                x, weight, bias, labels, scale=self.scale, softcap=self.softcap, ignore_index=self.ignore_index
            )

    def _choice_for_agreement(self, x: Tensor, chosen: Tensor) -> Tensor:
        """What the convention lets the classifier choose; a second product only where that is not ``chosen``."""
        bias = self._bias if self.convention.decision_bias else None
        if self.convention.decision_classes == "kept":
            classes = self._geometry.classes
            if classes.numel() == 0:
                return torch.full_like(chosen, -2)
            weight = self._weight[classes]
            bias = None if bias is None else bias[classes]
            index = self._logits(x, weight, bias).argmax
            return torch.where(index < 0, -2, classes[index.clamp_min(0)])
        if bias is self._bias:
            return torch.where(chosen < 0, -2, chosen)  # a poisoned row agrees with nothing
        return self._logits(x, self._weight, None).argmax

    # -- merging and storing ------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets every row seen; the means and the classifier stay."""
        for name, tensor in self.tensors().items():
            if name != "kept":
                tensor.zero_()
        self._reduced = False

    def _alike(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes, "convention": self.convention.as_dict(), "scale": self.scale,
            "softcap": self.softcap or 0.0, "kept classes": fingerprint(self.kept),
        }  # fmt: skip

    def _reduce(self, group, agreed: dict[str, Any]) -> None:
        sum_over_ranks([tensor for name, tensor in self.tensors().items() if name != "kept"], group)

    def merge(self, other: DecisionStatistics) -> DecisionStatistics:
        """Adds what ``other`` has seen; ``other`` is not changed. Returns self.

        Raises:
            TypeError: ``other`` is not a DecisionStatistics.
            ValueError: another ``num_classes``, ``convention``, ``scale``, ``softcap`` or set of kept classes; nothing
                has changed then.
        """
        if not isinstance(other, DecisionStatistics):
            raise TypeError(f"other: expected DecisionStatistics, got {type(other).__name__}")
        for name in ("num_classes", "convention", "scale", "softcap"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"other: {name}: expected {getattr(self, name)}, got {getattr(other, name)}")
        if not torch.equal(self.kept, other.kept.to(self.device)):
            raise ValueError("other: kept: it was made with other kept classes")
        with uninterrupted():
            for name, tensor in self.tensors().items():
                if name != "kept":
                    tensor += getattr(other, name).to(self.device)
        return self

    def to(self, device: torch.device | str) -> DecisionStatistics:
        """Moves state, means and classifier to ``device``; returns self."""
        super().to(device)
        if self._geometry is not None:
            self._geometry, self._finite = self._geometry.to(device), self._finite.to(device)
            self._weight = self._weight.to(device)
            self._bias = None if self._bias is None else self._bias.to(device)
        return self

    def config(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "convention": self.convention.as_dict(),
            "scale": self.scale,
            "softcap": self.softcap,
            "ignore_index": self.ignore_index,
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> DecisionStatistics:
        """The statistics that :meth:`state_dict` described, without means and classifier: see :meth:`bind`.

        Raises:
            ValueError: names, types, shapes or dtypes that are not those of such statistics.
        """
        settings = check_config(config, cls.CONFIG, later=cls.LATER)
        fields = {field.name: type(field.default) for field in dataclasses.fields(Convention)} | {"name": str}
        stats = cls.__new__(cls)
        stats.num_classes = check_integer(settings["num_classes"], "config: num_classes", 1)
        stats.convention = Convention(**check_config(settings["convention"], fields, "config: convention"))
        stats.scale, stats.ignore_index = float(settings["scale"]), settings["ignore_index"]
        stats.softcap = check_softcap(settings["softcap"]) or None
        if stats.num_classes >= 2**60:
            raise ValueError(f"config: num_classes: expected fewer than 2^60, got {stats.num_classes}")
        stats._allocate("meta")
        if isinstance(tensors.get("nll"), Tensor):  # files of before the entropy load, without it
            tensors = {"entropy": torch.full_like(tensors["nll"], math.nan), **tensors}
        check_tensors(tensors, stats.tensors())
        vars(stats).update(tensors)
        return stats

    def check_values(self) -> None:
        states = self.tensors()
        check_counts({name: t for name, t in states.items() if t.dtype == torch.int64})
        for name in ("agree", "ncc_hit", "hit"):
            require(states[name] <= self.count, name, "at most the rows of the class", states[name])
        require(self.nll >= 0, "nll", "sums of -log p", self.nll)
        require((self.count > 0) | (self.nll == 0), "nll", "0 in a class without rows", self.nll)
        most = (1 + 1e-4) * math.log(self.num_classes) * self.count + 1e-6
        require(~((self.entropy < 0) | (self.entropy > most)), "entropy", "at most ln C a row", self.entropy)
        require(
            (self.confidence_sum >= 0) & (self.confidence_sum <= 1.001 * self.confidence_count), "confidence_sum",
            "a sum of probabilities", self.confidence_sum,
        )  # fmt: skip
        require(
            self.confidence_correct <= self.confidence_count, "confidence_correct", "at most the rows of the bin",
            self.confidence_correct,
        )  # fmt: skip
        rows, hits = int(self.count.sum()), int(self.hit.sum())
        for name, most in (("entropy_hist", rows), ("margin_hist", rows)):
            if int(states[name].sum()) > most:
                raise ValueError(f"state: {name}: expected at most {most} rows, got {int(states[name].sum())}")
        for name, all_of in (("confidence_count", rows), ("confidence_correct", hits)):
            if int(states[name].sum()) != all_of:
                raise ValueError(f"state: {name}: expected {all_of} rows, got {int(states[name].sum())}")

    def _check_fits(self, loaded: DecisionStatistics) -> None:
        if loaded.num_classes != self.num_classes or loaded.convention != self.convention:
            raise ValueError(
                f"state: expected {self.num_classes} classes under convention {self.convention.name!r}, "
                f"got {loaded.num_classes} under {loaded.convention.name!r}"
            )
        if not torch.equal(loaded.kept.to(self.device), self.kept):
            raise ValueError("state: kept: it was made with other kept classes")

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Rows counted."""
        return int(self.count.sum())

    @property
    def coverage(self) -> dict[str, Any]:
        """Rows of the decision pass: counted, with labels that are not kept, skipped, ignored, excluded."""
        samples = self.num_samples
        unkept = int(self.count[~self.kept].sum())
        return {
            "decision_samples": samples,
            "decision_samples_kept": samples - unkept,
            "decision_unkept_share": unkept / samples if samples else float("nan"),
            "decision_skipped_rows": int(self.skipped),
            "decision_ignored_rows": int(self.ignored),
            "decision_excluded_rows": int(self.excluded),
        }


def _in_bins(at: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Index, at most the last, and ones of the values that fall in a bin: all but NaN."""
    index = at[~at.isnan()].clamp_(0, bins - 1).long()
    return index, torch.ones_like(index)
