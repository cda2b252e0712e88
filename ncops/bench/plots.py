"""Plots of a run: where each op stands under the roofline, speed-ups, and how time and memory grow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..report.plots.curves import spread
from ..report.plots.style import Palette, style
from ..stats.files import write_file
from .case import COMPILE, EAGER, OURS, name_of
from .records import LABELS
from .runner import Result
from .table import FLOP_LIMITS

NAME = 6.0
"""Points of the type that names a case."""


def _colour(palette: Palette, number: int) -> str:
    return palette.series[number % len(palette.series)]


def save_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Writes the PNG files that the results allow; returns their paths."""
    from matplotlib.figure import Figure

    cases = [r for r in results if r.case.axis is None and r.milliseconds]
    drawn = {}
    if any(r.share for r in cases):
        drawn["roofline"] = (roofline, cases, (9.0, max(4.6, 1.6 + 1.3 * NAME / 72 * len(cases))))
    if any(r.speedup for r in cases):
        drawn["speedup"] = (speedup, cases, (7.2, 1.2 + 0.55 * len(cases)))
    for op, mode in dict.fromkeys((r.case.bench.op, r.case.bench.mode) for r in results if r.case.axis):
        points = [r for r in results if r.case.axis and (r.case.bench.op, r.case.bench.mode) == (op, mode)]
        axes = len(dict.fromkeys(r.case.axis for r in points))
        drawn[f"growth_{op}_{mode}"] = (growth, points, (3.6 * axes, 6.0))
    paths = []
    for name, (draw, chosen, size) in drawn.items():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, chosen)
        paths.append(folder / f"{name}.png")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_file(paths[-1], buffer.getvalue())
    return paths


def roofline(figure, results: Sequence[Result]) -> None:
    """Work per second against work per byte read, under the limits measured in the same run."""
    ax = figure.subplots()
    palette = style(ax)
    shown = [r for r in results if r.share]
    intensity = [r.case.flops / r.case.bytes for r in shown]
    ends = min(intensity) / 2, max(intensity) * 2
    read = max(_limit(r, of_flops=False) for r in shown)
    for i, dtype in enumerate(dict.fromkeys(name_of(r.case.products) for r in shown)):
        peak = max(_limit(r, of_flops=True) for r in shown if name_of(r.case.products) == dtype)
        corner = min(max(peak / read, ends[0]), ends[1])
        line = [min(peak, read * x) / 1e9 for x in (ends[0], corner, ends[1])]
        ax.plot([ends[0], corner, ends[1]], line, color=_colour(palette, i), lw=1.2, label=f"limit, {dtype}")
    names = []
    for name, marker, colour in ((OURS, "o", palette.ink), (EAGER, "x", palette.muted)):
        points = [(x, r) for x, r in zip(intensity, shown, strict=True) if name in r.milliseconds]
        speeds = [r.case.flops / r.milliseconds[name].p50 / 1e6 for _, r in points]
        ax.plot([x for x, _ in points], speeds, marker, color=colour, ms=5, label=name)
        if name == OURS:
            names = [(r.case.title, x, speed) for (x, r), speed in zip(points, speeds, strict=True)]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("floating-point operations per byte of input")
    ax.set_ylabel("GFLOP/s")
    _name_beside(ax, names, palette)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=7)


def _name_beside(ax, names: Sequence[tuple[str, float, float]], palette: Palette) -> None:
    """The name of each point in a column at the right, moved apart, with a line to the point: points crowd."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    heights = [float(ax.transLimits.transform(ax.transScale.transform((x, y)))[1]) for _, x, y in names]
    gap = 1.2 * NAME / 72 / (0.75 * ax.figure.get_figheight())
    for (name, x, y), height in zip(names, spread(heights, gap), strict=True):
        ax.annotate(
            name, (x, y), xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=NAME,
            color=palette.muted, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": palette.line, "lw": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)
            },
        )  # fmt: skip


def _limit(result: Result, of_flops: bool) -> float:
    """In flop/s or byte/s; a CPU's and a GPU's limits have names of their own."""
    return next(limit.p50 for name, limit in result.limits.items() if (name in FLOP_LIMITS) == of_flops)


def speedup(figure, results: Sequence[Result]) -> None:
    """Times faster than each contestant."""
    ax = figure.subplots()
    palette = style(ax)
    shown = list(reversed([r for r in results if r.speedup]))
    slots = ("eager", "compile", "other")
    height, named = 0.8 / len(slots), set()
    for row, r in enumerate(shown):
        for slot, name in enumerate((EAGER, COMPILE, r.case.versus)):
            if name not in r.speedup:
                continue
            y = row + (1 - slot) * height
            label = None if slots[slot] in named else slots[slot]
            named.add(slots[slot])
            ax.barh(y, r.speedup[name], height=height * 0.9, color=_colour(palette, slot), label=label)
            if slot == 2:  # beyond the line at 1, which would cross it
                ax.annotate(
                    name, (max(r.speedup[name], 1), y), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=NAME, color=palette.muted,
                )  # fmt: skip
    ax.axvline(1, color=palette.line, lw=1)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_yticks(range(len(shown)), [r.case.title for r in shown], fontsize=7)
    ax.set_xlabel("times faster than the contestant")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=7)


def growth(figure, results: Sequence[Result]) -> None:
    """Time (above) and memory (below) against each swept size; dotted: proportional to the size."""
    axes = list(dict.fromkeys(r.case.axis for r in results))
    grid = figure.subplots(2, len(axes), squeeze=False)
    names = list(dict.fromkeys(name for r in results for name in r.milliseconds))
    for column, axis in enumerate(axes):
        points = sorted((r for r in results if r.case.axis == axis), key=lambda r: r.case.sizes[axis])
        for ax, unit, values in (
            (grid[0][column], "milliseconds", lambda r, name: r.milliseconds[name].p50 if r.milliseconds else None),
            (grid[1][column], "MB beyond inputs and results", lambda r, name: r.megabytes.get(name)),
        ):
            palette = style(ax)
            for i, name in enumerate(names):
                found = [(r.case.sizes[axis], values(r, name)) for r in points if name in r.milliseconds]
                found = [(x, y) for x, y in found if y is not None]
                if found:
                    ax.plot(*zip(*found, strict=True), "-o", ms=3.5, color=_colour(palette, i), label=name)
                if found and name == OURS and unit == "milliseconds":
                    x, y = found[-1]
                    ax.plot([p[0] for p in found], [y * p[0] / x for p in found], ":", color=palette.muted, lw=1)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log" if unit == "milliseconds" else "symlog")
            if unit != "milliseconds":
                ax.set_ylim(0, 2 * max(1, ax.get_ylim()[1]))
            ax.set_xlabel(f"{axis}: {LABELS[axis]}")
            ax.set_ylabel(unit)
    grid[0][0].legend(frameon=False, fontsize=7)
