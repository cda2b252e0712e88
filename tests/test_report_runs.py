"""Several runs in one report: reading, axes, caveats, figures, the page, the command."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from pathlib import Path

import pytest
import report_runs
import torch
from safetensors.torch import save_file

import ncops
from ncops.cli import main
from ncops.conventions import PRESETS
from ncops.metrics.goals import Goals
from ncops.report import Comparison, compare
from ncops.report import details as parts
from ncops.report.places import places, short_names
from ncops.report.plots import curves
from ncops.report.stored import read_report

STEPS = (0, 100, 1000, 20000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders with a report.json each, last step first."""
    return report_runs.write_runs(tmp_path_factory.mktemp("runs"), STEPS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two folders as `ncops lm --save` writes them, each with its own classifier; and what they measure."""
    folder, reports = tmp_path_factory.mktemp("saved"), {}
    for number, noise in enumerate((1.0, 0.3)):
        place = folder / f"epoch_{10 * (number + 1)}"
        place.mkdir()
        stats, decisions, weight, geometry = report_runs.statistics(noise, seed=number)
        stats.save(place / "class_statistics.safetensors")
        decisions.save(place / "decision_statistics.safetensors")
        save_file({"weight": weight}, place / "head.safetensors")
        reports[place] = ncops.collapse(geometry, weight, decisions=decisions)
    return reports


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_folders_are_sorted_by_their_number(runs):
    found = compare(runs)
    assert found.axis == curves.Axis("step", [0.0, 100.0, 1000.0, 20000.0])
    assert [run.name for run in found.runs] == ["step-0", "step-100", "step-1000", "step-20000"]
    for index, folder in enumerate(runs[::-1]):
        stored = json.loads((folder / "report.json").read_text())["metrics"]
        assert {n: v[index] for n, v in found.metrics.items()} == stored
    assert [run.source for run in compare([folder / "report.json" for folder in runs]).runs] == [
        run.source for run in found.runs
    ]


def test_a_stored_report_is_the_report(tmp_path):
    report, details = report_runs.measured(1.0)
    (tmp_path / "report.json").write_text(json.dumps(parts.document(report, details)))
    again, more = read_report(tmp_path / "report.json")
    assert list(again) == list(report) and all(same(again[n], report[n]) for n in report)
    assert again.coverage == report.coverage and again.settings == report.settings and again.notes == report.notes
    assert parts.strict(details) == more
    (tmp_path / "other.json").write_text(report.to_json())
    assert dict(read_report(tmp_path / "other.json")[0]) == dict(again)


def test_saved_statistics_measure_again(saved):
    found = compare(list(saved), classifier="head.safetensors")
    assert found.axis == curves.Axis("epoch", [10.0, 20.0])
    for run, expected in zip(found.runs, saved.values(), strict=True):
        assert all(same(run.report[n], expected[n]) for n in expected), run.name
        # Of the counts that keep the classes of the decision pass the least: here all but those never seen.
        assert run.report.coverage == {**expected.coverage, "min_count": 1}
        assert {"mean_norm", "row_cosine", "reliability"} <= set(run.details["histograms"])
    without = compare(list(saved))
    assert without.metrics["nc3_cos_mean"] == [None, None] and without.metrics["accuracy"][0] > 0
    assert "NaN: needs the classifier" in without.runs[0].report.notes["nc3_cos_mean"]
    assert compare(list(saved)[:1], classifier=next(iter(saved)) / "head.safetensors").metrics["nc3_cos_mean"][0] > 0


def test_statistics_that_do_not_fit(saved, tmp_path):
    first, second = saved
    with pytest.raises(ValueError, match="made with a geometry of other classes"):
        compare([first], min_count=10**6)
    with pytest.raises(ValueError, match="holds DecisionStatistics, expected ClassStatistics"):
        compare([first / "decision_statistics.safetensors"])
    with pytest.raises(ValueError, match="classifier: no run is saved statistics"):
        compare(report_runs.write_runs(tmp_path / "r"), classifier=first / "head.safetensors")
    with pytest.raises(FileNotFoundError, match="nor one of that name beside the run"):
        compare([first], classifier="nothing.safetensors")
    for name, place in (("a1", first), ("a2", second)):
        (tmp_path / f"{name}.safetensors").write_bytes((place / "class_statistics.safetensors").read_bytes())
    (tmp_path / "decision_statistics.safetensors").write_bytes((first / "decision_statistics.safetensors").read_bytes())
    both = compare([tmp_path / "a1.safetensors", tmp_path / "a2.safetensors"])
    assert both.axis.points == [1.0, 2.0] and both.axis.name == "a" and "accuracy" in both.metrics
    assert both.metrics["accuracy"] == [None, None] and "can belong to one of them" in both.runs[0].details["notes"][0]


def test_reports_in_memory_and_wrong_arguments(runs):
    report = report_runs.measured(1.0)
    found = compare([report.report, report], labels=["a", "b"])
    assert found.axis.labels == ["a", "b"] and found.axis.points == [0, 1] and found.runs[1].details["layers"]
    assert compare([report.report], labels=["5"]).axis.labels == ["5"]  # one run has no axis
    for arguments, text in (
        (([],), "runs: expected at least one"),
        ((runs,), "labels: expected 4, one per run, got 1"),
        ((["nowhere"],), "run: no file or folder 'nowhere'"),
        (([runs[0].parent],), "has neither report.json nor class_statistics.safetensors"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text)):
            compare(*arguments, labels=["x"] if "labels" in text else None)
    with pytest.raises(TypeError, match="got int"):
        compare([3])


# -- names and axes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "axis", "expected"),
    [
        (["step-1000", "step-200"], None, ("step", [1000, 200])),
        (["0", "25", "100"], None, ("run", [0, 25, 100])),
        (["0", "25"], "step", ("step", [0, 25])),
        (["epoch=1-step=500", "epoch=2-step=1000"], None, ("step", [500, 1000])),
        (["epoch=1-step=500", "epoch=2-step=1000"], "epoch", ("epoch", [1, 2])),
        (["pythia-70m-step1000", "pythia-70m-step2000"], None, ("step", [1000, 2000])),
        (["10k", "2.5M", "1B"], "tokens", ("tokens", [1e4, 2.5e6, 1e9])),
        (["lr-1e-3", "lr-3e-4"], None, ("lr", [1e-3, 3e-4])),
        (["seed1/step-5", "seed2/step-5"], None, ("seed", [1, 2])),
        (["base", "tuned"], None, None),
        (["step-1", "step-1"], None, None),
        (["step-1", "final"], None, None),
        (["step-1"], None, None),
    ],
)
def test_places(names, axis, expected):
    assert places(names, axis) == expected


def test_short_names():
    assert short_names([Path("/x/runs/step-1/out/report.json"), Path("/x/runs/step-2/out/report.json")]) == [
        "step-1",
        "step-2",
    ]
    assert short_names([Path("/x/a.json"), Path("/x/b.json")]) == ["a", "b"]
    assert short_names([Path("/x/run7/report.json")]) == ["run7"]
    assert short_names([Path("/x/a/b/report.json"), Path("/x/a/report.json")]) == ["a/b", "a"]
    same_file = Path("/x/run7/report.json")
    assert short_names([same_file, same_file]) == ["run7", "run7"]


# -- results ----------------------------------------------------------------------------------------------------------


def test_table_and_json(runs):
    found = compare(runs)
    lines = found.table().splitlines()
    assert (
        len(lines) == 5 and lines[0].split()[:2] == ["run", "step"] and lines[4].split()[:2] == ["step-20000", "20000"]
    )
    document = json.loads(found.to_json())
    assert document["points"] == list(STEPS) and document["axis"] == "step" and document["numeric"] is True
    assert document["metrics"]["nll"] == found.metrics["nll"] and len(document["runs"]) == 4
    assert document["runs"][0]["coverage"]["classes"] == 40


def test_caveats(runs, saved):
    assert compare(runs).caveats() == []
    (folder,) = runs[:1]
    other = compare([folder, next(iter(saved))], labels=["a", "b"])
    assert any("data" in text and "a: a text; b: unknown" in text for text in other.caveats())
    strange = compare([next(iter(saved)), next(iter(saved))], labels=["a", "b"], min_count=None)
    assert strange.caveats() == []


def test_convention_is_compared(tmp_path, runs):
    document = json.loads((runs[0] / "report.json").read_text())
    document.update(convention="papyan", settings=ncops.conventions.resolve("papyan").as_dict())
    (tmp_path / "report.json").write_text(json.dumps(document))
    found = compare([runs[1], tmp_path], labels=["a", "b"])
    assert found.runs[1].report.convention == "papyan"
    assert "differ in their convention" in found.caveats()[0] and "b: papyan" in found.caveats()[0]


HOSTILE = "</td><script>alert(1)</script>\" onload='x' $\\frac{ \u202e\x00"


def test_hostile_files(tmp_path, runs):
    document = json.loads((runs[0] / "report.json").read_text())
    document["classes"]["rows"][0]["count"] = '1" onmouseover="alert(1)'
    document["histograms"]["entropy"]["counts"] = [1, HOSTILE]
    document["histograms"]["margin"]["below"] = HOSTILE
    document["histograms"]["mean_norm"]["edges"][0] = 10**400
    document["scatter"]["variance"][0] = -1.0
    document["layers"].update(axis=HOSTILE)
    document["checkpoints"]["points"] = [3, 2, 1]
    document["run"] = {HOSTILE: HOSTILE, "nested": {"a": 1}}
    document["notes"] = [HOSTILE]
    document["coverage"][HOSTILE] = 3
    document["coverage"]["classes"] = HOSTILE
    document["metric_notes"] = {"nll": HOSTILE}
    document["convention"], document["settings"] = HOSTILE, {"name": 3}
    for number in (1, 2):
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "report.json").write_text(json.dumps(document))
    found = compare([tmp_path / "r1", tmp_path / "r2"], labels=[HOSTILE + "1", HOSTILE + "two"])
    lost = found.runs[0].details["notes"][-1]
    for part in ("classes", "entropy", "margin", "mean_norm", "scatter", "checkpoints"):
        assert part in lost and part not in found.runs[0].details and part not in found.runs[0].details["histograms"]
    page = found.html(title=HOSTILE)
    assert "alert(1)</script>" not in page and "onmouseover=" not in page and "\x00" not in page
    # Within a tag no attribute of theirs: quotes and brackets are escaped wherever they come from.
    assert not re.search(r"<[^>]*\sonload=", page)
    found.plot()[0].draw_without_rendering()  # a $ starts no formula


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"metrics": {}}', '{"metrics": []}', '{"metrics": {"a\\" b": 1}}', '{"metrics": {"a": "1"}}',
        '{"metrics": {"a": true}}', '{"metrics": {"a": 1e999}}', "[" * 100_000, "\udcff",
    ],
)  # fmt: skip
def test_files_that_are_no_reports(tmp_path, text):
    (tmp_path / "report.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="run: .*report.json"):
        compare([tmp_path])


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def overlaps(boxes) -> int:
    return sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_figure_can_be_read(runs, pyplot):
    figure, axes = compare(runs).plot()
    figure.draw_without_rendering()
    assert len(axes) == 6 and figure.get_size_inches()[0] == pytest.approx(7.2)
    assert axes[0].get_yscale() == "log" and axes[4].get_yscale() == "linear"  # decades; accuracy is a share
    assert axes[0].get_xscale() == "symlog"  # 0, 100, 1000, 20000
    for ax in axes:
        inside = [text for text in ax.texts if text.get_text()]
        assert overlaps([text.get_window_extent() for text in inside]) == 0
        assert any(text.get_text().startswith(("↓", "↑")) for text in inside)
        ticks = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        assert len(ticks) >= 3 and overlaps(ticks) == 0
        assert min(label.get_fontsize() for label in ax.get_xticklabels()) >= 8
        for text in inside:  # nothing is cut off at the edge of the paper
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
        looks = [(line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in ax.lines]
        assert len({marker for _, marker, _ in looks if marker not in ("", "None")}) == len(
            [1 for _, marker, _ in looks if marker not in ("", "None")]
        )


def test_figure_of_names_and_of_one_run(runs, saved, pyplot):
    figure, axes = compare(list(saved), labels=["a model with a long name", "b"]).plot()
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a model …long name", "b"]
    assert len(axes) == 5  # no classifier, no NC3
    own = pyplot.figure().add_subplot()
    assert compare(runs).plot(own) == (own.figure, own)
    assert own.get_yscale() == "log"
    assert "1 − NC3 alignment" in [text.get_text() for text in own.get_legend().get_texts()]
    one = compare(runs[:1])
    figure, axes = one.plot()
    assert one.trajectory[0] == curves.Axis("step", [0, 50, 800]) and len(axes) == 2
    assert list(axes[0].lines[0].get_ydata())[:2] == [3.0, 2.0]


def papyan_runs(crowded=False, convention="papyan"):
    """Runs whose means go from anywhere to a simplex, or in two dimensions to a pentagon."""
    generator, reports = torch.Generator().manual_seed(0), []
    y, dim = torch.arange(500) % 5, 2 if crowded else 8
    angles = 2 * torch.pi * torch.arange(5) / 5
    end = torch.stack([angles.cos(), angles.sin()], 1) if crowded else ncops.metrics.simplex_etf(5, dim).float()
    start = torch.randn(5, dim, generator=generator)
    for far in (1.0, 0.3, 0.01):
        means = far * start + (1 - far) * end
        x = means[y] + 0.5 * far * torch.randn(500, dim, generator=generator)
        weight = means + 0.2 * far * torch.randn(5, dim, generator=generator)
        reports.append(ncops.measure(x, y, weight, convention=convention))
    return compare(reports, labels=["epoch-1", "epoch-10", "epoch-100"])


def test_the_figures_of_papyan_han_and_donoho(pyplot):
    runs = papyan_runs()
    figure, axes = runs.plot(panels="papyan")
    names = (
        ("nc2_norm_cv", "nc2_w_norm_cv"), ("nc2_cos_std", "nc2_w_cos_std"), ("nc2_cos_error", "nc2_w_cos_error"),
        ("nc3_duality_error",), ("nc1_pinv",), ("nc4_agreement",),
    )  # fmt: skip
    titles = ["Equinorm", "Equiangularity", "Maximal angle", "Self-duality", "Variability collapse", "NCC mismatch"]
    for ax, metrics, title in zip(axes, names, titles, strict=True):
        drawn = [line for line in ax.lines if len(line.get_xdata()) == 3]
        assert len(drawn) == len(metrics) and any(text.get_text() == title for text in ax.texts)
        for line, name in zip(drawn, metrics, strict=True):
            values = runs.metrics[name]
            values = [1 - v for v in values] if name == "nc4_agreement" else values
            assert list(line.get_xdata()) == [1, 10, 100] and line.get_ydata() == pytest.approx(values)
        assert [text.get_text() for text in ax.texts if text.get_text() in ("means", "rows")] == (
            ["means", "rows"] if len(metrics) == 2 else []
        )
    assert any(text.get_text() == "tr Σ_W Σ_B⁺ ↓ 0" for text in axes[4].texts)
    figure.draw_without_rendering()


def test_the_figures_of_a_paper_show_bounds_and_want_its_convention(pyplot):
    crowded = papyan_runs(crowded=True)
    _, axes = crowded.plot(panels="papyan")
    least = f"std of cosines ↓ {crowded.goals['nc2_cos_std'].target:.3g}"
    assert any(text.get_text() == least for text in axes[1].texts) and "0.559" in least
    with pytest.raises(ValueError, match="'papyan' needs runs .* got epoch-1 with 'ncops' \\(a self-duality"):
        papyan_runs(convention="ncops").plot(panels="papyan")
    with pytest.raises(ValueError, match="inner products for cosines, a self-duality"):
        papyan_runs(convention="neural-collapse").plot(panels="papyan")
    with pytest.raises(ValueError, match="panels: expected one of ncops, papyan, got 'zhu'"):
        crowded.plot(panels="zhu")
    with pytest.raises(ValueError, match="ax: expected None with panels='papyan'"):
        crowded.plot(pyplot.figure().add_subplot(), panels="papyan")
    divided = dataclasses.replace(PRESETS["papyan"], name="mine", nc1_divide=True)
    _, axes = papyan_runs(convention=divided).plot(panels="papyan")
    assert any(text.get_text() == "tr Σ_W Σ_B⁺/K ↓ 0" for text in axes[4].texts)


def test_command_with_the_figures_of_a_paper(runs, tmp_path, capsys):
    for run in papyan_runs().runs:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "report.json").write_text(json.dumps(parts.document(run.report, run.details)))
    stored = [str(path) for path in sorted(tmp_path.glob("epoch-*"))]
    assert main(["report", *stored, "-o", str(tmp_path / "out"), "--panels", "papyan"]) == 0
    assert main(["report", *stored, "-o", str(tmp_path / "ours")]) == 0
    theirs, ours = ((tmp_path / place / "trajectories.svg").read_text() for place in ("out", "ours"))
    assert theirs != ours and theirs.startswith("<?xml") == ours.startswith("<?xml")
    capsys.readouterr()
    assert main(["report", *map(str, runs), "-o", str(tmp_path / "no"), "--panels", "papyan"]) == 2
    assert "needs runs measured with convention='papyan'" in capsys.readouterr().err


def test_more_lines_than_colours(pyplot):
    lines = [curves.Line(f"run {i}", [float(i), i + 0.5]) for i in range(9)]
    ax = pyplot.figure().add_subplot()
    curves.draw(ax, curves.Axis("layer", [0, 1]), lines)
    looks = {(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in ax.lines}
    assert len(looks) == 9
    ax = pyplot.figure().add_subplot()
    curves.draw(ax, curves.Axis("layer", [0, 1]), lines, ordered=True)
    strength = [line.get_alpha() for line in ax.lines]
    assert strength == sorted(strength) and [t.get_text() for t in ax.texts] == ["run 0", "run 4", "run 8"]


@pytest.mark.parametrize("values", [[None, None], [1.0, 1.0], [0.0, 0.0], [0.0, 1e-9], [-1.0, 1e6], [1e-300, 1e300]])
def test_extreme_values_draw(pyplot, values):
    figure = pyplot.figure(layout="constrained")
    ax = figure.add_subplot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves.draw(ax, curves.Axis("step", [0, 10]), [curves.Line("a", values), curves.Line("b", values)], target=0.0)
        figure.draw_without_rendering()
    assert all(map(math.isfinite, ax.get_ylim()))


def test_spread():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 5, 9):
        wanted = torch.rand(size, generator=generator).tolist()
        found = curves.spread(wanted, 0.1)
        order = sorted(range(size), key=wanted.__getitem__)
        gaps = [found[b] - found[a] for a, b in zip(order[:-1], order[1:], strict=True)]
        assert all(gap >= 0.1 - 1e-9 for gap in gaps) and min(found) > -0.06 and max(found) < 1.06
    assert curves.spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    assert curves.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert curves.spread([], 0.1) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("nc1_pinv", "↓ 0 = collapsed"), ("nc4_agreement", "↑ 1 = collapsed"), ("accuracy", "↑ higher is better"),
     ("nll", "↓ lower is better"), ("nc2_cos_mean", "-1/(K-1) = simplex"), ("unheard_of", "")],
)  # fmt: skip
def test_direction(name, text):
    assert Goals().direction(name) == text


# -- the page and the command -----------------------------------------------------------------------------------------


def test_page(runs):
    pytest.importorskip("matplotlib")
    found = compare(runs)
    page = found.html()
    assert page == compare(runs[::-1]).html()  # the order of the arguments does not matter where there is an axis
    assert page.count("<svg") == 6 + 2 + 2 + 8
    assert "The last run: step-20000" in page and "id=runs data-sort" in page
    rows = re.search(r"<table id=runs.*?</table>", page, re.S)[0]
    assert rows.count("<tr>") == 5 and rows.count("class=best") >= 8


def test_steps_and_epochs_share_no_axis(runs):
    pytest.importorskip("matplotlib")
    found = compare(runs[:2])
    found.runs[0].details["checkpoints"] = {**found.runs[0].details["checkpoints"], "axis": "epoch"}
    titles = re.findall(r'<h3 id="(checkpoints-[^"]*)-title"', found.html())
    assert titles == ["checkpoints-nc1_quotient", "checkpoints-nll", "checkpoints-nc1_quotient-1", "checkpoints-nll-1"]


def test_page_without_matplotlib(runs, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = compare(runs[:2]).html()
    assert "ncops[cli]" in page and "<svg" not in page and "All runs" in page


def test_command(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    assert main(["report", *map(str, runs), "-o", str(folder), "--json", "--title", "Mine"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["points"] == list(STEPS) and "wrote" in printed.err
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["comparison.json", "report.html", "trajectories.pdf", "trajectories.svg"]
    assert json.loads((folder / "comparison.json").read_text()) == document
    assert "<h1>Mine</h1>" in (folder / "report.html").read_text()
    pdf = (folder / "trajectories.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type0" in pdf and b"/Type3" not in pdf  # fonts that publishers take
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["report", *map(str, runs), "-o", str(folder)]) == 0
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first.keys() == again.keys() and first["trajectories.pdf"] == again["trajectories.pdf"]
    assert first["trajectories.svg"] == again["trajectories.svg"]
    assert "step-20000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "-o", "OUT"], "no file or folder 'nowhere'"),
        (["RUN", "-o", "RUN"], "is one of the runs; give another folder"),
        (["RUN", "-o", "OUT", "--labels", "a,b"], "labels: expected 1, one per run, got 2"),
        (["RUN", "-o", "OUT", "--classifier", "x.safetensors"], "no run is saved statistics"),
        (["RUN"], "Missing option"),
        (["-o", "OUT"], "Missing argument"),
    ],
)
def test_command_errors_in_one_line(runs, tmp_path, capsys, arguments, text):
    names = {"RUN": str(runs[0]), "OUT": str(tmp_path / "out")}
    before = (runs[0] / "report.json").read_bytes()
    assert main(["report", *(names.get(a, a) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert (runs[0] / "report.json").read_bytes() == before and not (runs[0] / "report.html").exists()


def test_command_on_saved_statistics(saved, tmp_path, capsys):
    places = [str(place) for place in saved]
    arguments = ["report", *places, "-o", str(tmp_path / "o"), "--json", "--classifier", "head.safetensors"]
    assert main([*arguments, "--labels", "early, late"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in document["runs"]] == ["early", "late"] and document["numeric"] is False
    expected = [report["nc4_agreement"] for report in saved.values()]
    assert document["metrics"]["nc4_agreement"] == expected and None not in document["metrics"]["nc3_cos_mean"]


def test_is_a_comparison(runs):
    assert isinstance(ncops.report.compare(runs[:1]), Comparison)
