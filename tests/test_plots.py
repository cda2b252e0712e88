"""Plots on axes of the user's: the styles they follow, and that nothing is cut off or printed over."""

from __future__ import annotations

import pytest
import report_runs

from ncops.report import compare

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import colors, pyplot, style  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from ncops.bench import plan, plots, runner, timing  # noqa: E402
from ncops.bench.case import COMPILE, EAGER, OURS  # noqa: E402
from ncops.report.plots.report import distribution  # noqa: E402
from ncops.report.plots.style import DARK, LIGHT  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def measured():
    return report_runs.measured(1.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return compare(report_runs.write_runs(tmp_path_factory.mktemp("runs"), (0, 100, 1000)))


def luminance(colour) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other) -> float:
    low, high = sorted((luminance(one) + 0.05, luminance(other) + 0.05))
    return high / low


def texts(ax) -> list:
    ticks = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    legend = ax.get_legend().get_texts() if ax.get_legend() else []
    return [text for text in [*ax.texts, *ticks, *legend, ax.xaxis.label, ax.yaxis.label] if text.get_text()]


def drawn_axes(measured, runs):
    """Axes of every plot that people ask for."""
    yield measured.report.plot()[1]
    yield from runs.plot()[1]
    yield measured.report.plot(pyplot.figure().add_subplot())[1]
    yield runs.plot(pyplot.figure().add_subplot())[1]


NIGHT = {"figure.facecolor": "#101418", "axes.facecolor": "#101418"}
STYLES = ["default", "dark_background", "Solarize_Light2", "grayscale", NIGHT]


@pytest.mark.parametrize("name", STYLES, ids=str)
def test_every_word_can_be_read_in_every_style(measured, runs, name):
    with style.context(name):
        for ax in drawn_axes(measured, runs):
            ground = ax.get_facecolor() if ax.get_facecolor()[3] else ax.figure.get_facecolor()
            for text in texts(ax):
                assert contrast(text.get_color(), ground) > 2.2, (text.get_text(), text.get_color(), ground)
            for line in ax.lines:
                assert contrast(line.get_color(), ground) > 1.2, line


def test_what_the_user_has_set_comes_first(measured, runs):
    with style.context({"text.color": "#123456", "axes.prop_cycle": matplotlib.cycler(color=["#ff0000", "#00ff00"])}):
        _, ax = runs.plot(pyplot.figure().add_subplot())
        assert [line.get_color() for line in ax.lines][:3] == ["#ff0000", "#00ff00", "#ff0000"]
        assert ax.get_xticklabels()[0].get_color() == "#123456"
        assert len({line.get_marker() for line in ax.lines[:4]}) == 4  # two colours, yet four lines to tell apart
    _, ax = runs.plot(pyplot.figure().add_subplot())
    assert ax.lines[0].get_color() == LIGHT.series[0]
    _, ax = runs.plot(pyplot.figure(facecolor="black").add_subplot(facecolor="black"))
    assert ax.lines[0].get_color() == DARK.series[0]
    assert ax.get_facecolor() == (0, 0, 0, 1)


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.2, 2.6)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 2)])
def test_nothing_is_cut_off_on_axes_of_ones_own(measured, runs, size, grid):
    rows, columns = grid
    figure, axes = pyplot.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False)
    for number, ax in enumerate(axes.flat):
        (measured.report if number % 2 else runs).plot(ax)
    figure.draw_without_rendering()
    boxes = []
    for ax in axes.flat:
        inside = [text.get_window_extent() for text in texts(ax)]
        for box in inside:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        boxes.append(inside)
    for i, mine in enumerate(boxes):
        for theirs in boxes[:i]:
            assert not any(a.overlaps(b) for a in mine for b in theirs)


def test_names_of_the_lines_are_in_a_legend_inside_the_axes(runs):
    figure = pyplot.figure(figsize=(3.2, 2.4))
    ax = figure.add_subplot()
    assert runs.plot(ax) == (figure, ax)
    figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= ax.bbox.x0 - 1 and box.x1 <= ax.bbox.x1 + 1
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["NC1 trace ratio", "NC2 norms", "1 − NC3 alignment", "1 − NC4 agreement"]


# -- the benchmark ----------------------------------------------------------------------------------------------------


def results(count: int = 60):
    """Cases that lie close together, as many as a full run has."""
    cases = [case for case in (plan.quick() * 4) if case.axis is None][:count]

    def same(value):
        return timing.Quantiles(value, value, value)

    for number, case in enumerate(cases):
        best = max(case.flops / 2e11, case.bytes / 2.5e10) * 1e3
        yield runner.Result(
            case, 2, milliseconds={OURS: same(best * (1.2 + 0.01 * number)), EAGER: same(3 * best)},
            speedup={EAGER: 3.0, COMPILE: 2.0, case.versus: 0.5 + 0.1 * number},
            limits={"register": same(2.3e11), "read": same(2.5e10)}, share=same(0.5), bound="register",
        )  # fmt: skip


@pytest.mark.parametrize("count", [1, 15, 60])
def test_benchmark_plots_print_nothing_over_anything(tmp_path, monkeypatch, count):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    paths = plots.save_plots(list(results(count)), tmp_path)
    figures = {path.stem: figure for path, figure in zip(paths, drawn, strict=True)}
    assert set(figures) == {"roofline", "speedup"}
    for name, figure in figures.items():
        figure.draw_without_rendering()
        (ax,) = figure.axes
        names = [text for text in ax.texts if text.get_text()]
        assert len(names) >= count
        every = [*names, *(label for label in ax.get_yticklabels() if name == "speedup" and label.get_text())]
        boxes = [Text.get_window_extent(text) for text in every]  # without the lines to the points
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        for box in boxes:
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        if name == "roofline":  # names stand beside the plot, not on its points
            assert all(box.x0 >= ax.bbox.x1 for box in boxes)
            (legend,) = figure.legends
            assert legend.get_window_extent().y0 >= ax.bbox.y1
        else:  # nor through the line where both are as fast
            at = ax.transData.transform((1, 0))[0]
            assert not any(box.x0 <= at <= box.x1 for box in boxes[: len(names)])


def test_benchmark_plots_follow_a_dark_style(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    with style.context("dark_background"):
        plots.save_plots(list(results(5)), tmp_path)
        for figure in drawn:
            for text in texts(figure.axes[0]):
                assert contrast(text.get_color(), "black") > 4.5


@pytest.mark.parametrize(("low", "high"), [(0.99966, 0.99984), (-0.12346, -0.12340), (4.25, 4.37), (0.0, 3e-7)])
def test_labels_of_a_narrow_histogram_stand_apart(low, high):
    edges = [low + (high - low) * i / 8 for i in range(9)]
    with pyplot.rc_context({"font.size": 11, "xtick.labelsize": 10.5}):  # as on a page
        figure, ax = pyplot.subplots(figsize=(4.4, 2.9), layout="constrained")
        distribution(ax, {"edges": edges, "counts": [2, 0, 1, 2, 0, 3, 0, 2]}, "cosine")
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    shown = sorted((b for b in boxes if ax.bbox.x0 < (b.x0 + b.x1) / 2 < ax.bbox.x1), key=lambda box: box.x0)
    assert len(shown) >= 2 and all(a.x1 + 2 < b.x0 for a, b in zip(shown[:-1], shown[1:], strict=True))
