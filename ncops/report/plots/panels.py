"""The figure of a comparison: lines over runs or checkpoints, one panel per property, or all of them on one plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..explain import meaning
from .curves import Axis, Line, direction, draw, has_values, takes_log
from .style import LIGHT, PAPER, Palette

Metrics = Mapping[str, Sequence[float | None]]
"""Name -> values along an axis."""

PANELS = {
    "nc1": ("NC1 · variability", {"nc1_pinv": "pseudo-inverse", "nc1_quotient": "trace ratio", "nc1_cdnv": "CDNV"}),
    "nc2": ("NC2 · simplex", {"nc2_norm_cv": "norms", "nc2_cos_std": "angles", "nc2_etf_error": "simplex error"}),
    "nc3": ("NC3 · duality", {"nc3_cos_mean": "alignment"}),
    "nc4": ("NC4 · nearest mean", {"nc4_agreement": "agreement", "ncc_accuracy": "nearest mean"}),
    "accuracy": ("Accuracy", {"accuracy": "accuracy", "held_out_accuracy": "held out"}),
    "nll": ("NLL (nats)", {"nll": "NLL", "held_out_nll": "held out"}),
}
"""Key -> title, and metrics that move the same way with their names in this plot."""

HEADLINE_LABELS = {
    "nc1_quotient": "NC1 trace ratio", "nc2_norm_cv": "NC2 norms", "nc3_cos_mean": "1 − NC3 alignment",
    "nc4_agreement": "1 − NC4 agreement",
}  # fmt: skip


def shown_panels(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The panels that ``metrics`` has values for: key, title and where the lines go, ``"↓ 0 = collapsed"``."""
    return [
        (key, title, direction(next(iter(names))))
        for key, (title, names) in PANELS.items()
        if any(has_values(metrics.get(name)) for name in names)
    ]


def draw_panel(ax, key: str, axis: Axis, metrics: Metrics, palette: Palette = LIGHT) -> None:
    """The lines of a panel that ``metrics`` holds."""
    names = PANELS[key][1]
    first, shown = next(iter(names)), [name for name in names if has_values(metrics.get(name))]
    # A panel's title says already what its first metric is.
    lines = [Line("" if shown == [first] else names[name], metrics[name]) for name in shown]
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
        Line(label, [None if v is None else abs(v - meaning(name).target) for v in metrics[name]])
        for name, label in HEADLINE_LABELS.items()
        if has_values(metrics.get(name))
    ]
    draw(ax, axis, lines, palette, target=0.0)
    ax.set_ylabel("distance from full collapse")
