"""The figures of a page: what is drawn, under which title, with which words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..explain import format_value, meaning
from ..plots.curves import Axis, Line, direction, draw, has_values, takes_log
from ..plots.panels import draw_panel, shown_panels
from ..plots.report import count_variance, distribution, overview, reliability
from ..plots.style import SENTINEL
from ..plots.svg import inline_svg

SIZE, WIDE = (4.4, 2.9), (4.4, 3.6)
"""Inches of a figure: drawn as wide as a phone shows it, so that its text is never scaled down."""


class Figure(NamedTuple):
    """``name`` is its id; ``way`` says under the title where the values go; ``box`` and ``drawing`` are its SVG."""

    name: str
    title: str
    way: str
    caption: str
    box: str
    drawing: str

    @property
    def told(self) -> str:
        """What it shows, for screen readers."""
        return ". ".join(text for text in (self.title, self.way, self.caption) if text)


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def figure(
    name: str, title: str, plot: Callable, *data: Any, way: str = "", caption: str = "", size=SIZE, **options: Any
) -> Figure:
    """A figure of what ``plot(ax, *data, **options)`` draws."""
    svg = inline_svg(lambda ax: plot(ax, *data, palette=SENTINEL, **options), name, size)
    return Figure(name, title, way, caption, *svg)


def distributions(report: Mapping[str, float], details: Mapping[str, Any]) -> list[Figure]:
    """How far one report is from collapse, and what its details hold about its classes and its decisions."""
    data, drawn = details.get("histograms", {}), []

    def add(key: str, title: str, xlabel: str, caption: str) -> None:
        entry = data.get(key)
        if not entry or not sum(entry["counts"]):
            return
        marks = {f"mean {format_value(entry['mean'])}": entry["mean"]} if entry.get("mean") is not None else {}
        if key == "pair_cosine" and entry["classes"] > 1:
            corner = -1 / (entry["of"] - 1)
            marks[f"simplex {corner:.3g}"] = corner
        drawn.append(figure(key, title, distribution, entry, xlabel, marks=marks, caption=caption))

    caption = "Values at the right. Distances under 10⁻⁴ are drawn at the left edge."
    drawn.append(figure("overview", "How far from collapse", overview, report, caption=caption, size=WIDE))
    add("mean_norm", "Length of the centred class means", "‖μ_c − μ_G‖", "Equal lengths (NC2) would be one bar.")
    add("row_cosine", "Class mean against its classifier row", "cosine", "Self-duality (NC3) puts every class at 1.")
    pairs = data.get("pair_cosine")
    sample = pairs and pairs["classes"] < pairs["of"]
    which = f"A random sample of {pairs['classes']} of {pairs['of']:,} kept classes" if sample else "All kept classes"
    caption = f"{which}; a simplex (NC2) is one bar at −1/(K−1)."
    add("pair_cosine", "Angles between class means", "cosine of a pair", caption)
    scatter = details.get("scatter")
    if scatter and scatter["shown"]:
        caption = f"{scatter['shown']:,} of {scatter['of']:,} kept classes with a variance above 0."
        drawn.append(figure("scatter", "Class count against class variance", count_variance, scatter, caption=caption))
    if "entropy" in data:
        most = format_value(data["entropy"]["edges"][-1])
        caption = f"0 is full certainty, {most} a blind guess among all classes."
        add("entropy", "Entropy of the predictions", "entropy (nats)", caption)
    xlabel = "its logit minus the best other logit"
    add("margin", "Margin of the right class", xlabel, "Right of 0 the classifier is right.")
    if "reliability" in data:
        caption = (
            f"Expected calibration error {format_value(float(report.get('ece', math.nan)))}. Bars under the dashed "
            "line: too sure of itself. Dots: mean confidence of the bin."
        )
        drawn.append(figure("reliability", "Reliability", reliability, data["reliability"], caption=caption))
    return drawn


def along(key: str, parts: Sequence[tuple[str, Mapping[str, Any]]], *, numbered: bool = False) -> list[Figure]:
    """One figure per metric along layers or checkpoints, one line per run that has it.

    Args:
        key: ``"layers"`` or ``"checkpoints"``. parts: name of a run, and what it holds of these. Those whose
            checkpoints count different things share no axis: steps and epochs.
        numbered: the runs are stages of one development.
    """
    drawn = []
    for number, kind in enumerate(dict.fromkeys(part["axis"] for _, part in parts)):
        same = [(label, part) for label, part in parts if part["axis"] == kind]
        axis = Axis(kind, sorted({point for _, part in same for point in part["points"]}))
        for name in dict.fromkeys(name for _, part in same for name in part["metrics"]):
            lines = [
                Line(label, part["metrics"][name], part["points"])
                for label, part in same
                if has_values(part["metrics"].get(name))
            ]
            look = {"target": meaning(name).target, "ordered": numbered and len(same) > 2, "log": takes_log(name)}
            if lines:
                key_name = f"{key}-{name}" + (f"-{number}" if number else "")
                way = direction(name)
                drawn.append(figure(key_name, meaning(name).label, draw, axis, lines, way=way, **look))
    return drawn


def panels(axis: Axis, metrics: Mapping[str, Sequence[float | None]]) -> list[Figure]:
    """The main metrics over runs."""
    size = SIZE if axis.labels is None else WIDE
    return [
        figure(f"runs-{key}", title, draw_panel, key, axis, metrics, way=way, size=size)
        for key, title, way in shown_panels(metrics)
    ]
