"""Lines along training, layers or runs: their scales, their labels, and where they go when a network collapses."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from .style import DASHES, MARKERS, Palette, compact, log_axis, power, style

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Characters that show nothing, or change how others are shown, and halves of characters, which no encoding has."""

MANY_DECADES = 30.0
"""Largest over smallest value from which an axis is logarithmic."""
HUGE = 1e100
"""Values beyond it are drawn there, those under its inverse at 0: the limits of an axis are floats too."""


class Axis(NamedTuple):
    """What the lines run along.

    Attributes:
        name: ``"step"``, ``"layer"``, ... points: the places, ascending.
        labels: names of the places where those are in an order only; then nothing is read between two of them.
    """

    name: str
    points: Sequence[float]
    labels: Sequence[str] | None = None


class Line(NamedTuple):
    """Values along an axis, None where there is none; its name, if any, is written at its end.

    ``points`` overrides those of the axis.
    """

    label: str
    values: Sequence[float | None]
    points: Sequence[float] | None = None


def short(label: str, limit: int = 22) -> str:
    """A label that fits beside a plot, without control characters; the end of a name tells more than its middle."""
    label = CONTROL.sub("·", label)
    return label if len(label) <= limit else f"{label[: limit // 2 - 1]}…{label[len(label) - limit // 2 :]}"


def has_values(values: Sequence[float | None] | None) -> bool:
    return any(v is not None and math.isfinite(v) for v in values or ())


def drawable(value: float) -> float:
    return 0.0 if abs(value) < 1 / HUGE else min(max(value, -HUGE), HUGE)


def draw(
    ax,
    axis: Axis,
    lines: Sequence[Line],
    palette: Palette | None = None,
    *,
    target: float | None = None,
    ordered: bool = False,
    log: bool = True,
) -> list:
    """Draws lines with their names at the right end, on scales that fit them; returns matplotlib's lines.

    Args:
        target: the value at full collapse, a dashed line where the axis can show it.
        ordered: the lines are stages of one development, from pale to strong, instead of things to tell apart.
        log: a logarithmic axis is allowed, which takes values over many decades.
    """
    palette = style(ax, palette)
    drawn = []
    for number, line in enumerate(lines):
        points = axis.points if line.points is None else line.points
        values = [math.nan if v is None else drawable(v) for v in line.values]
        kind = 0 if ordered else number
        look = {"color": palette.series[kind % len(palette.series)], "marker": MARKERS[kind % len(MARKERS)],
                "linestyle": DASHES[kind % len(DASHES)], "linewidth": 1.7}  # fmt: skip
        if ordered and len(lines) > 1:
            look["alpha"] = 0.28 + 0.72 * number / (len(lines) - 1)
        elif number >= len(MARKERS):  # past six lines the markers come again, hollow
            look["markerfacecolor"] = "none"
        if axis.labels is not None:
            look.update(linestyle=(0, (1, 2)), linewidth=1.0)
        drawn += ax.plot(points, values, markersize=4.5 if len(points) <= 16 else 2.5, **look)
    found = [drawable(v) for line in lines for v in line.values if v is not None and math.isfinite(v)]
    _horizontal(ax, axis)
    _vertical(ax, found, target, log, palette)
    ax.grid(axis="y", color=palette.line, lw=0.5, alpha=0.7)
    ax.set_axisbelow(True)
    _label_ends(ax, lines, drawn, ordered)
    return drawn


def _horizontal(ax, axis: Axis) -> None:
    ax.set_xlabel(axis.name, parse_math=False)
    if axis.labels is not None:
        labels = [short(label, 18) for label in axis.labels]
        crowded = max(map(len, labels)) * len(labels) > 16
        ax.set_xticks(list(axis.points), labels, parse_math=False, rotation=90 if crowded else 0)
        ax.set_xlabel("")  # the names say what they are
        ax.margins(x=0.12)
        return
    points = sorted(set(axis.points))
    ax.margins(x=0.04)
    steps = [b - a for a, b in zip(points[:-1], points[1:], strict=True)]
    if len(points) >= 4 and points[0] >= 0 and max(steps) > 6 * min(steps):
        first = points[0] or points[1]
        ax.set_xscale("log") if points[0] > 0 else ax.set_xscale("symlog", linthresh=first, linscale=0.5)
        ax.minorticks_off()
        _ticks_at(ax, points)
    elif all(float(p).is_integer() for p in points):
        ax.xaxis.get_major_locator().set_params(integer=True)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_formatter(compact if max(points, default=0) >= 10000 else "{x:.6g}")


