"""A report as one self-contained HTML file: no request leaves it, it follows light and dark, and it fits a phone."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ...conventions import PRESETS, Convention
from ...metrics.goals import Goals
from ...metrics.papers import PAPERS
from ...metrics.table import HEADLINES, NOTATION, meaning
from ..details import CLASS_COLUMNS, coverage_items
from ..numbers import format_value
from ..plots.curves import CONTROL, Axis, has_values, short
from . import figures

if TYPE_CHECKING:
    from ..collapse import CollapseReport

__all__ = ["render", "render_runs", "token_html"]

_UNSEEN = re.compile(rf"^ | $|(?<= ) |[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]|{CONTROL.pattern}")
_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def token_html(text: str) -> Markup:
    """A token's text as escaped HTML in which white space and control characters can be seen."""
    shown = _UNSEEN.sub(lambda m: f"<u>{_sign(m)}</u>", escape(text))
    return Markup(f"<code>{shown or ' '}</code>")


def token_text(text: str) -> str:
    """The same as text, in quotation marks."""
    return f"“{_UNSEEN.sub(_sign, text)}”"


def _sign(unseen: re.Match) -> str:
    return _VISIBLE.get(unseen[0], f"\\u{ord(unseen[0]):04x}")


def _collapsed(goals: Goals, name: str, value: float) -> float:
    """From 0, not collapsed, to 1; of a metric that has a best value."""
    far = goals.distance(name, value)
    if far is None:
        return 0.0
    return min(max(value / goals[name].target, 0.0), 1.0) if goals[name].better == "higher" else 1 / (1 + far)


def _nearest(name: str, values: Sequence[float | None], goals: Sequence[Goals]) -> list[tuple[float | None, str]]:
    """Each value with the class of its cell: the nearest to full collapse are the best, unless all are."""
    far = [of.distance(name, value) for of, value in zip(goals, values, strict=True)]
    known = {d for d in far if d is not None}
    return [(v, "best" if len(known) > 1 and d == min(known) else "") for v, d in zip(values, far, strict=True)]


def _hash(text: str) -> str:
    """What a content policy calls a sheet or a script of this text, so that no other is let in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


MOST_COLUMNS = 64
"""Tables of more columns are printed as if they had as many."""


@functools.cache
def _sheet() -> str:
    """The page's one style sheet; no element has a style of its own."""
    text = _TEMPLATES.get_template("page.css").render()
    text += "".join(f".n{n}{{--n:{n}}}" for n in range(11, MOST_COLUMNS + 1))
    # How strong the cell of a heat map is, by what is shown: of --e, --k and --l one is 1 and the others are 0.
    return text + "".join(f".{key}{n}{{--{key}{key}:{n}}}" for key in "ekl" for n in range(1, 10))


_TEMPLATES = Environment(
    loader=PackageLoader(__name__, ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters.update(
    hash=_hash, label=lambda name: meaning(name).label, number=format_value, token=token_html,
    numbers=lambda headings: [(heading, "number") for heading in headings],
    sort_key=lambda value: "" if value is None or not math.isfinite(value) else repr(value),
)  # fmt: skip
_TEMPLATES.globals.update(
    collapsed=_collapsed, headlines=HEADLINES, meaning=meaning, most_columns=MOST_COLUMNS, notation=NOTATION,
    papers=PAPERS,
)  # fmt: skip


def _other_choices(settings: Convention) -> str:
    """Where a convention differs from the one that the formulas are written for."""
    usual = PRESETS["ncops"].as_dict()
    chosen = settings.as_dict().items()
    return ", ".join(f"{field} = {value}" for field, value in chosen if field != "name" and value != usual[field])


def fill(template: str, **values: Any) -> str:
    """A page: the template with ``values``, the one sheet and the one script."""
    script = _TEMPLATES.get_template("page.js").render()
    text = _TEMPLATES.get_template(template).render(values, sheet=_sheet(), script=script, plots=figures.can_draw())
    return CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else "·", text)


def _page(template: str, report: CollapseReport, details: Mapping[str, Any], **values: Any) -> str:
    """The template with all that there is to show of one report, and the other ``values``."""
    classes = details.get("classes", {"rows": []})
    return fill(
        template,
        **values,
        figures=figures.drawn(figures.distributions(report, details)),
        report={name: float(value) for name, value in report.items()},
        goals=report.goals,
        metric_notes=report.notes,
        convention=report.convention,
        other_choices=_other_choices(report.settings),
        coverage=coverage_items(report),
        notes=[*details.get("notes", []), *report.caveats()],
        classes=classes,
        decisions_on=details.get("run", {}).get("decisions_on"),
        class_columns={
            name: (heading, "text" if name == "nearest" else "number")
            for name, heading in CLASS_COLUMNS.items()
            if classes["rows"] and name in classes["rows"][0]
        },
        facts={"convention": report.convention, **details.get("run", {}), **report.provenance},
    )


def render(report: CollapseReport, *, title: str | None = None, details: Mapping[str, Any] | None = None) -> str:
    """The page of a report as text; see ``ncops.report.details`` for what ``details`` may hold."""
    details = details or {}
    run = details.get("run", {})
    return _page(
        "report.html", report, details,
        title=title or "Neural collapse report",
        subtitle=" · ".join(str(run[k]) for k in ("model_name", "data") if run.get(k)) or "measured with ncops",
        trajectories=figures.trajectories([("", details)], report.goals),
    )  # fmt: skip


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
    numbered, names = axis.labels is None, [short(run.name, 60) for run in runs]
    shown = axis if numbered else axis._replace(labels=[short(label, 60) for label in axis.labels])
    goals = [run.report.goals for run in runs]
    shared = Goals.shared(goals)
    labels, many = (names, f"{len(runs)} runs") if len(runs) > 1 else ([""], "1 run")
    span = f" · {axis.name} {axis.points[0]:,.10g} to {axis.points[-1]:,.10g}" if numbered else ""
    return _page(
        "comparison.html", runs[-1].report, runs[-1].details,
        title=title or "Neural collapse, run by run",
        subtitle=re.sub(r"\s+", " ", many + span),
        differences=differences,
        runs=names,
        axis=shown,
        panels=figures.drawn(figures.panels(shown, metrics, shared)) if len(runs) > 1 else [],
        metrics={name: _nearest(name, values, goals) for name, values in metrics.items() if has_values(values)},
        trajectories=figures.trajectories(
            list(zip(labels, (run.details for run in runs), strict=True)), shared, numbered
        ),
    )  # fmt: skip
