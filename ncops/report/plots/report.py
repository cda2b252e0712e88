"""The plots of one report: how far it is from collapse, distributions, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...metrics import table
from ...metrics.table import meaning, shown_in
from ..numbers import format_value
from .style import MARKERS, PAPER, Palette, log_axis, make_room, power, style

if TYPE_CHECKING:
    from ..collapse import CollapseReport

OVERVIEW = shown_in(table.OVERVIEW)
_FLOOR = 1e-4


def overview(ax, report: CollapseReport, palette: Palette | None = None) -> None:
    """How far each metric is from its value at full collapse, on one logarithmic axis; left is collapsed.

    Where K classes in D dimensions cannot have that value, it is the best that they can have.
    """
    values, goals = {name: float(report[name]) for name in OVERVIEW if name in report}, report.goals
    found = [(name, far, value) for name, value in values.items() if (far := goals.distance(name, value)) is not None]
    palette = style(ax, palette)
    if not found:
        text = "fewer than two classes kept: nothing to compare"
        ax.text(0.5, 0.5, text, ha="center", color=palette.muted, transform=ax.transAxes)
        ax.set_axis_off()
        return
    groups = list(dict.fromkeys(meaning(n).group for n in OVERVIEW))
    top = 1.4 * max(1.0, max(min(d, 1e6) for _, d, _ in found))
    for row, (name, far, value) in enumerate(reversed(found)):
        shown, kind = min(max(far, _FLOOR), top), groups.index(meaning(name).group)
        colour = palette.series[kind % len(palette.series)]
        ax.plot([_FLOOR, shown], [row, row], color=colour, lw=2, alpha=0.35, zorder=1)
        ax.plot([shown], [row], MARKERS[kind], ms=7, color=colour, zorder=2)
        ax.annotate(
            format_value(value), (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize="medium", color=palette.ink,
        )  # fmt: skip
    ax.set(xscale="log", xlim=(_FLOOR * 0.8, top), ylim=(-0.7, len(found) - 0.3))
    best = "the best for K > D + 1" if goals.crowded else "full collapse"
    ax.set_xlabel(f"← distance from {best}", loc="right")  # the names of the metrics leave it room at the left
    log_axis(ax.xaxis)
    ax.set_yticks(range(len(found)), [meaning(n).label for n, _, _ in reversed(found)])
    ax.grid(axis="x", color=palette.line, lw=0.6, alpha=0.7)
    ax.set_axisbelow(True)


def distribution(
    ax, data: Mapping[str, Any], xlabel: str, palette: Palette | None = None, marks: Mapping[str, float] | None = None
) -> None:
    """A histogram from edges and counts; ``marks`` are labelled vertical lines. What lies outside is told."""
    palette = style(ax, palette)
    edges, counts = data["edges"], data["counts"]
    widths = [b - a for a, b in zip(edges[:-1], edges[1:], strict=True)]
    ax.bar(edges[:-1], counts, width=widths, align="edge", color=palette.accent, alpha=0.85, lw=0)
    used = [i for i, c in enumerate(counts) if c]
    if used:  # the fixed edges of a stream are wide: show the part where the data are
        room = 0.04 * (edges[used[-1] + 1] - edges[used[0]])
        ax.set_xlim(max(edges[0], edges[used[0]] - room), min(edges[-1], edges[used[-1] + 1] + room))
    if marks:
        ax.set_ylim(0, max(counts) * (1.08 + 0.08 * len(marks)))  # room for their labels
    for number, (label, at) in enumerate((marks or {}).items()):
        low, high = ax.get_xlim()
        if not low <= at <= high:
            ax.set_xlim(min(low, at - 0.02 * (high - low)), max(high, at + 0.02 * (high - low)))
        ax.axvline(at, color=palette.second, lw=1.4, ls=("-", (0, (3, 2)))[number % 2])
        right = at == min(marks.values()) if len(marks) > 1 else at > sum(ax.get_xlim()) / 2
        ax.annotate(
            label, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(-4 if right else 4, -2 - 13 * number),
            textcoords="offset points", ha="right" if right else "left", va="top", fontsize="small",
            color=palette.second,
        )  # fmt: skip
    longest = max(len(f"{tick:.9g}") for tick in ax.get_xticks())
    if longest > 6:  # matplotlib leaves room for shorter labels
        ax.xaxis.get_major_locator().set_params(nbins=max(1, 40 // (longest + 2)))
    outside = [f"{data[k]:,} {w}" for k, w in (("below", "below the axis"), ("above", "above the axis")) if data.get(k)]
    ax.set(xlabel=xlabel + (f"  ({', '.join(outside)})" if outside else ""), ylabel=data.get("unit", "classes"))
    ax.yaxis.get_major_locator().set_params(integer=True)


def count_variance(ax, data: Mapping[str, Any], palette: Palette | None = None) -> None:
    """Samples of a class against its variance, both logarithmic."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    palette = style(ax, palette)
    ax.scatter(data["count"], data["variance"], s=14, color=palette.accent, alpha=0.55, lw=0)
    ax.set(xscale="log", yscale="log", xlabel="samples of the class", ylabel="variance in the class")
    for axis, values in ((ax.xaxis, data["count"]), (ax.yaxis, data["variance"])):
        ratio = max(values) / min(values)
        steps = (1.0, 2.0, 5.0) if ratio < 100 else (1.0,)
        axis.set_major_locator(MaxNLocator(4) if ratio < 8 else LogLocator(subs=steps))
        axis.set_major_formatter(power if ratio >= 100 else lambda v, _: f"{v:g}")
        axis.set_minor_formatter("")
    ax.grid(color=palette.line, lw=0.5, alpha=0.6)
    ax.set_axisbelow(True)


def reliability(ax, data: Mapping[str, Any], palette: Palette | None = None) -> None:
    """Accuracy per confidence bin beside the diagonal of perfect calibration; empty bins stay empty."""
    palette = style(ax, palette)
    edges, accuracy, confidence = data["edges"], data["accuracy"], data["confidence"]
    ax.plot([0, 1], [0, 1], color=palette.muted, lw=1, ls=(0, (3, 2)))
    for low, high, right, sure in zip(edges[:-1], edges[1:], accuracy, confidence, strict=True):
        if right is None:
            continue
        ax.bar(low, right, width=(high - low) * 0.92, align="edge", color=palette.accent, alpha=0.85, lw=0)
        ax.plot([sure], [right], "o", ms=3.5, color=palette.second)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the classifier", ylabel="accuracy in the bin")


def plot_report(report: CollapseReport, ax=None):
    """The overview of a report.

    Returns:
        ``(fig, ax)``. With ``ax=None`` a new figure of matplotlib's pyplot.

    Raises:
        ModuleNotFoundError: without matplotlib (``pip install ncops[cli]``).
    """
    if ax is not None:
        overview(ax, report)
        make_room(ax)
        return ax.figure, ax
    from matplotlib import pyplot

    with pyplot.rc_context(PAPER):
        figure, ax = pyplot.subplots(figsize=(6.4, 3.9), layout="constrained")
        overview(ax, report)
        figure.draw_without_rendering()  # the layout, while these sizes hold
    return figure, ax
