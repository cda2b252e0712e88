"""The figure of a comparison: lines over runs or checkpoints, one panel per property, or all of them on one plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...metrics.goals import Goals
from ...metrics.table import HEADLINES, METRICS, meaning, takes_log
from .curves import Axis, Line, draw, has_values
from .style import PAPER, Palette, make_room, palette_of

Metrics = Mapping[str, Sequence[float | None]]
"""Name -> values along an axis."""

PANELS = {
    "nc1": "NC1 · variability", "nc2": "NC2 · simplex", "nc3": "NC3 · duality", "nc4": "NC4 · nearest mean",
    "accuracy": "Accuracy", "nll": "NLL (nats)",
}  # fmt: skip
"""Key -> title of a panel, whose metrics move the same way; the table of metrics says which they are."""


def _names(key: str) -> list[str]:
    return [name for name, metric in METRICS.items() if metric.panel == key]


def _target(names: Sequence[str], goals: Goals) -> float | None:
    """The value at full collapse, where the lines of a panel share one."""
    targets = {goals[name].target for name in names}
    return targets.pop() if len(targets) == 1 else None


def _way(names: Sequence[str], goals: Goals) -> str:
    """Where the lines of a panel go; their bounds in the order of the lines, where these differ."""
    if len({goals[name].target for name in names}) == 1:
        return goals.direction(names[0])
    bounds = ", ".join("?" if (to := goals[name].target) is None else f"{to:.3g}" for name in names)
    return f"↑ most {bounds}" if goals[names[0]].better == "higher" else f"↓ least {bounds}"


def shown_panels(metrics: Metrics, goals: Goals) -> list[tuple[str, str, str]]:
    """The panels that ``metrics`` has values for: key, title and where the lines go, ``"↓ 0 = collapsed"``."""
    shown = {key: [name for name in _names(key) if has_values(metrics.get(name))] for key in PANELS}
    return [(key, PANELS[key], _way(names, goals)) for key, names in shown.items() if names]


def draw_panel(ax, key: str, axis: Axis, metrics: Metrics, goals: Goals, palette: Palette | None = None) -> None:
    """The lines of a panel that ``metrics`` holds."""
    first, shown = _names(key)[0], [name for name in _names(key) if has_values(metrics.get(name))]
    # A panel's title says already what its first metric is.
    lines = [Line("" if shown == [first] else meaning(name).short, metrics[name]) for name in shown]
    draw(ax, axis, lines, palette, target=_target(shown, goals), log=takes_log(first))


def plot_panels(axis: Axis, metrics: Metrics, goals: Goals):
    """A figure with one panel per property that was measured, 7 inches wide; returns it and its axes."""
    shown = shown_panels(metrics, goals)
    return panel_figure(axis, [
        (title, way, partial(draw_panel, key=key, axis=axis, metrics=metrics, goals=goals)) for key, title, way in shown
    ])  # fmt: skip


def panel_figure(axis: Axis, shown: Sequence[tuple[str, str, Callable[[Any], Any]]]):
    """A figure of panels: title, a line under it, and what draws on axes."""
    from matplotlib import pyplot

    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3) or 1
    rows = max(1, math.ceil(len(shown) / columns))
    height = 2.2 if axis.labels is None else 2.2 + 0.06 * min(18, max(map(len, axis.labels)))
    size = (3.6, 5.4, 7.2)[columns - 1], 0.1 + height * rows
    with pyplot.rc_context(PAPER):
        figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for ax in grid.flat[len(shown) :]:
            ax.set_axis_off()
        for ax, (title, way, drawing) in zip(grid.flat, shown, strict=False):
            drawing(ax)
            palette = palette_of(ax)
            for text, up, look in (
                (title, 17, {"color": palette.ink, "fontweight": "bold"}),
                (way, 5, {"color": palette.muted, "fontsize": 8.5}),
            ):  # not titles: the layout leaves no room for a title wider than its plot
                ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, up), textcoords="offset points", **look)
        figure.draw_without_rendering()  # the layout, while these sizes hold
    return figure, list(grid.flat[: len(shown)])


def plot_distances(ax, axis: Axis, metrics: Metrics, goals: Goals) -> None:
    """NC1 to NC4 on one plot, each as its distance from full collapse: all of them fall.

    Their names are in a legend: beside the lines they would stick out of axes that are not ours to lay out.
    """
    far = {name: [goals.distance(name, value) for value in metrics.get(name, ())] for name in HEADLINES}
    found = {name: values for name, values in far.items() if has_values(values)}
    drawn = draw(ax, axis, [Line("", values) for values in found.values()], target=0.0)
    ax.set_ylabel("distance from full collapse")
    if found:
        ink = palette_of(ax).ink
        ax.legend(drawn, [meaning(name).far for name in found], fontsize="small", frameon=False, labelcolor=ink)
    make_room(ax)
