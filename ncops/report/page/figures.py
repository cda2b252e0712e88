"""The figures of a page: what is drawn, under which title, with which words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...metrics.goals import Goals
from ...metrics.table import meaning, takes_log
from ..numbers import format_value
from ..plots.curves import Axis, Line, draw, has_values
from ..plots.panels import draw_panel, shown_panels
from ..plots.report import count_variance, distribution, overview, reliability
from ..plots.style import SENTINEL
from ..plots.svg import inline_svg

if TYPE_CHECKING:
    from ..collapse import CollapseReport

SIZE, WIDE = (4.4, 2.9), (4.4, 3.6)
"""Inches of a figure: drawn as wide as a phone shows it, so that its text is never scaled down."""
Figure = dict[str, str]


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def drawn(figures: Iterator[Figure]) -> list[Figure]:
    """The figures, or none without matplotlib."""
    return list(figures) if can_draw() else []


def figure(
    name: str, title: str, plot: Callable, *data: Any, way: str = "", caption: str = "", size=SIZE, **options: Any
) -> Figure:
    """A figure of what ``plot(ax, *data, **options)`` draws; ``way`` says under its title where the values go."""
    box, drawing = inline_svg(lambda ax: plot(ax, *data, palette=SENTINEL, **options), name, size)
    return {"name": name, "title": title, "way": way, "caption": caption, "box": box, "drawing": drawing}


def _histogram(data: Mapping[str, Any], key: str, title: str, xlabel: str, caption: str) -> Iterator[Figure]:
    entry = data.get(key)
    if entry and sum(entry["counts"]):
        sampled = key == "pair_cosine" and entry["classes"] < entry["of"]
        name = "mean of the sample" if sampled else "mean"
        marks = {f"{name} {format_value(entry['mean'])}": entry["mean"]} if entry.get("mean") is not None else {}
        if key == "pair_cosine" and entry["classes"] > 1:
            corner = -1 / (entry["of"] - 1)
            marks[f"simplex {corner:.3g}"] = corner
        yield figure(key, title, distribution, entry, xlabel, marks=marks, caption=caption)


def distributions(report: CollapseReport, details: Mapping[str, Any]) -> Iterator[Figure]:
    """How far one report is from collapse, and what its details hold about its classes and its decisions."""
    data, scatter = details.get("histograms", {}), details.get("scatter")
    told = "Values at the right. Distances under 10⁻⁴ are drawn at the left edge."
    yield figure("overview", "How far from collapse", overview, report, caption=told, size=WIDE)
    told = "Equal lengths (NC2) would be one bar."
    yield from _histogram(data, "mean_norm", "Length of the centred class means", "‖μ_c − μ_G‖", told)
    told = "Self-duality (NC3) puts every class at 1."
    yield from _histogram(data, "row_cosine", "Class mean against its classifier row", "cosine", told)
    if pairs := data.get("pair_cosine"):
        told = f"{_pairs(pairs, report)} A simplex (NC2) is one bar at −1/(K−1)" + (
            ", which needs K ≤ D + 1." if report.goals.crowded else "."
        )
        yield from _histogram(data, "pair_cosine", "Angles between class means", "cosine of a pair", told)
    if scatter and scatter["shown"]:
        told = f"{scatter['shown']:,} of {scatter['of']:,} kept classes with a variance above 0."
        yield figure("scatter", "Class count against class variance", count_variance, scatter, caption=told)
    if "entropy" in data:
        most = format_value(data["entropy"]["edges"][-1])
        told = f"0 is full certainty, {most} a blind guess among all classes."
        yield from _histogram(data, "entropy", "Entropy of the predictions", "entropy (nats)", told)
    told, xlabel = "Right of 0 the classifier is right.", "its logit minus the best other logit"
    yield from _histogram(data, "margin", "Margin of the right class", xlabel, told)
    if "reliability" in data:
        told = (
            f"Expected calibration error {format_value(float(report.get('ece', math.nan)))}. Bars under the dashed "
            "line: too sure of itself. Dots: mean confidence of the bin."
        )
        yield figure("reliability", "Reliability", reliability, data["reliability"], caption=told)


def _pairs(entry: Mapping[str, Any], report: CollapseReport) -> str:
    """Which pairs of classes a histogram shows, and how its mean stands to the report's."""
    if entry["classes"] >= entry["of"]:
        return "All pairs of kept classes."
    told = f"Pairs of a random sample of {entry['classes']} of {entry['of']:,} kept classes"
    exact = report.get("nc2_cos_mean", math.nan)
    if not math.isfinite(exact) or report.settings.similarity != "cosine" or report.settings.global_mean != "class":
        return f"{told}."
    return f"{told}: its mean is that of the sample, over all pairs it is {format_value(exact)} (NC2, mean cosine)."


def trajectories(
    runs: Sequence[tuple[str, Mapping[str, Any]]], goals: Goals, numbered: bool = False
) -> list[tuple]:
    """(``"checkpoints"`` or ``"layers"``, figures, what a lone run holds of these) for what some run holds.

    Args:
        runs: the label of each in the figures, and its details. goals: what all of them have in common.
        numbered: they are stages of one development.
    """
    held = {key: [(label, d[key]) for label, d in runs if key in d] for key in ("checkpoints", "layers")}
    return [(key, drawn(_along(key, parts, goals, numbered)), parts[0][1]) for key, parts in held.items() if parts]


def _along(
    key: str, parts: Sequence[tuple[str, Mapping[str, Any]]], goals: Goals, numbered: bool
) -> Iterator[Figure]:
    """One figure per metric, one line per run that has it. Steps and epochs share no axis."""
    for number, kind in enumerate(dict.fromkeys(part["axis"] for _, part in parts)):
        same = [(label, part) for label, part in parts if part["axis"] == kind]
        axis = Axis(kind, sorted({point for _, part in same for point in part["points"]}))
        for name in dict.fromkeys(name for _, part in same for name in part["metrics"]):
            lines = [
                Line(label, part["metrics"][name], part["points"])
                for label, part in same
                if has_values(part["metrics"].get(name))
            ]
            if lines:
                look = {"target": goals[name].target, "ordered": numbered and len(same) > 2, "log": takes_log(name)}
                place = f"{key}-{name}" + (f"-{number}" if number else "")
                yield figure(place, meaning(name).label, draw, axis, lines, way=goals.direction(name), **look)


def panels(axis: Axis, metrics: Mapping[str, Sequence[float | None]], goals: Goals) -> Iterator[Figure]:
    """The main metrics over runs."""
    size = SIZE if axis.labels is None else WIDE
    for key, title, way in shown_panels(metrics, goals):
        yield figure(f"runs-{key}", title, draw_panel, key, axis, metrics, goals, way=way, size=size)
