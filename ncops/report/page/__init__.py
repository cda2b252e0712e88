"""A report as one self-contained HTML file: no request leaves it, it follows light and dark, and it fits a phone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..columns import CLASS_COLUMNS
from ..details import caveats, coverage_items
from ..explain import HEADLINE_TITLES, HEADLINES, distance, format_value, meaning
from ..plots.curves import CONTROL, Axis, direction, has_values, short
from . import figures

__all__ = ["render", "render_runs", "token_html", "write_html"]

WITHOUT_PLOTS = "Drawn without matplotlib: pip install ncops[cli] adds the plots."
_UNSEEN = re.compile(rf"^ | $|(?<= ) |{CONTROL.pattern}")
_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def token_html(text: str) -> Markup:
    """A token's text as escaped HTML in which white space and control characters can be seen."""

    def shown(match: re.Match) -> str:
        char = match[0]
        return f"<u>{_VISIBLE[char]}</u>" if char in _VISIBLE else f"<u>\\u{ord(char):04x}</u>"

    return Markup(f"<code>{_UNSEEN.sub(shown, escape(text)) or ' '}</code>")


def _sort_key(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


def _collapsed(name: str, value: float) -> float:
    """From 0, not collapsed, to 1."""
    if not math.isfinite(value):
        return 0.0
    return 1 / (1 + value) if meaning(name).target == 0 else min(max(value, 0.0), 1.0)


ENVIRONMENT = Environment(
    loader=PackageLoader(__name__, ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.filters.update(
    direction=direction, label=lambda name: meaning(name).label, number=format_value, sort_key=_sort_key,
    numbers=lambda headings: [(heading, "number") for heading in headings], token=token_html,
)  # fmt: skip
ENVIRONMENT.globals.update(collapsed=_collapsed, headlines=HEADLINES, headline_titles=HEADLINE_TITLES, meaning=meaning)


def _page(template: str, **values: Any) -> str:
    text = ENVIRONMENT.get_template(template).render(values)
    return CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else "·", text)


def _report(report: Mapping[str, float], details: Mapping[str, Any], plots: bool) -> dict[str, Any]:
    """What the templates show of one report."""
    classes = details.get("classes", {"rows": []})
    return {
        "values": {name: float(value) for name, value in report.items()},
        "metric_notes": getattr(report, "notes", {}),
        "coverage": coverage_items(report),
        "notes": [*details.get("notes", []), *caveats(report)],
        "figures": figures.distributions(report, details) if plots else [],
        "classes": classes,
        "class_columns": {n: text for n, text in CLASS_COLUMNS.items() if classes["rows"] and n in classes["rows"][0]},
        "facts": {"convention": getattr(report, "convention", "ncops"), **details.get("run", {})},
    }


def render(report: Mapping[str, float], *, title: str | None = None, details: Mapping[str, Any] | None = None) -> str:
    """The page of a report as text."""
    details, plots = details or {}, figures.can_draw()
    run = details.get("run", {})
    return _page(
        "report.html",
        title=title or "Neural collapse report",
        subtitle=" · ".join(str(run[k]) for k in ("model_name", "data") if run.get(k)) or "measured with ncops",
        warnings=[] if plots else [WITHOUT_PLOTS],
        trajectories=[
            (key, figures.along(key, [("", details[key])]) if plots else [], details[key])
            for key in ("checkpoints", "layers")
            if key in details
        ],
        **_report(report, details, plots),
    )


def write_html(
    report: Mapping[str, float],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``report`` as one HTML file; see ``ncops.report.details`` for what ``details`` may hold."""
    Path(path).write_text(render(report, title=title, details=details), encoding="utf-8")


def _nearest(name: str, values: Sequence[float | None]) -> list[tuple[float | None, str]]:
    """Each value with the class of its cell: the nearest to full collapse are the best, unless all are."""
    far = [distance(name, math.nan if value is None else value) for value in values]
    known = {d for d in far if d is not None}
    return [(v, "best" if len(known) > 1 and d == min(known) else "") for v, d in zip(values, far, strict=True)]


def render_runs(
    runs: Sequence[Any],
    axis: Axis,
    metrics: Mapping[str, Sequence[float | None]],
    differences: Sequence[str] = (),
    *,
    title: str | None = None,
) -> str:
    """The page of several runs as text: trajectories, one table, the layers of every run, the last run in full.

    Args:
        runs: :class:`ncops.report.stored.Run` each. axis: where they stand. metrics: name -> one value per run.
        differences: between the runs, as sentences.
    """
    plots, names = figures.can_draw(), [short(run.name, 60) for run in runs]
    if axis.labels is not None:
        axis = axis._replace(labels=[short(label, 60) for label in axis.labels])
    trajectories = []
    for key in ("checkpoints", "layers") if plots else ():
        parts = [
            (name if len(runs) > 1 else "", run.details[key])
            for name, run in zip(names, runs, strict=True)
            if key in run.details
        ]
        if parts:
            trajectories.append((key, figures.along(key, parts, numbered=axis.labels is None), None))
    count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    span = f" · {axis.name} {axis.points[0]:,.10g} to {axis.points[-1]:,.10g}" if axis.labels is None else ""
    return _page(
        "comparison.html",
        title=title or "Neural collapse, run by run",
        subtitle=re.sub(r"\s+", " ", count + span),
        warnings=[*differences, *([] if plots else [WITHOUT_PLOTS])],
        runs=names,
        axis=axis,
        panels=figures.panels(axis, metrics) if plots and len(runs) > 1 else [],
        metrics={name: _nearest(name, values) for name, values in metrics.items() if has_values(values)},
        trajectories=trajectories,
        **_report(runs[-1].report, runs[-1].details, plots),
    )
