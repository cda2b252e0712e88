"""The page of a comparison: trajectories, all runs in one table, layers of every run, the last run in full."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..metrics.table import direction, distance, meaning, takes_log
from . import curves
from .curves import PANELS, Axis, Line, draw, draw_panel, has_values
from .html import CHECKPOINTS, LAYERS, WITHOUT_PLOTS, body, notes, page
from .sections import SIZE, WIDE, Figures, cell, data_table
from .style import SENTINEL

if TYPE_CHECKING:
    from .comparison import Comparison


def visible(text: str, limit: int = 60) -> str:
    """A name without control characters, cut to a length that fits a heading."""
    return curves.short(text, limit)


def _panels(figure: Figures, axis: Axis, metrics: Mapping[str, Sequence[float | None]]) -> str:
    drawn = []
    for panel in PANELS:
        if any(has_values(metrics.get(name)) for name in panel.metrics):
            drawn.append(
                figure(
                    lambda ax, p=panel: draw_panel(ax, p, axis, metrics, SENTINEL), f"runs-{panel.key}",
                    panel.title, size=SIZE if axis.labels is None else WIDE, way=panel.way,
                )
            )  # fmt: skip
    return f'<div class="grid">{"".join(drawn)}</div>'


def _inner(figure: Figures, comparison: Comparison, key: str) -> str:
    """One figure per metric along layers (or checkpoints), one line per run that has them."""
    kinds = dict.fromkeys(run.details[key]["axis"] for run in comparison.runs if key in run.details)
    drawn = [_along(figure, comparison, key, number, kind) for number, kind in enumerate(kinds)]
    return f'<div class="grid">{"".join(drawn)}</div>'


def _along(figure: Figures, comparison: Comparison, key: str, number: int, kind: str) -> str:
    """The figures of those runs whose checkpoints count the same thing: steps and epochs share no axis."""
    runs = [run for run in comparison.runs if key in run.details and run.details[key]["axis"] == kind]
    parts = [run.details[key] for run in runs]
    names = dict.fromkeys(name for part in parts for name in part["metrics"])
    axis = Axis(kind, sorted({point for part in parts for point in part["points"]}))
    drawn = []
    for name in names:
        lines = [
            Line(visible(run.name) if len(comparison.runs) > 1 else "", part["metrics"][name], part["points"])
            for run, part in zip(runs, parts, strict=True)
            if has_values(part["metrics"].get(name))
        ]
        if lines:
            ordered = comparison.axis.labels is None and len(runs) > 2
            drawn.append(
                figure(
                    lambda ax, ls=lines, n=name, o=ordered: draw(
                        ax, axis, ls, SENTINEL, target=meaning(n).target, ordered=o, log=takes_log(n)
                    ),
                    f"{key}-{name}" + (f"-{number}" if number else ""), meaning(name).label, way=direction(name),
                )
            )  # fmt: skip
    return "".join(drawn)


def runs_table(comparison: Comparison) -> str:
    """Runs by metrics; of each metric with a value at full collapse the nearest to it is bold."""
    metrics = {name: values for name, values in comparison.metrics.items() if has_values(values)}
    best = {}
    for name, values in metrics.items():
        far = [distance(name, math.nan if v is None else v) for v in values]
        far = [d for d in far if d is not None]
        if len(set(far)) > 1:
            best[name] = min(far)
    numeric = comparison.axis.labels is None
    columns = [("run", "order"), *([(comparison.axis.name, "number")] if numeric else [])]
    columns += [(meaning(name).label, "number") for name in metrics]
    rows = []
    for i, (run, point) in enumerate(zip(comparison.runs, comparison.axis.points, strict=True)):
        cells = [f'<th scope="row" data-v="{i}">{html.escape(visible(run.name))}</th>']
        if numeric:
            cells.append(f'<td data-v="{point!r}">{point:,.10g}</td>')
        for name, values in metrics.items():
            far = distance(name, math.nan if values[i] is None else values[i])
            cells.append(cell(values[i], "best" if name in best and far == best[name] else ""))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = data_table(columns, rows, "All runs, one a row", name="runs", css="wide", sorted_by=("run", "ascending"))
    text = "Select a heading to sort. Bold: nearest to full collapse."
    return f'<h2>All runs</h2><p class="note">{text}</p>{table}'


def render(comparison: Comparison, *, title: str | None = None) -> str:
    """The page as text."""
    runs, last, figure = comparison.runs, comparison.runs[-1], Figures()
    parts = notes([*comparison.caveats(), *([] if figure else [WITHOUT_PLOTS])])
    axis = comparison.axis
    if figure and len(runs) > 1:
        shown = axis._replace(labels=[visible(label) for label in axis.labels]) if axis.labels else axis
        along = html.escape(f"{axis.name}" if axis.labels is None else "the runs, in the order given")
        parts += [f"<h2>Collapse over {along}</h2>", _panels(figure, shown, comparison.metrics)]
    parts.append(runs_table(comparison))
    for key, heading, text in (
        ("checkpoints", "Collapse during training", CHECKPOINTS),
        ("layers", "Layer by layer", LAYERS),
    ):
        if figure and any(key in run.details for run in runs):
            parts += [f"<h2>{heading}</h2>", *notes([text]), _inner(figure, comparison, key)]
    heading = "The run" if len(runs) == 1 else "The last run"
    parts.append(f"<h2>{heading}: {html.escape(visible(last.name))}</h2>")
    parts += body(last.report, last.details, figure, trajectories=False)
    count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    span = f" · {axis.name} {axis.points[0]:,.10g} to {axis.points[-1]:,.10g}" if axis.labels is None else ""
    return page(title or "Neural collapse, run by run", re.sub(r"\s+", " ", count + span), parts)
