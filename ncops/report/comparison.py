"""Several runs in one report: checkpoints of a training, or models side by side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from .. import tables
from ..metrics.goals import Goals
from ..metrics.table import NAMES, SUMMARY, meaning, shown_in
from ..names import Panels
from ..stats.files import write_file
from .collapse import CollapseReport
from .measured import Measured
from .numbers import format_value, strict, strict_json
from .places import places, short_names
from .plots.curves import Axis
from .provenance import SCHEMA, provenance
from .stored import Run, find, read_run

MAIN = sorted(shown_in(SUMMARY), key=lambda name: meaning(name).group != "Decisions")
"""The metrics of the table in a terminal."""


class Comparison:
    """Runs in the order of their axis.

    Attributes:
        runs: :class:`ncops.report.stored.Run` each: ``name``, ``report``, ``details``, ``source``.
        axis: :class:`ncops.report.plots.curves.Axis`: its name, one point per run, and their names where the order of
            the runs is all that is known.
        metrics: name -> one value per run, None where it is undefined or was not measured.
        provenance: of this comparison; that of each run is its report's.
    """

    def __init__(self, runs: Sequence[Run], axis: Axis):
        self.runs, self.axis = list(runs), axis
        self.provenance = provenance()
        known = dict.fromkeys([*NAMES, *(name for run in runs for name in run.report)])
        self.metrics = {
            name: [strict(run.report.get(name)) for run in runs]
            for name in known
            if any(name in run.report for run in runs)
        }

    def __repr__(self) -> str:
        return self.table()

    @property
    def trajectory(self) -> tuple[Axis, Mapping[str, Sequence[float | None]]]:
        """What :meth:`plot` shows: the runs, or the checkpoints that a single run holds."""
        stored = self.runs[0].details.get("checkpoints")
        if len(self.runs) == 1 and stored:
            return Axis(stored["axis"], stored["points"]), stored["metrics"]
        return self.axis, self.metrics

    @property
    def goals(self) -> Goals:
        """Where metrics go at collapse: those of the runs where they agree, else what holds for any run."""
        return Goals.shared(run.report.goals for run in self.runs)

    def to_frame(self):
        """A ``pandas.DataFrame``: a row per run, a column per metric, and the axis in the first column.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        return tables.frame({self.axis.name: list(self.axis.points), **self.metrics}, [run.name for run in self.runs])

    def _repr_html_(self) -> str:
        return tables.html_table(*self.rows(), notes=self.caveats())

    def caveats(self) -> list[str]:
        """Differences between the runs that a reader must know before comparing their numbers."""
        found = []
        for what, values in (
            ("convention", [run.report.convention for run in self.runs]),
            ("number of classes", [run.report.coverage.get("classes") for run in self.runs]),
            ("classes kept", [run.report.coverage.get("classes_kept") for run in self.runs]),
            ("samples a class needs", [run.report.coverage.get("min_count") for run in self.runs]),
            ("data", [run.details.get("run", {}).get("data") for run in self.runs]),
            ("data of the decisions", [run.details.get("run", {}).get("decisions_on") for run in self.runs]),
        ):
            if len(set(values)) > 1:
                told = ["unknown" if value is None else value for value in values]
                each = [f"{run.name}: {value}" for run, value in zip(self.runs, told, strict=True)]
                listed = "; ".join(each if len(each) <= 8 else [*each[:4], "…", *each[-3:]])
                found.append(f"The runs differ in their {what}, so compare with care ({listed}).")
        made = {run.report.provenance["ncops"]: None for run in self.runs if "ncops" in run.report.provenance}
        if len(made) > 1:
            found.append(f"The runs were measured by different versions of ncops ({', '.join(map(str, made))}).")
        return found

    def table(self) -> str:
        """Plain text: one line per run with the main metrics."""
        return tables.plain_table(*self.rows(), left=(0,))

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells of :meth:`table`."""
        shown = [name for name in MAIN if any(v is not None for v in self.metrics.get(name, []))]
        named = self.axis.labels is None and [run.name for run in self.runs] != [f"{p:g}" for p in self.axis.points]
        heads = ["run", *([self.axis.name] if named else []), *(meaning(name).label for name in shown)]
        cells = [
            [run.name, *([f"{point:g}"] if named else []), *(format_value(self.metrics[n][i]) for n in shown)]
            for i, (run, point) in enumerate(zip(self.runs, self.axis.points, strict=True))
        ]
        return heads, cells

    def document(self) -> dict[str, Any]:
        """What :meth:`to_json` writes, as a dictionary."""
        runs = [
            {
                "name": run.name, "point": point, "source": run.source, "convention": run.report.convention,
                "coverage": run.report.coverage, "run": run.details.get("run", {}),
                "provenance": run.report.provenance,
            }
            for run, point in zip(self.runs, self.axis.points, strict=True)
        ]  # fmt: skip
        return strict(
            {"schema": SCHEMA, "provenance": self.provenance, "axis": self.axis.name,
             "points": list(self.axis.points), "numeric": self.axis.labels is None, "metrics": self.metrics,
             "runs": runs, "notes": self.caveats()}
        )  # fmt: skip

    def to_json(self, indent: int | None = 2) -> str:
        """A JSON object in ASCII: ``schema``, ``provenance``, ``axis``, ``points``, ``metrics`` (name ->
        one value per run, null where there is none), ``runs`` with what each rests on, and ``notes``."""
        return strict_json(self.document(), indent)

    def plot(self, ax=None, *, panels: Panels = "ncops"):
        """NC1 to NC4, accuracy and NLL over the runs, or over the checkpoints that a single run holds.

        Args:
            ax: matplotlib axes for one plot, of NC1 to NC4 as distances from full collapse. With None: a figure 7
                inches wide with one panel per property.
            panels: ``"ncops"``, or ``"papyan"`` for the figures of Papyan, Han and Donoho 2020: equinorm,
                equiangularity and maximal angle of class means and of classifier rows, self-duality, variability
                collapse, mismatch with the nearest class centre. For runs measured with ``convention="papyan"``, or
                with one that has its norms, cosines and self-duality.

        Returns:
            ``(fig, ax)``; with ``ax=None`` a list of axes, one per panel.

        Raises:
            ValueError: unknown ``panels``, or ``"papyan"`` on axes or for runs of another convention.
            ModuleNotFoundError: without matplotlib (``pip install ncops[cli]``).
        """
        self.check_panels(panels)
        from .plots.panels import plot_distances, plot_panels
        from .plots.papyan import plot_papyan

        if panels == "papyan":
            if ax is not None:
                raise ValueError("ax: expected None with panels='papyan', a figure of six plots")
            return plot_papyan(*self.trajectory, self.goals)
        if ax is None:
            return plot_panels(*self.trajectory, self.goals)
        plot_distances(ax, *self.trajectory, self.goals)
        return ax.figure, ax

    def check_panels(self, panels: str) -> None:
        """Raises ValueError for a set of panels that there is not, or that these runs have not."""
        from .plots.papyan import differs

        if panels not in get_args(Panels):
            raise ValueError(f"panels: expected one of {', '.join(get_args(Panels))}, got {panels!r}")
        for run in self.runs if panels == "papyan" else ():
            if what := differs(run.report.settings):
                raise ValueError(
                    f"panels: 'papyan' needs runs measured with convention='papyan', got {run.name} with "
                    f"{run.report.convention!r} ({what})"
                )

    def to_html(self, path: str | os.PathLike, *, title: str | None = None) -> None:
        """Writes trajectories, the table of all runs and the last run's details as one self-contained HTML file."""
        write_file(path, self.html(title=title))

    def html(self, *, title: str | None = None) -> str:
        """The page of :meth:`to_html` as text."""
        from .page import render_runs

        return render_runs(self.runs, self.axis, self.metrics, self.caveats(), title=title)


