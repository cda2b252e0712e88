"""collapse(): every number of a report against float64 NumPy, under every convention, and what a report says of
itself."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from numpy_metrics import class_geometry, decision_metrics, geometry_metrics

import ncops
from ncops.conventions import PRESETS, Convention
from ncops.report import NAMES

DECISIONS = ("nc4_agreement", "ncc_accuracy", "accuracy", "ece")


def problem(classes, dim, n=1500, dtype=torch.float64, spread=0.5, distance=1.0, offset=0.0, missing=0):
    """Imbalanced training rows, held-out rows of all classes, and a classifier that is roughly aligned."""
    means = distance * torch.randn(classes, dim, dtype=torch.float64) + offset
    share = torch.rand(classes, dtype=torch.float64) + 0.2
    if missing:
        share[-missing:] = 0
    y = torch.multinomial(share, n, replacement=True)
    z = torch.multinomial(share + 0.1, n // 2, replacement=True)
    x, held = (means[r] + spread * torch.randn(len(r), dim, dtype=torch.float64) for r in (y, z))
    weight = means - means.mean(0) + 0.3 * torch.randn(classes, dim, dtype=torch.float64)
    bias = torch.randn(classes, dtype=torch.float64)
    return x.to(dtype), y, held.to(dtype), z, weight.to(dtype), bias.to(dtype)


def measure(x, y, held, z, weight, bias, convention="ncops", min_count=1, batch=200):
    stats = ncops.ClassStatistics(len(weight), x.shape[1], scatter=True)
    for at in range(0, len(x), batch):
        stats.update(x[at : at + batch], y[at : at + batch])
    geometry = stats.compute(min_count)
    decisions = ncops.DecisionStatistics(geometry, weight, bias, convention=convention)
    for at in range(0, len(held), batch):
        decisions.update(held[at : at + batch], z[at : at + batch])
    return ncops.collapse(geometry, weight, bias, decisions=decisions, convention=convention)


def numpy_report(x, y, held, z, weight, bias, convention="ncops", min_count=1):
    c = PRESETS[convention]
    g = class_geometry(x.double().numpy(), y.numpy(), len(weight), min_count)
    values = geometry_metrics(
        g, weight.double().numpy(), global_mean=c.global_mean, divide=c.nc1_divide, power=c.cdnv_power,
        norm_squared=c.norm_squared, norm_ddof=c.norm_ddof, similarity=c.similarity, pair_ddof=c.pair_ddof,
        center=c.gnc2_centered, etf_of=c.etf_of, duality_similarity=c.duality_similarity, duality_ddof=c.duality_ddof,
        duality=c.duality_error,
    )  # fmt: skip
    decided = decision_metrics(
        held.double().numpy(), z.numpy(), weight.double().numpy(), bias.double().numpy(), g,
        use_bias=c.decision_bias, candidates=c.decision_classes, rows=c.decision_rows,
    )  # fmt: skip
    return {**values, **{name: decided[name] for name in (*DECISIONS, "nll", "entropy")}}


SHAPES = {
    "few classes": (12, 20),
    "a token vocabulary": (90, 16),
    "as many as dimensions": (17, 16),
    "two": (2, 3),
    "line": (9, 1),
}


@pytest.mark.parametrize("convention", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_float64(shape, convention):
    data = problem(*SHAPES[shape], missing=1 if SHAPES[shape][0] > 2 else 0)
    ours = measure(*data, convention=convention)
    with (
        np.errstate(all="ignore"),
        warnings.catch_warnings(action="ignore"),
    ):  # one pair, one dimension: NaN on both sides
        theirs = numpy_report(*data, convention=convention)
    assert tuple(ours) == NAMES == tuple(name for name in NAMES if name in theirs)
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-10, abs=1e-13, nan_ok=True), name


@pytest.mark.parametrize("convention", PRESETS)
@pytest.mark.parametrize("shape", ("few classes", "a token vocabulary"))
@pytest.mark.parametrize("offset", (0.0, 5.0))
def test_every_number_float32(shape, convention, offset):
    data = problem(*SHAPES[shape], dtype=torch.float32, missing=1, offset=offset)
    ours, theirs = measure(*data, convention=convention), numpy_report(*data, convention=convention)
    rows = len(data[3])
    for name in NAMES:
        if name in DECISIONS:  # a row within rounding of a tie, or of the edge of a bin, may fall on either side
            assert abs(ours[name] - theirs[name]) <= 1 / rows + 1e-6, name
        else:
            absolute = 1e-5 if "cos" in name and PRESETS[convention].similarity == "cosine" else 0
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=absolute), name


@pytest.mark.parametrize("min_count", (2, 15))
def test_min_count(min_count):
    data = problem(90, 16, n=900)
    ours, theirs = measure(*data, min_count=min_count), numpy_report(*data, min_count=min_count)
    assert ours.coverage["classes_kept"] < 90
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-10, abs=1e-13), name


def test_collapsed_regime_float32():
    """Means of norm 100 with noise 1e-3, on a simplex: NC1 keeps its digits, and the geometry reads as collapsed."""
    k, dim, n = 10, 32, 4000
    basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q[:k]
    means = (torch.eye(k, dtype=torch.float64) - 1 / k) @ basis
    means *= 100 / means.norm(dim=1, keepdim=True)
    y = torch.randint(0, k, (n,))
    x = (means[y] + 1e-3 * torch.randn(n, dim, dtype=torch.float64)).float()
    data = (x, y, x, y, (means / 100).float(), torch.zeros(k))
    ours, theirs = measure(*data), numpy_report(*data)
    for name in ("nc1_pinv", "nc1_quotient", "nc1_cdnv"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert abs(ours["vci"]) < 1e-9 and ours["nc2_etf_error"] < 1e-5 and ours["nc3_cos_mean"] > 1 - 1e-9
    assert ours["nc4_agreement"] == ours["accuracy"] == ours["ncc_accuracy"] == 1
    assert ours["nll"] < 1e-20


def test_half_precision_features():
    data = problem(12, 20, dtype=torch.bfloat16)
    ours, theirs = measure(*data), numpy_report(*data)
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=0.01 if name in DECISIONS else 1e-5), name


# -- what is absent ---------------------------------------------------------------------------------------------------


def test_absent_inputs_are_nan_with_a_reason():
    x, y, held, z, weight, bias = problem(12, 20)
    stats = ncops.ClassStatistics(12, 20)
    stats.update(x, y)
    report = ncops.collapse(stats.compute())
    missing = {name for name in NAMES if math.isnan(report[name])}
    rows = {"nc2_w_norm_cv", "nc2_w_cos_std", "nc2_w_cos_error", "nc3_cos_mean", "nc3_cos_cv", "nc3_duality_error"}
    assert missing == {"nc1_pinv", "vci", "nll", "entropy", *rows, *DECISIONS}
    assert set(report.notes) == missing
    assert "needs the D x D scatter" in report.notes["vci"] and "classifier's weight" in report.notes["nc3_cos_mean"]
    assert "needs a decision pass" in report.notes["nll"]
    zhu = ncops.collapse(stats.compute(), convention="zhu")
    assert "of the classifier rows" in zhu.notes["nc2_etf_error"]
    # Read on the command line too, where nothing has these names.
    assert not any("=" in note for note in (*report.notes.values(), *zhu.notes.values()))


@pytest.mark.parametrize("kept", (0, 1))
@pytest.mark.parametrize("convention", PRESETS)
def test_fewer_than_two_kept_classes(kept, convention):
    x, y, held, z, weight, bias = problem(5, 4)
    x, y = x[y < kept], y[y < kept]
    report = measure(x, y, held, z, weight, bias, convention=convention)
    between = [name for name in NAMES if name.startswith(("nc1", "nc2", "nc3", "gnc2", "vci"))]
    assert all(math.isnan(report[name]) for name in between)
    assert f"there are {kept}" in report.notes["nc1_cdnv"]
    if PRESETS[convention].decision_rows == "all":  # the others then count next to no row
        assert 0 <= report["accuracy"] <= 1 and math.isfinite(report["nll"])
    assert math.isnan(report["nc4_agreement"]) == (kept == 0)
    json.loads(report.to_json())
    assert str(report)


def test_a_row_that_is_not_finite_is_said_and_crashes_nothing():
    x = torch.randn(60, 4)
    x[7, 2] = math.nan
    y = torch.arange(60) % 3
    weight = torch.randn(3, 4)
    for min_count in (1, 20):
        stats = ncops.ClassStatistics(num_classes=3, dim=4, scatter=True)
        stats.update(x, y)
        geometry = stats.compute(min_count)
        decisions = ncops.DecisionStatistics(geometry, weight)
        decisions.update(x, y)
        report = ncops.collapse(geometry, weight, decisions=decisions)
        assert math.isnan(report["vci"]) and math.isnan(report["nc1_pinv"]) and report["accuracy"] >= 0
        assert report.coverage["decision_skipped_rows"] == 1
        assert all("nonfinite" in report.notes[name] for name in ("nc1_pinv", "vci", "nc1_quotient"))


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_squares_that_overflow_are_not_taken_for_a_bad_row_or_for_coincident_means(nonfinite):
    x, y, *_ = problem(4, 6, dtype=torch.float32)
    x[5] = x[5].sign() * 1e20
    stats = ncops.ClassStatistics(4, 6, nonfinite=nonfinite)
    stats.update(x, y)
    report = ncops.collapse(stats.compute())
    assert report["nc1_quotient"] == report["nc1_cdnv"] == math.inf and report.coverage["skipped_rows"] == 0
    reason = "some features are so large that their squares overflow"
    assert report.notes["nc1_quotient"] == report.notes["nc1_cdnv"] == f"infinite: {reason}"
    assert report.notes["gnc2_log_var"] == f"NaN: {reason}"


def test_decisions_must_fit():
    x, y, held, z, weight, bias = problem(12, 20)
    stats = ncops.ClassStatistics(12, 20)
    stats.update(x, y)
    geometry = stats.compute()
    decisions = ncops.DecisionStatistics(geometry, weight, bias, convention="papyan")
    with pytest.raises(ValueError, match="convention: expected 'papyan'.*got 'ncops'"):
        ncops.collapse(geometry, weight, bias, decisions=decisions)
    fewer = stats.compute(min_count=int(geometry.counts.max()))
    with pytest.raises(ValueError, match="decisions: made with a geometry of other classes"):
        ncops.collapse(fewer, weight, bias, decisions=decisions, convention="papyan")
    with pytest.raises(ValueError, match="weight: expected shape"):
        ncops.collapse(geometry, weight[:5])
    with pytest.raises(TypeError, match="geometry"):
        ncops.collapse(stats)
    with pytest.raises(TypeError, match="decisions"):
        ncops.collapse(geometry, decisions=3)


def test_decisions_of_another_classifier_are_refused():
    x, y, held, z, weight, bias = problem(12, 20)
    stats = ncops.ClassStatistics(12, 20)
    stats.update(x, y)
    geometry = stats.compute()
    decisions = ncops.DecisionStatistics(geometry, weight, bias)
    decisions.update(held, z)
    report = ncops.collapse(geometry, weight.clone(), bias.clone(), decisions=decisions)
    assert report["nll"] == ncops.collapse(geometry, weight, decisions=decisions)["nll"]
    ncops.collapse(geometry, weight.float(), decisions=decisions)  # the same, rounded
    other = weight.clone()
    other[3, 1] += 1e-3
    with pytest.raises(ValueError, match="^weight: expected the one that the decisions were made with"):
        ncops.collapse(geometry, other, bias, decisions=decisions)
    with pytest.raises(ValueError, match="^bias: expected the one that the decisions were made with"):
        ncops.collapse(geometry, weight, bias + 1, decisions=decisions)
    poisoned = weight.clone()
    poisoned[2] = math.nan
    ncops.collapse(geometry, poisoned.clone(), decisions=ncops.DecisionStatistics(geometry, poisoned))


def test_statistics_are_no_geometry():
    stats = ncops.ClassStatistics(3, 4)
    with pytest.raises(TypeError, match=r"geometry: expected ClassGeometry, got ClassStatistics: give .compute\(\)"):
        ncops.collapse(stats)


def test_a_convention_of_ones_own():
    data = problem(12, 20)
    mine = dataclasses.replace(PRESETS["ncops"], name="mine", nc1_divide=False, norm_ddof=1)
    ours = measure(*data, convention=mine)
    plain = measure(*data)
    assert ours["nc1_pinv"] == pytest.approx(12 * plain["nc1_pinv"]) and ours["vci"] == plain["vci"]
    assert ours["nc2_norm_cv"] == pytest.approx(plain["nc2_norm_cv"] * math.sqrt(12 / 11))
    assert ours.convention == "mine" and ours.settings is mine
    with pytest.raises(ValueError, match="similarity: expected 'cosine' or 'dot'"):
        Convention("x", similarity="angle")
    with pytest.raises(TypeError, match="convention"):
        ncops.collapse(None, convention=3)


# -- the report as an object ------------------------------------------------------------------------------------------


def test_report_is_a_mapping_that_prints_and_serialises():
    data = problem(12, 20)
    data[3][:3] = -100
    report = measure(*data)
    assert len(report) == len(NAMES) and dict(report)["nll"] == report["nll"] and "vci" in report
    assert all(type(value) is float for value in report.values())
    document = json.loads(report.to_json())
    assert document["metrics"] == dict(report) and document["convention"] == "ncops"
    assert document["settings"]["cdnv_power"] == 1.0
    assert document["coverage"]["samples"] == 1500 and document["coverage"]["decision_ignored_rows"] == 3
    table = report.table()
    for name in NAMES:
        assert sum(line.split()[:1] == [name] for line in table.splitlines()) == 1
    assert "12 of 12 classes kept" in table and "1,500 samples" in table and "747 samples" in table


def test_json_has_null_for_nan():
    x, y, *_ = problem(12, 20)
    stats = ncops.ClassStatistics(12, 20)
    stats.update(x, y)
    text = ncops.collapse(stats.compute()).to_json(indent=None)
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["nll"] is None and "\n" not in text


def test_coverage():
    x, y, held, z, weight, bias = problem(90, 16, n=900, missing=4)
    x[0] = float("nan")
    stats = ncops.ClassStatistics(90, 16, nonfinite="skip")
    stats.update(x, y)
    coverage = ncops.collapse(stats.compute(min_count=5)).coverage
    counts = np.bincount(y[1:], minlength=90)
    assert coverage["classes"] == 90 and coverage["classes_seen"] == (counts > 0).sum() <= 86
    assert coverage["classes_kept"] == (counts >= 5).sum() and coverage["min_count"] == 5
    assert coverage["classes_with_10_samples"] == (counts >= 10).sum()
    assert coverage["samples"] == 899 and coverage["samples_in_kept"] == counts[counts >= 5].sum()
    assert coverage["skipped_rows"] == 1 and coverage["ignored_rows"] == 0


def test_plot_and_html_are_asked_for_only_when_used(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    report = measure(*problem(12, 20))
    figure, axes = report.plot()
    assert figure is not None and axes is not None
    report.to_html(tmp_path / "report.html", title="A title")
    assert "A title" in (tmp_path / "report.html").read_text()


def test_import_is_light():
    heavy = {"jinja2", "ncops.report.page", "matplotlib", "typer", "rich", "transformers", "safetensors"}
    code = f"import sys, ncops; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