def _ticks_at(ax, points: Sequence[float]) -> None:
    """Ticks where something was measured: the last and the first, and from the right those that have room."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import FixedLocator

    size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()

    class Roomy(FixedLocator):
        """Chooses anew whenever it is asked, as the width of a plot is only known once it is laid out."""

        def __call__(self):
            em = size * ax.figure.dpi / 72
            spans = []
            for point in [points[-1], points[0], *points[-2:0:-1]]:
                middle, half = ax.transData.transform((point, 1.0))[0], 0.33 * em * (len(compact(point)) + 1.2)
                if all(abs(middle - other) > half + wide for _, other, wide in spans):
                    spans.append((point, middle, half))
            return sorted(point for point, _, _ in spans)

    ax.xaxis.set_major_locator(Roomy(points))
    ax.xaxis.set_major_formatter(compact)


def _vertical(ax, found: Sequence[float], target: float | None, log: bool, palette: Palette) -> None:
    ax.margins(y=0.10)
    if not found:
        ax.text(0.5, 0.5, "not measured", ha="center", color=palette.muted, transform=ax.transAxes)
        return
    positive = [v for v in found if v > 0]
    if log and target in (0.0, None) and min(found) >= 0 and positive and max(positive) / min(positive) > MANY_DECADES:
        whole = len(positive) == len(found)
        ax.set_yscale("log") if whole else ax.set_yscale("symlog", linthresh=min(positive), linscale=0.4)
        ax.autoscale_view()
        ax.set_ylim(ax.get_ylim())
        if whole:
            log_axis(ax.yaxis)
        else:
            ax.yaxis.set_major_formatter(power)
            ax.minorticks_off()
        return
    if target is not None:
        ax.axhline(target, color=palette.muted, lw=1.0, ls=(0, (4, 3)), zorder=1)
    ax.autoscale_view()
    low, high = ax.get_ylim()
    if max(found) - min(found) <= 1e-9 * max(abs(max(found)), 1e-30) and target is None:
        room = 0.1 * abs(found[0]) or 0.5  # one value: an axis that does not blow up its rounding
        low, high = found[0] - room, found[0] + room
    ax.set_ylim(low, high)


def _label_ends(ax, lines: Sequence[Line], drawn: Sequence, ordered: bool) -> None:
    """The name of each line beside its last point, moved apart where they would cover each other."""
    from matplotlib import rcParams
    from matplotlib.transforms import Affine2D

    ends = []
    for line, artist in zip(lines, drawn, strict=True):
        last = [v for v in line.values if v is not None and math.isfinite(v)]
        if last and line.label:
            height = ax.transLimits.transform(ax.transScale.transform((1.0, last[-1])))[1]
            ends.append((float(height), line.label, artist))
    if ordered and len(ends) > 5:  # the ends of the development and its middle name the rest
        ends = [ends[0], ends[len(ends) // 2], ends[-1]]
    size, heights = 0.95 * rcParams["font.size"], [end[0] for end in ends]

    def moved(index: int):
        """Where label ``index`` is on the axes, whose height is only known once they are laid out."""
        gap = 1.15 * size * ax.figure.dpi / 72 / max(ax.bbox.height, 1.0)
        return Affine2D().translate(0, spread(heights, gap)[index] - heights[index]) + ax.transAxes

    for index, (height, label, artist) in enumerate(ends):
        ax.annotate(
            short(label), (1.0, height), xycoords=lambda _, index=index: moved(index), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=size, color=artist.get_color(),
            alpha=max(artist.get_alpha() or 1.0, 0.75), parse_math=False, annotation_clip=False,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved as little as keeps them ``gap`` apart, in their order; about [0, 1] where that is room enough.

    Neighbours that are too close become a block about their mean, and blocks that meet are joined.
    """
    blocks: list[tuple[list[int], float]] = []  # indices in ascending order of place, and the middle
    for index in sorted(range(len(places)), key=places.__getitem__):
        block, middle = [index], places[index]
        while blocks and middle - blocks[-1][1] < gap * (len(block) + len(blocks[-1][0])) / 2:
            block = blocks.pop()[0] + block
            half = gap * (len(block) - 1) / 2
            middle = min(max(sum(places[i] for i in block) / len(block), half), max(1 - half, half))
        blocks.append((block, middle))
    moved = {i: middle + gap * (n - (len(block) - 1) / 2) for block, middle in blocks for n, i in enumerate(block)}
    return [moved[index] for index in range(len(places))]