def compare(
    runs: Sequence[Any],
    *,
    labels: Sequence[str] | None = None,
    axis: str | None = None,
    classifier: str | os.PathLike | None = None,
    min_count: int | None = None,
    convention: str | None = None,
) -> Comparison:
    """Puts runs beside each other: checkpoints of one training, or several models.

    Args:
        runs: paths of ``report.json`` files, of saved :class:`ncops.ClassStatistics`, or of folders that hold one (as
            ``ncops lm --output`` and ``--save`` write them); or :class:`CollapseReport` objects.
        labels: one name per run; default: what differs in their paths.
        axis: what the numbers in the names count, e.g. ``"step"``; default: the word before them. Where every name
            holds a number of its own, runs are sorted by it; elsewhere they keep their order.
        classifier: for saved statistics: file with weight (C, D) and bias (C), for the ``nc3_*``; a name that does not
            exist is looked up beside each run. Decision statistics are read from ``decision_statistics.safetensors``
            beside the run.
        min_count: for saved statistics: rows that a class needs. Default: as in the decision pass, else 1.
        convention: for saved statistics: default that of the decision pass, else ``"ncops"``.

    Returns:
        :class:`Comparison`.

    Raises:
        ValueError: no run, as many labels as there are not runs, or a file that is none of these.
        FileNotFoundError: no such file.
    """
    given = list(runs)
    if not given:
        raise ValueError("runs: expected at least one, got none")
    if labels is not None and len(labels) != len(given):
        raise ValueError(f"labels: expected {len(given)}, one per run, got {len(labels)}")
    stored = {i: find(run) for i, run in enumerate(given) if isinstance(run, (str, os.PathLike))}
    names = dict(zip(stored, short_names(list(stored.values())), strict=True)) if stored else {}
    parents = Counter(path.parent for path in stored.values() if path.suffix == ".safetensors")
    options = {"classifier": classifier, "min_count": min_count, "convention": convention}
    found = []
    for i, run in enumerate(given):
        name = str(labels[i]) if labels is not None else names.get(i, f"run {i + 1}")
        if i in stored:
            found.append(read_run(stored[i], name, **options, lone=parents[stored[i].parent] <= 1))
        elif isinstance(run, Measured):
            found.append(Run(name, run.report, dict(run.details), ""))
        elif isinstance(run, CollapseReport):
            found.append(Run(name, run, dict(run.details), ""))
        else:
            raise TypeError(f"runs: expected paths or CollapseReport, got {type(run).__name__}")
    used = [run for run in found if run.details.get("run", {}).get("classifier")]
    if classifier is not None and not used:
        raise ValueError("classifier: no run is saved statistics; a report.json has its metrics already")
    numbered = places([run.name for run in found], axis) if labels is not None or len(names) == len(given) else None
    if numbered is None:
        order = Axis(axis or "run", list(range(len(found))), [run.name for run in found])
        return Comparison(found, order)
    name, points = numbered
    sorting = sorted(range(len(found)), key=points.__getitem__)
    return Comparison([found[i] for i in sorting], Axis(name, [points[i] for i in sorting]))
