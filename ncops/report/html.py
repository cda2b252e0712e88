"""A report as one self-contained HTML file: no request leaves it, it follows light and dark, and it fits a phone."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ..stats.files import write_file
from .details import caveats
from .sections import (
    CONTROL,
    Figures,
    cards,
    class_table,
    coverage,
    distributions,
    facts_table,
    metric_table,
    token_html,
    trajectory_figures,
    trajectory_table,
)  # fmt: skip

__all__ = ["body", "page", "render", "token_html", "write_html"]

LAYERS = (
    "Classes are the next tokens at every layer; layer 0 is the embedding. The first token of a window, an attention "
    "sink in many models, can dominate the layers in the middle. Dashed: the value at full collapse."
)
CHECKPOINTS = "Each checkpoint measured on its own. Dashed: the value at full collapse."
WITHOUT_PLOTS = "Drawn without matplotlib: pip install ncops[cli] adds the plots."


def notes(texts: Sequence[str]) -> list[str]:
    return [f'<p class="note">{html.escape(text)}</p>' for text in texts]


def body(
    report: Mapping[str, float], details: Mapping[str, Any], figure: Figures, *, trajectories: bool = True
) -> list[str]:
    """The sections of one report; ``trajectories=False`` leaves out its checkpoints and layers."""
    parts = [cards(report), coverage(report)]
    parts.append(
        '<p class="note">The class geometry (NC1 to NC3) describes the kept classes only: read every number with this '
        "coverage. The bars are a guide, 1/(1+value) where 0 is collapsed.</p>"
    )
    parts += notes([*details.get("notes", []), *caveats(report)])
    for key, heading, text in (
        ("checkpoints", "Collapse during training", CHECKPOINTS),
        ("layers", "Layer by layer", LAYERS),
    ):
        if trajectories and key in details:
            parts += [f"<h2>{heading}</h2>", *notes([text])]
            parts += [trajectory_figures(figure, details[key], key)] if figure else []
            parts.append(trajectory_table(details[key]))
    if figure:
        parts += ["<h2>Plots</h2>", distributions(figure, report, details)]
    parts.append(metric_table(report))
    if "classes" in details:
        parts.append(class_table(details["classes"]))
    parts.append(facts_table(details, report))
    return parts


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole file around these sections."""
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    values = {"title": html.escape(title), "subtitle": html.escape(subtitle), "body": "\n".join(p for p in parts if p)}
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    return CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else "·", text)


def render(report: Mapping[str, float], *, title: str | None = None, details: Mapping[str, Any] | None = None) -> str:
    """The page as text."""
    details, figure = details or {}, Figures()
    run = details.get("run", {})
    subtitle = " · ".join(str(run[k]) for k in ("model_name", "data") if run.get(k)) or "measured with ncops"
    parts = [] if figure else notes([WITHOUT_PLOTS])
    return page(title or "Neural collapse report", subtitle, [*parts, *body(report, details, figure)])


def write_html(
    report: Mapping[str, float],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``report`` as one HTML file; see ``ncops.report.details`` for what ``details`` may hold."""
    write_file(path, render(report, title=title, details=details))
