"""Colours, markers and axes that every plot of a report shares."""

from __future__ import annotations

import math
from typing import NamedTuple


class Palette(NamedTuple):
    """``series`` tells lines apart; each also has a marker and dashes of its own, so colour is never the only sign."""

    ink: str
    muted: str
    line: str
    accent: str
    second: str
    series: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """Colour -> name of the CSS variable that it stands for."""
        names = {getattr(self, field): field for field in self._fields if field != "series"}
        return names | {colour: f"s{i}" for i, colour in enumerate(self.series, 1)}


# The blue and the vermilion of Okabe and Ito (2008); the others found by a search for colours that stay far apart for
# readers without red- or green-sensitive cones and have a contrast of 3:1 with the page (tests/test_html.py).
LIGHT = Palette(
    ink="#1f2430", muted="#667085", line="#d5d9e0", accent="#3a5bd9", second="#c2611a",
    series=("#0072b2", "#d55e00", "#0d9b5e", "#8d3e66", "#473704", "#15171c"),
)  # fmt: skip
# The colours of the page in the dark (page/page.css).
DARK = Palette(
    ink="#e7e9ee", muted="#99a1b0", line="#333946", accent="#8ea6ff", second="#f0a267",
    series=("#5cb3ec", "#ff9354", "#5c8d73", "#91518d", "#f9f1b5", "#dce8ec"),
)  # fmt: skip
# Colours that stand for CSS variables: the HTML writer replaces them, and the plots follow a light or dark page.
SENTINEL = Palette(
    ink="#0a0b01", muted="#0a0b02", line="#0a0b03", accent="#0a0b04", second="#0a0b05",
    series=("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15", "#0a0b16"),
)  # fmt: skip

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1.5)), (0, (1, 1, 4, 1)))
PAPER = {
    "font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "axes.linewidth": 0.8,
}  # fmt: skip
"""Sizes in points for a figure as wide as a page of two columns."""


def palette_of(ax) -> Palette:
    """Colours that can be seen on these axes; what the user has set in matplotlib's ``rcParams`` comes first."""
    from matplotlib import colors, rcParams, rcParamsDefault

    ground = [1.0, 1.0, 1.0]
    for patch in (ax.figure.get_facecolor(), ax.get_facecolor()):
        *colour, alpha = colors.to_rgba(patch)
        ground = [alpha * c + (1 - alpha) * g for c, g in zip(colour, ground, strict=True)]
    dark = 0.2126 * ground[0] + 0.7152 * ground[1] + 0.0722 * ground[2] < 0.4
    own = {
        field: colors.to_hex(rcParams[name])
        for field, name in (("ink", "text.color"), ("muted", "axes.labelcolor"), ("line", "grid.color"))
        if rcParams[name] != rcParamsDefault[name]
    }
    if rcParams["axes.prop_cycle"] != rcParamsDefault["axes.prop_cycle"]:
        cycle = [colors.to_hex(c) for c in rcParams["axes.prop_cycle"].by_key().get("color", ())]
        own |= {"series": tuple(cycle), "accent": cycle[0], "second": cycle[1 % len(cycle)]} if cycle else {}
    return (DARK if dark else LIGHT)._replace(**own)


def style(ax, palette: Palette | None = None) -> Palette:
    """Quiet axes: no box, thin lines, one ink. Returns the palette: by default the one that suits the axes."""
    if palette is None:
        palette = palette_of(ax)
    else:
        ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(palette.line)
    ax.tick_params(which="both", colors=palette.muted, labelcolor=palette.ink, length=3)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(palette.muted)
    ax.title.set_color(palette.ink)
    return palette


def make_room(ax) -> None:
    """Shrinks axes of a figure that no layout engine lays out until their labels are inside its edges, or inside what
    the grid they stand in leaves to each of its axes."""
    figure, spec = ax.figure, ax.get_subplotspec()
    if figure.get_layout_engine() is not None or not hasattr(figure, "draw_without_rendering"):  # a figure in a figure
        return
    left, bottom, right, top = 0.0, 0.0, 1.0, 1.0
    if spec is not None:
        bottoms, tops, lefts, rights = spec.get_gridspec().get_grid_positions(figure)
        rows, columns = spec.rowspan, spec.colspan
        left = (rights[columns.start - 1] + lefts[columns.start]) / 2 if columns.start else left
        right = (rights[columns.stop - 1] + lefts[columns.stop]) / 2 if columns.stop < len(lefts) else right
        top = (bottoms[rows.start - 1] + tops[rows.start]) / 2 if rows.start else top
        bottom = (bottoms[rows.stop - 1] + tops[rows.stop]) / 2 if rows.stop < len(tops) else bottom
    figure.draw_without_rendering()
    needs = ax.get_tightbbox().transformed(figure.transFigure.inverted())
    box, room = ax.get_position(), 0.01
    x0, y0 = box.x0 + max(0.0, left + room - needs.x0), box.y0 + max(0.0, bottom + room - needs.y0)
    x1, y1 = box.x1 - max(0.0, needs.x1 - right + room), box.y1 - max(0.0, needs.y1 - top + room)
    if x1 > x0 and y1 > y0:
        ax.set_position([x0, y0, x1 - x0, y1 - y0])


def power(value: float, _position: int = 0) -> str:
    """A power of ten as a tick label: 0.01, 1, 100, 10⁻⁵; between two of them the number itself."""
    if value <= 0:
        return f"{value:g}"
    exponent = round(math.log10(value))
    if -4 < exponent < 5:
        return f"{value:g}"
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = value / 10.0**exponent
    return f"10{digits}" if abs(factor - 1) < 1e-9 else f"{factor:.3g}·10{digits}"


def compact(value: float, _position: int = 0) -> str:
    """A checkpoint's number as a tick label: 250, 1k, 12.5k, 3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def log_axis(axis) -> None:
    """Labels of a logarithmic axis; one within a decade gets a few numbers, not a lone power of ten."""
    from matplotlib.ticker import LogLocator

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else 9.0
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.6 else (1.0,), numticks=7))
    axis.set_major_formatter(power)
    axis.set_minor_formatter("")
