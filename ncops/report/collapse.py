"""All collapse metrics of a geometry, a classifier and its decisions, as one report."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import tables
from ..conventions import Convention, resolve
from ..metrics.goals import Goals
from ..metrics.table import meaning
from ..names import Preset
from ..ops.checks import check_integer
from ..stats.decisions import DecisionStatistics
from ..stats.files import write_file
from ..stats.geometry import ClassGeometry, check_geometry, check_head
from .caveats import caveats
from .classes import ClassTable, class_table
from .notes import notes
from .numbers import format_value, strict_json
from .provenance import SCHEMA, provenance
from .quantities import mean_cosines, quantities, taken_by_rounding


class CollapseReport(Mapping[str, float]):
    """The numbers of one measurement: a mapping from metric name to float, in the order of ``NAMES``.

    Attributes:
        coverage: what the numbers rest on: ``classes`` (C), ``classes_seen``, ``classes_kept`` (K), ``dim`` (D),
            ``min_count``, ``classes_with_10_samples``, ``samples``, ``samples_in_kept``, ``skipped_rows``,
            ``ignored_rows``; with scatter ``dropped_directions`` and ``lost_directions``, which rounding has taken from
            the class means and from the within-class covariance (:func:`ncops.metrics.dropped_directions`,
            ``lost_directions``); and with a decision pass ``decision_samples``, ``decision_samples_kept``,
            ``decision_unkept_share``, ``decision_skipped_rows``, ``decision_ignored_rows``, ``decision_excluded_rows``.
        convention: name of the convention. settings: the :class:`ncops.conventions.Convention` itself.
        notes: metric name -> why it is NaN, or what it means under a convention that changes its meaning.
        provenance: versions, date, command line, backend, instruction set and threads of the measurement.
        details: what :func:`ncops.measure` adds to show on a page: histograms, run facts; see ``ncops.report.details``.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        coverage: Mapping[str, Any] | None = None,
        convention: Preset | Convention = "ncops",
        notes: Mapping[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        classes: ClassTable | None = None,
    ):
        self._values = {name: float(value) for name, value in values.items()}
        self.coverage: dict[str, Any] = dict(coverage or {})
        self.settings = resolve(convention)
        self.notes: dict[str, str] = dict(notes or {})
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.details: dict[str, Any] = {}
        self._classes = classes

    @property
    def convention(self) -> str:
        return self.settings.name

    def add(self, name: str, value: float, note: str | None = None) -> None:
        """Adds a metric of another source, at the end; ``note`` says why it is NaN."""
        self._values[name] = float(value)
        if note is not None:
            self.notes[name] = note

    @property
    def goals(self) -> Goals:
        """Where each metric goes at collapse, for the K and D of this report."""
        c, unkept = self.coverage, self.coverage.get("decision_unkept_share")
        known = unkept is not None and 0 <= unkept <= 1
        return Goals(_count(c.get("classes_kept")), _count(c.get("dim")), self.settings, unkept if known else 0.0)

    def caveats(self) -> list[str]:
        """Sentences that keep a reader from taking a number for more than it is."""
        return caveats(self.coverage, self.goals)

    def __getitem__(self, name: str) -> float:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"report: no metric {name!r}; {self._nearest(str(name))}") from None

    def _nearest(self, name: str) -> str:
        """The metrics whose names are near to that one, in words; all of them where none is."""
        close = difflib.get_close_matches(name, self._values, n=4)
        near = dict.fromkeys([*(known for known in self._values if name and name.lower() in known), *close])
        return f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(self._values) or 'none'}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, float]:
        """The metrics as a plain dictionary."""
        return dict(self._values)

    def to_frame(self):
        """A ``pandas.DataFrame``: a row per metric with ``value``, ``target`` (NaN: none), ``goal`` and ``meaning``.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        goals = [self.goals[name] for name in self]
        columns = {
            "value": list(self.values()),
            "target": [math.nan if goal.target is None else goal.target for goal in goals],
            "goal": [goal.text for goal in goals],
            "meaning": [meaning(name).sentence for name in self],
        }
        return tables.frame(columns, list(self))

    def classes(self, by: str = "class", *, descending: bool = False, limit: int | None = None) -> ClassTable:
        """One row per kept class, and per class that only the decision pass has met; nothing in it is K x K.

        ====================================  ==============================================================
        ``class``, ``count``, ``kept``        label, rows of the training pass (None: fewer than ``min_count``)
        ``class_var``                         V_c = tr Sigma_c, mean squared distance of its rows from its mean
        ``mean_norm``                         length of the class mean about the global mean of the convention
        ``row_norm``, ``row_cosine``          length of its classifier row, and cosine with that mean
        ``nearest``, ``nearest_cosine``       the class whose centred mean has the largest cosine with its own
        ``decided``                           rows of the decision pass
        ``hit``, ``ncc_hit``, ``agree``       shares of them: the classifier is right, the nearest mean is, both agree
        ``nll``                               mean -log p(class) of them, in nats
        ====================================  ==============================================================

        Columns of a classifier or of decisions that were not given are not there. A report read from a file has the
        rows and columns that the file holds.

        Args:
            by: the column to sort by. descending: the largest first. limit: at most so many rows.

        Returns:
            :class:`ncops.report.ClassTable`, with ``to_frame()``, ``to_dict()`` and a view in notebooks.

        Raises:
            ValueError: no such column, or a report that was made from numbers alone.
        """
        if self._classes is None:
            raise ValueError("classes: this report was made from numbers alone, without a table of classes")
        if limit is not None:
            limit = check_integer(limit, "limit", 0)
        table = self._classes.sort(by, descending)
        return table if limit is None else table.head(limit)

    def _repr_html_(self) -> str:
        rows = [(n, format_value(v), self.goals[n].text, meaning(n).sentence) for n, v in self.items()]
        told = [*self._coverage_lines(), *self.grouped_notes(), *self.caveats()]
        return tables.html_table(("metric", "value", "goal", "meaning"), rows, self._heading(), told)

    def _heading(self) -> str:
        return f"Neural collapse (convention: {self.convention})"

    def document(self) -> dict[str, Any]:
        """What :meth:`to_json` writes, as a dictionary."""
        return {
            "schema": SCHEMA,
            "metrics": self._values,
            "coverage": self.coverage,
            "convention": self.convention,
            "settings": self.settings.as_dict(),
            "notes": self.notes,
            "caveats": self.caveats(),
            "provenance": self.provenance,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """A JSON object with ``schema``, ``metrics``, ``coverage``, ``convention``, ``settings``, ``notes``,
        ``caveats`` and ``provenance``, in ASCII; NaN becomes null."""
        return strict_json(self.document(), indent)

    def table(self) -> str:
        """Plain text: one line per metric with its meaning, then the coverage and the notes."""
        rows = [(name, format_value(value), meaning(name)) for name, value in self._values.items()]
        width = max((len(name) for name, _, _ in rows), default=0)
        digits = max((len(value) for _, value, _ in rows), default=0)
        goals, lines = self.goals, [self._heading(), ""]
        group = None
        for name, value, means in rows:
            if group not in (None, means.group):
                lines.append("")
            group = means.group
            goal = f" [{goals[name].text}]" if goals[name].text else ""
            lines.append(f"  {name:<{width}}  {value:>{digits}}  {means.sentence}{goal}".rstrip())
        lines += ["", *self._coverage_lines(), *(f"Note: {note}" for note in [*self.grouped_notes(), *self.caveats()])]
        return "\n".join(lines)

    def grouped_notes(self) -> list[str]:
        """The notes in words, one that several metrics share told once: ``"nc1_pinv, vci: NaN: needs ..."``."""
        names: dict[str, list[str]] = {}
        for name, reason in self.notes.items():
            names.setdefault(reason, []).append(name)
        return [f"{', '.join(sharing)}: {reason}" for reason, sharing in names.items()]

    def _coverage_lines(self) -> list[str]:
        c = self.coverage
        if "classes_kept" not in c:
            return []
        lines = [
            f"Coverage: {c['classes_kept']:,} of {c['classes']:,} classes kept ({c['classes_seen']:,} seen, "
            f"{c['classes_with_10_samples']:,} with at least 10 samples; kept from {c['min_count']} on), "
            f"{c['samples']:,} samples, {c['skipped_rows']:,} rows skipped, {c['ignored_rows']:,} ignored."
        ]
        if "decision_samples" in c:
            share, where = c["decision_unkept_share"], self.details.get("run", {}).get("decisions_on")
            unkept = "" if math.isnan(share) else f", {100 * share:.3g} % of them of classes that are not kept"
            of = f" of {where}" if where else ""
            lines.append(f"Decisions: {c['decision_samples']:,} samples{of}{unkept}.")
        return lines

    def plot(self, ax=None):
        """Draws the report with matplotlib; returns ``(fig, ax)``."""
        from .plots.report import plot_report

        return plot_report(self, ax)

    def to_html(self, path: str | os.PathLike, *, title: str | None = None, details: Any = None) -> None:
        """Writes the report as one self-contained HTML file, with its own ``details`` unless others are given."""
        from .page import render

        write_file(path, render(self, title=title, details=self.details if details is None else details))


@torch.no_grad()
def collapse(
    geometry: ClassGeometry,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    decisions: DecisionStatistics | None = None,
    convention: Preset | Convention = "ncops",
) -> CollapseReport:
    """Every metric of neural collapse, NC1 to NC4, as one report.

    Args:
        geometry: from :meth:`ncops.ClassStatistics.compute`.
        weight: ``(C, D)`` classifier rows for the ``nc3_*``; only those of kept classes are read. bias: ``(C,)`` or
            None; it takes part in the decisions only, and is checked here.
        decisions: the decision pass, for ``nc4_agreement``, ``ncc_accuracy``, ``accuracy``, ``nll`` and ``ece``.
        convention: ``"ncops"``, ``"neural-collapse"``, ``"linguistic-collapse"``,
            ``"linguistic-collapse-script"``, ``"papyan"``, ``"zhu"``, or a :class:`ncops.conventions.Convention` of
            your own.

    Returns:
        :class:`CollapseReport`. What an absent argument would be needed for is NaN, with the reason in ``notes``; so is
        everything between classes when fewer than two are kept.

    Raises:
        TypeError: statistics, or features, in the place of the geometry computed from them; from features it is
            :func:`ncops.measure`.
        ValueError: shapes that do not fit; decisions made with another convention, other classes or another number of
            them; decisions that hold their classifier (all but those read from a file), made with another one.
    """
    settings = resolve(convention)
    _check(geometry, weight, bias, decisions, settings)
    rows = None if weight is None else weight.detach()[geometry.classes.to(weight.device)]
    cosines, taken = mean_cosines(geometry, settings), taken_by_rounding(geometry, settings)
    values = quantities(geometry, rows, decisions, settings, cosines)
    told = notes(values, taken, geometry, rows, decisions, settings)
    coverage = {**geometry.coverage, "dim": geometry.dim, **taken, **({} if decisions is None else decisions.coverage)}
    made = provenance(geometry.device, geometry.input_dtype)
    classes = class_table(geometry, rows, decisions, settings, cosines)
    return CollapseReport(values, coverage, settings, told, made, classes)


def _count(value: Any) -> int | None:
    """A count that may have come from a file of others."""
    return value if isinstance(value, int) and 0 < value < 2**63 else None


def _check(geometry, weight, bias, decisions, settings: Convention) -> None:
    check_geometry(geometry)
    check_head(geometry, weight, bias)
    if decisions is None:
        return
    if not isinstance(decisions, DecisionStatistics):
        raise TypeError(f"decisions: expected DecisionStatistics, got {type(decisions).__name__}")
    if decisions.convention != settings:
        raise ValueError(
            f"convention: expected {decisions.convention.name!r}, with which the decisions were made, "
            f"got {settings.name!r}"
        )
    kept = decisions.kept.nonzero()[:, 0].to(geometry.classes.device)
    if decisions.num_classes != geometry.num_classes or not torch.equal(kept, geometry.classes):
        raise ValueError("decisions: made with a geometry of other classes than this one")
    for name, given, used in zip(("weight", "bias"), (weight, bias), decisions.classifier, strict=True):
        if given is not None and used is not None and not _same(given.detach(), used):
            raise ValueError(f"{name}: expected the one that the decisions were made with, got another")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two classifiers are one, a copy in another dtype included."""
    if a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.stride() == b.stride():
        return True
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    a, b = a.to(b.device, narrow), b.to(narrow)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
