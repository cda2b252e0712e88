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


def style(ax, palette: Palette = LIGHT) -> None:
    """Quiet axes: no box, thin lines, one ink."""
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(palette.line)
    ax.tick_params(which="both", colors=palette.muted, labelcolor=palette.ink, length=3)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_color(palette.muted)
    ax.title.set_color(palette.ink)


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
