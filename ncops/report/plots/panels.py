"""The figure of a comparison: lines over runs or checkpoints, one panel per property, or all of them on one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...metrics.table import HEADLINES, METRICS, direction, distance, meaning, takes_log
from .curves import Axis, Line, draw, has_values
from .style import LIGHT, PAPER, Palette

Metrics = Mapping[str, Sequence[float | None]]
"""Name -> values along an axis."""

PANELS = {
    "nc1": "NC1 · variability", "nc2": "NC2 · simplex", "nc3": "NC3 · duality", "nc4": "NC4 · nearest mean",
    "accuracy": "Accuracy", "nll": "NLL (nats)",
}  # fmt: skip
"""Key -> title of a panel, whose metrics move the same way; the table of metrics says which they are."""


def _names(key: str) -> list[str]:
    return [name for name, metric in METRICS.items() if metric.panel == key]


def shown_panels(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The panels that ``metrics`` has values for: key, title and where the lines go, ``"↓ 0 = collapsed"``."""
    return [
        (key, title, direction(_names(key)[0]))
        for key, title in PANELS.items()
        if any(has_values(metrics.get(name)) for name in _names(key))
    ]


def draw_panel(ax, key: str, axis: Axis, metrics: Metrics, palette: Palette = LIGHT) -> None:
    """The lines of a panel that ``metrics`` holds."""
    first, shown = _names(key)[0], [name for name in _names(key) if has_values(metrics.get(name))]
    # A panel's title says already what its first metric is.
    lines = [Line("" if shown == [first] else meaning(name).short, metrics[name]) for name in shown]
    draw(ax, axis, lines, palette, target=meaning(first).target, log=takes_log(first))


def plot_panels(axis: Axis, metrics: Metrics, palette: Palette = LIGHT):
    """A figure with one panel per property that was measured, 7 inches wide; returns it and its axes."""
    from matplotlib import pyplot

    shown = shown_panels(metrics)
    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3) or 1
    rows = max(1, math.ceil(len(shown) / columns))
    height = 2.2 if axis.labels is None else 2.2 + 0.06 * min(18, max(map(len, axis.labels)))
    size = (3.6, 5.4, 7.2)[columns - 1], 0.1 + height * rows
    with pyplot.rc_context(PAPER):
        figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for ax in grid.flat[len(shown) :]:
            ax.set_axis_off()
        for ax, (key, title, way) in zip(grid.flat, shown, strict=False):
            draw_panel(ax, key, axis, metrics, palette)
            for text, up, look in (
                (title, 17, {"color": palette.ink, "fontweight": "bold"}),
                (way, 5, {"color": palette.muted, "fontsize": 8.5}),
            ):  # not titles: the layout leaves no room for a title wider than its plot
                ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, up), textcoords="offset points", **look)
        figure.draw_without_rendering()  # the layout, while these sizes hold
    return figure, list(grid.flat[: len(shown)])


def plot_distances(ax, axis: Axis, metrics: Metrics, palette: Palette = LIGHT) -> None:
    """NC1 to NC4 on one plot, each as its distance from full collapse: all of them fall."""
    lines = [
        Line(meaning(name).far, [None if v is None else distance(name, v) for v in metrics[name]])
        for name in HEADLINES
        if has_values(metrics.get(name))
    ]
    draw(ax, axis, lines, palette, target=0.0)
    ax.set_ylabel("distance from full collapse")
