"""Goals for K classes in D dimensions against configurations that have them, and everywhere a report shows one."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from numpy_metrics import cosines, simplex_distance
from numpy_metrics import pairs as of_pairs

import ncops
from ncops.conventions import PRESETS
from ncops.metrics.goals import Goals, equal_norm_spread, simplex_floor, simplex_uniformity
from ncops.report import compare
from ncops.report.caveats import caveats
from ncops.report.console import show_report
from ncops.report.details import document
from ncops.report.page import render

PENTAGON = np.stack([(math.cos(2 * math.pi * i / 5), math.sin(2 * math.pi * i / 5)) for i in range(5)])


def report_of(means, convention="ncops", rows=8, spread=0.01, weight=None, decided=None):
    """The report of a few rows about each of the given means."""
    means = torch.as_tensor(means, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(len(means)).repeat_interleave(rows)
    noise = spread * torch.randn(len(y), means.shape[1], dtype=torch.float64, generator=generator)
    stats = ncops.ClassStatistics(len(means), means.shape[1], scatter=True)
    stats.update(means[y] + noise, y)
    return ncops.collapse(stats.compute(), weight, convention=convention)


def test_the_floors_are_reached_by_a_pentagon():
    assert simplex_distance(PENTAGON @ PENTAGON.T) == pytest.approx(simplex_floor(5, 2), rel=1e-12)
    assert simplex_floor(5, 2) == pytest.approx(math.sqrt(2 - math.sqrt(2)))  # 0.765
    assert cosines(PENTAGON).std() == pytest.approx(equal_norm_spread(5, 2), rel=1e-12)
    assert simplex_floor(5, 4) == simplex_floor(5, 9) == equal_norm_spread(5, 4) == 0


def test_a_simplex_fits_up_to_one_class_more_than_dimensions():
    assert [Goals(k, 4).crowded for k in (4, 5, 6)] == [False, False, True]
    assert Goals(5, 4)["nc2_etf_error"].text == "0 = collapsed"


def test_goals_of_what_compares_with_no_simplex_of_means():
    rows = dataclasses.replace(PRESETS["ncops"], etf_of="weight")
    assert "nc2_etf_error" not in Goals(2, 7, rows).forced and "nc2_etf_error" in Goals(2, 7).forced
    assert Goals(5, 2, PRESETS["papyan"])["nc3_duality_error"].target == 0.0  # a distance, which can vanish
    products = dataclasses.replace(PRESETS["ncops"], similarity="dot")
    assert Goals(5, 2)["nc2_cos_std"].target == equal_norm_spread(5, 2)
    assert Goals(5, 2, products)["nc2_cos_std"].target is None


def test_nothing_is_below_the_floors():
    generator = np.random.default_rng(0)
    for _ in range(200):
        k, d = generator.integers(4, 30), generator.integers(1, 6)
        rows = generator.standard_normal((k, d)) * generator.uniform(0.1, 9, (k, 1))
        rows -= rows.mean(0)
        other = generator.standard_normal((k, d))
        floor = simplex_floor(k, d)
        assert min(simplex_distance(rows @ rows.T), simplex_distance(other @ rows.T)) >= floor - 1e-12
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            closeness = of_pairs(-0.5 * np.log(2 - 2 * np.clip(unit @ unit.T, -1, 1)))
        assert closeness.mean() >= simplex_uniformity(k) - 1e-12


@pytest.mark.parametrize(("classes", "value"), [(2, -0.6931472), (10, -0.3992539), (1000, -0.3470738)])
def test_the_uniformity_of_a_simplex(classes, value):
    means = np.eye(classes) - 1 / classes
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    measured = -0.5 * np.log(2 - 2 * cosines(means)).mean()
    assert [simplex_uniformity(classes), measured] == pytest.approx([value, value], abs=1e-7)
    assert Goals(classes, classes)["gnc2_log_mean"].text.startswith(f"{value:.4g} = simplex")


def test_goals_of_a_report_where_a_simplex_fits():
    report = report_of(np.eye(10))
    assert not report.goals.crowded and report["nc2_etf_error"] < 0.05
    assert report.goals["nc2_etf_error"] == ("0 = collapsed", 0.0, "lower")
    for name in ("nc2_cos_error", "nc2_w_cos_error"):
        assert report.goals[name] == ("0 = collapsed", 0.0, "lower")
    assert report.goals["nc2_cos_mean"].text == "-0.1111 = simplex"
    assert report.goals["gnc2_log_mean"].text == "-0.3993 = simplex"
    assert "[-0.3993 = simplex]" in report.table() and not any("K > D" in line for line in report.caveats())


def test_goals_of_a_report_where_none_fits(capsys):
    report = report_of(PENTAGON, weight=torch.from_numpy(PENTAGON))
    floor = f"{math.sqrt(2 - math.sqrt(2)):.4g} = least for K > D + 1"
    assert report["nc2_etf_error"] == pytest.approx(0.7654, abs=1e-3)
    assert report.goals.distance("nc2_etf_error", report["nc2_etf_error"]) < 1e-3
    assert report.goals["nc2_cos_std"].target == pytest.approx(cosines(PENTAGON).std())
    assert report.goals["gnc2_log_mean"].text == "above -0.4581, a simplex's"
    theirs = report_of(PENTAGON, "linguistic-collapse")  # over n - 1 pairs
    assert theirs.goals["nc2_cos_std"].target == pytest.approx(cosines(PENTAGON).std(ddof=1))
    assert theirs["nc2_cos_std"] == pytest.approx(cosines(PENTAGON).std(ddof=1), rel=1e-2)
    show_report(report, "title")
    printed, page, html = capsys.readouterr().out, render(report), report._repr_html_()
    for text in (report.table(), printed, page.replace("&gt;", ">"), html.replace("&gt;", ">")):
        assert floor in text
        assert text.count("0 = collapsed, where") == 0
    for name in ("nc2_etf_error", "nc3_duality_error"):
        assert floor in next(line for line in report.table().splitlines() if line.split()[:1] == [name])
    assert "5 classes in 2 dimensions (K > D + 1): a simplex does not fit" in report.table()
    assert document(report)["caveats"] == report.caveats()


@pytest.mark.parametrize("convention", PRESETS)
@pytest.mark.parametrize(("classes", "dim"), [(6, 9), (5, 4)])
def test_a_collapsed_network_has_every_goal(convention, classes, dim):
    """Every metric of a report, so that a new one brings its goal."""
    means = 3 * ncops.metrics.simplex_etf(classes, dim).double()  # of norm 1 the logarithm has no variation
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(classes).repeat(10)
    x = means[y] + 1e-7 * torch.randn(len(y), dim, dtype=torch.float64, generator=generator)
    report = ncops.measure(x, y, 40 * means, convention=convention)
    for name, value in report.items():
        goal = report.goals[name]
        if goal.text == "depends on the scale":
            continue
        if name in ("accuracy", "nll", "entropy", "ece"):
            assert value == pytest.approx(float(name == "accuracy"), abs=1e-12)
        elif goal.target is None:
            assert goal.text.endswith(" = simplex") and value == pytest.approx(float(goal.text.split()[0]), rel=1e-3)
        else:
            assert value == pytest.approx(goal.target, abs=1e-5), name


@pytest.mark.parametrize("convention", PRESETS)
def test_a_tight_frame_has_every_goal_that_k_classes_can_have(convention):
    """A pentagon in the plane: nothing falls below what is shown, and what is called least is reached."""
    y = torch.arange(5).repeat(10)
    noise = 1e-6 * torch.randn(len(y), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = 3 * torch.from_numpy(PENTAGON)
    report = ncops.measure(means[y] + noise, y, 60 * means, convention=convention)
    for name, value in report.items():
        goal = report.goals[name]
        if goal.target is not None:
            assert value == pytest.approx(goal.target, abs=1e-4), name
        elif goal.text.startswith("above"):
            word = goal.text.split()[1].rstrip(",")
            assert value > float(word) + 1e-3, name
        elif goal.text.endswith("least"):
            assert value >= float(goal.text.split()[0]) - 1e-3
        else:
            assert goal.text == "depends on the scale" or name in ("accuracy", "nll", "entropy", "ece"), name
    assert "at equal norms and sum 0" in report.goals["nc2_w_cos_std"].text
    if report.settings.similarity == "cosine":
        lone = "sum 0" not in report.goals["nc2_cos_std"].text
        assert lone == (report.settings.global_mean == "class")


def test_rows_that_are_all_alike_are_below_the_goal_of_rows_about_0():
    report = report_of(PENTAGON, weight=torch.ones(5, 2, dtype=torch.float64))
    assert report["nc2_w_cos_std"] == pytest.approx(0, abs=1e-7) and report["nc2_w_cos_error"] == pytest.approx(1.25)


def test_a_row_of_zeros_is_said():
    weight = torch.from_numpy(PENTAGON).clone()
    weight[2] = 0
    report = report_of(PENTAGON, weight=weight)
    assert math.isnan(report["nc2_w_cos_std"]) and math.isnan(report["nc2_w_cos_error"])
    assert report.notes["nc2_w_cos_error"] == "NaN: a classifier row is 0 or not finite"


def test_runs_with_and_without_room_for_a_simplex():
    crowded, roomy = report_of(PENTAGON), report_of(np.eye(5))
    same = compare([crowded, report_of(PENTAGON * 2)], labels=["a", "b"])
    assert same.goals == crowded.goals
    assert "↓ least 0, 0.559, 0.765" in same.html()
    mixed = compare([crowded, roomy], labels=["a", "b"])
    assert mixed.goals == Goals() and mixed.goals["nc2_etf_error"].text == "0 = collapsed, where K <= D + 1"
    figure, axes = same.plot()
    assert any(text.get_text() == "↓ least 0, 0.559, 0.765" for ax in axes for text in ax.texts)
    from matplotlib import pyplot

    pyplot.close("all")


def test_two_classes_are_always_collapsed_and_that_is_said():
    report = report_of(np.random.default_rng(1).standard_normal((2, 7)), spread=3.0)
    flat = {"nc2_norm_cv": 0, "nc2_log_norm_cv": 0, "nc2_cos_mean": -1, "nc2_cos_std": 0, "nc2_cos_error": 0,
            "nc2_etf_error": 0, "gnc2_log_mean": -math.log(2), "gnc2_log_var": 0}  # fmt: skip
    for name, value in flat.items():
        assert report[name] == pytest.approx(value, abs=1e-12)
        assert "whatever the features" in report.notes[name]
        assert report.goals[name].text.endswith("as always for K = 2")
    assert report["nc1_quotient"] > 0.1 and "nc1_quotient" not in report.notes
    assert any("NC2 reads as collapsed whatever the features" in line for line in report.caveats())
    theirs = report_of(np.random.default_rng(1).standard_normal((2, 7)), "zhu")  # about another point
    assert theirs.goals.forced == ()


@pytest.mark.parametrize("convention", PRESETS)
def test_goals_that_a_convention_takes_away(convention):
    settings, goals = PRESETS[convention], report_of(np.eye(4), convention).goals
    assert (goals["nc2_cos_mean"].text == "depends on the scale") == (settings.similarity == "dot")
    assert (goals["nc3_cos_mean"].target is None) == (settings.duality_similarity == "dot")


def test_an_accuracy_that_rows_without_a_mean_cap():
    goals = Goals(10, 20, unkept=0.25)
    assert goals["ncc_accuracy"].target == 0.75 and goals["nc4_agreement"].target == 1.0
    assert goals.direction("ncc_accuracy").startswith("↑ 0.75 = most")
    (told,) = caveats({}, goals)
    assert told.startswith("25 % of the decision samples") and "the nearest-mean accuracy at 0.750 and" in told
    assert caveats({}, Goals(10, 20, unkept=0.02)) == []


def test_the_uniformity_that_takes_the_place_of_a_simplex_is_that_of_the_classes():
    (told,) = caveats({"classes_kept": 6}, Goals(6, 4))
    assert f"(a mean above {simplex_uniformity(6):.4g}, a spread above 0)" in told


def test_tiny_coverage_is_said():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(3)
    stats = ncops.ClassStatistics(500, 6)
    stats.update(torch.randn(12, 6, generator=generator), y)
    told = " ".join(ncops.collapse(stats.compute()).caveats())
    assert "Only 4 of 500 classes (0.8 %) are kept" in told and "3 samples on average" in told


def test_nan_and_infinity_always_have_a_note():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(31, 6, generator=generator), torch.arange(10).repeat_interleave(3)
    y = torch.cat([y, torch.tensor([10])])
    stats = ncops.ClassStatistics(11, 6, scatter=True)
    stats.update(x, y)
    mine = dataclasses.replace(PRESETS["ncops"], name="mine", variance_ddof=1)
    report = ncops.collapse(stats.compute(), convention=mine)
    assert math.isnan(report["nc1_cdnv"])
    assert report.notes["nc1_cdnv"].startswith("NaN: 1 kept class has too few samples for a variance over n - 1 under")
    assert math.isfinite(ncops.collapse(stats.compute(min_count=2), convention=mine)["nc1_cdnv"])
    two = report_of(np.eye(2), "linguistic-collapse")
    assert math.isnan(two["nc2_cos_std"]) and "too few pairs of classes (1) for a spread" in two.notes["nc2_cos_std"]
    same = ncops.ClassStatistics(3, 2, scatter=True)
    same.update(torch.tensor([[1.0, 0], [3, 0], [1, 0], [3, 0], [0, 5], [0, 7]]), torch.tensor([0, 0, 1, 1, 2, 2]))
    report = ncops.collapse(same.compute())
    assert report["nc1_cdnv"] == math.inf and report.notes["nc1_cdnv"] == "infinite: class means coincide"
    point = ncops.ClassStatistics(3, 2, scatter=True)
    point.update(torch.ones(6, 2), torch.arange(6) % 3)
    report = ncops.collapse(point.compute())
    assert all(name in report.notes for name, value in report.items() if not math.isfinite(value))


def test_a_stored_report_from_before_has_its_goals(tmp_path):
    """Reports had the dimensions among the facts of the run, and no schema."""
    report = report_of(PENTAGON)
    stored = document(report, {"run": {"dim": 2}})
    for new in ("schema", "caveats", "provenance"):
        del stored[new]
    del stored["coverage"]["dim"]
    (tmp_path / "report.json").write_text(json.dumps(stored))
    (run,) = compare([tmp_path]).runs
    assert run.report.goals == report.goals and run.report.provenance == {} and run.details["notes"] == []
    stored["coverage"].update(classes_kept=10**30, decision_unkept_share=-3)
    stored["run"]["dim"] = "two"
    (tmp_path / "report.json").write_text(json.dumps(stored))
    assert compare([tmp_path]).runs[0].report.goals == Goals()
