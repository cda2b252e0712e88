"""DecisionStatistics: counts per true class, histograms, and what happens to rows that cannot decide."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy_metrics import decision_metrics

from ncops import ClassStatistics, DecisionStatistics
from ncops.conventions import PRESETS
from ncops.ops import LinearStats
from ncops.stats import decisions


def problem(n=700, classes=11, dim=9, dtype=torch.float64, noise=1.0, missing=2):
    """A geometry that has not seen the last classes, a classifier, held-out rows of all classes."""
    means = torch.randn(classes, dim, dtype=torch.float64)
    y = torch.randint(0, classes, (n,))
    x = (means[y] + noise * torch.randn(n, dim, dtype=torch.float64)).to(dtype)
    stats = ClassStatistics(classes, dim, scatter=True)
    stats.update(x[y < classes - missing], y[y < classes - missing])
    weight = (means + 0.5 * torch.randn_like(means)).to(dtype)
    return stats.compute(), weight, torch.randn(classes, dtype=torch.float64).to(dtype), x, y


def run(geometry, weight, bias, x, y, batch=150, **options):
    stats = DecisionStatistics(geometry, weight, bias, **options)
    for start in range(0, len(x), batch):
        stats.update(x[start : start + batch], y[start : start + batch])
    return stats


def numpy_geometry(geometry):
    return {"classes": geometry.classes.numpy(), "means": geometry.means.numpy()}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("with_bias", (True, False))
def test_counts_and_histograms(dtype, with_bias):
    geometry, weight, bias, x, y = problem(dtype=dtype)
    bias = bias if with_bias else None
    stats = run(geometry, weight, bias, x, y)
    truth = decision_metrics(x, y.numpy(), weight, bias, numpy_geometry(geometry))
    n = len(y)
    assert stats.count.tolist() == np.bincount(y, minlength=11).tolist()
    for name, field in (("nc4_agreement", "agree"), ("ncc_accuracy", "ncc_hit"), ("accuracy", "hit")):
        assert int(getattr(stats, field).sum()) == round(truth[name] * n)
    assert float(stats.nll.sum()) / n == pytest.approx(truth["nll"], rel=1e-12 if dtype == torch.float64 else 1e-6)
    entropy = np.histogram(truth["entropies"], bins=64, range=(0, math.log(11)))[0]
    margin = np.histogram(truth["margin"], bins=np.r_[-np.inf, np.linspace(-32, 32, 65), np.inf])[0]
    confidence = np.bincount(truth["bins"], minlength=15)
    near = 0 if dtype == torch.float64 else 2  # rows within rounding of an edge
    for ours, theirs in (
        (stats.entropy_hist, entropy),
        (stats.margin_hist, margin),
        (stats.confidence_count, confidence),
    ):
        assert int(ours.sum()) == n and np.abs(ours.numpy() - theirs).sum() <= 2 * near
    assert float(stats.confidence_sum.sum()) == pytest.approx(truth["confidence"].sum(), rel=1e-6)
    assert stats.coverage["decision_samples_kept"] == int((y < 9).sum())
    assert stats.coverage["decision_unkept_share"] == pytest.approx(float((y >= 9).double().mean()))


def test_hand_computed():
    stats = ClassStatistics(3, 2)
    stats.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]))
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    dec = run(
        stats.compute(),
        weight,
        None,
        torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.1, 9.0], [0.1, 0.0]]),
        torch.tensor([0, 0, 2, 1]),
    )
    assert dec.count.tolist() == [2, 1, 1]
    assert dec.hit.tolist() == [1, 0, 1]  # chosen: 0, 1, 2, 0
    assert dec.ncc_hit.tolist() == [1, 0, 0]  # nearest: 0, 1, 0, 0
    assert dec.agree.tolist() == [2, 1, 0]
    assert dec.margin_hist[0].item() == 0 and dec.margin_hist[-1].item() == 1  # margin 44.9 of the third row
    assert dec.coverage["decision_unkept_share"] == 0.25


def edge_gaps():
    """Gaps whose confidence is the edge k/15 to the last bit, by k."""
    found = {}
    for k in range(1, 16):
        gap = torch.tensor(-math.log(k / 15), dtype=torch.float64)
        for near in (gap, gap.nextafter(gap + 1), gap.nextafter(gap - 1)):
            if float(torch.exp(-near) * 15) == k:
                found[k] = float(near)
    return found


def test_bins_by_value(monkeypatch):
    """Columns handed over as they are; for one class the entropy's bins are 1/64 wide."""
    edges = edge_gaps()
    assert len(edges) > 5 and abs(edges[15]) < 1e-15
    table = [(gap, k - 1) for k, gap in edges.items()]  # the edge is the right one of its bin
    table += [(-math.log((k - 1e-9) / 15), k - 1) for k in range(1, 16)]
    table += [(-math.log((k + 1e-9) / 15), k) for k in range(1, 15)] + [(math.inf, 0)]
    entropies = [(0.0, 0), (1 / 64 - 1e-9, 0), (1 / 64, 1), (0.5, 32), (63 / 64, 63), (1.0, 63), (1 + 1e-12, 63)]
    margins = [(-math.inf, 0), (-32 - 1e-9, 0), (-32.0, 1), (-31.0, 2), (-1e-9, 32), (0.0, 33), (1.0, 34),
               (32 - 1e-9, 64), (32.0, 65), (math.inf, 65)]  # fmt: skip

    def column(values, otherwise=0.0):
        filled = [value for value, _ in values] + [otherwise] * (len(table) - len(values))
        return torch.tensor(filled, dtype=torch.float64)

    gap, zero, first = column(table), column(()), torch.zeros(len(table), dtype=torch.int64)
    handed = LinearStats(
        lse=gap, gap=gap, max=zero, argmax=first, second=-column(margins), second_index=first - 1, target_logit=zero,
        target_rank=first, nll=gap, entropy=column(entropies), mean=zero, var=zero, valid=first == 0, target=first,
        num_classes=1, sum_squared_prob=zero,
    )  # fmt: skip
    monkeypatch.setattr(decisions, "linear_stats", lambda *_, **__: handed)
    seen = ClassStatistics(1, 2)
    seen.update(torch.ones(3, 2).double(), torch.zeros(3, dtype=torch.int64))
    stats = DecisionStatistics(seen.compute(), torch.ones(1, 2).double())
    stats.update(torch.ones(len(table), 2).double(), first)
    rows = len(table)
    for name, bins, size in (
        ("confidence_count", [at for _, at in table], 15),
        ("confidence_correct", [at for _, at in table], 15),
        ("entropy_hist", [at for _, at in entropies] + [0] * (rows - len(entropies)), 64),
        ("margin_hist", [at for _, at in margins] + [33] * (rows - len(margins)), 66),
    ):
        assert getattr(stats, name).tolist() == np.bincount(bins, minlength=size).tolist(), name
    sums = np.bincount([at for _, at in table], weights=torch.exp(-gap), minlength=15)
    np.testing.assert_allclose(stats.confidence_sum, sums, rtol=1e-12)


def test_rows_that_do_not_count_by_value():
    """Classes 0 and 1 are kept; class 2, where it is not the ignored one, is not."""
    seen = ClassStatistics(3, 2)
    seen.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]))
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    bad = float("nan")
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.1, 9.0], [bad, 0.0], [bad, 0.0], [bad, 0.0], [2.0, 0.0]])
    y = torch.tensor([0, 1, 2, 0, 2, -100, -100])
    for convention, ignore_index, count, skipped, ignored, excluded in (
        ("ncops", -100, [1, 1, 1], 2, 2, 0),
        ("ncops", 2, [1, 1, 0], 1, 4, 0),
        ("linguistic-collapse", -100, [1, 1, 0], 2, 2, 1),
        ("linguistic-collapse", 2, [1, 1, 0], 1, 4, 0),
        ("ncops", 0, [0, 1, 1], 1, 4, 0),
    ):
        stats = DecisionStatistics(seen.compute(), weight, convention=convention, ignore_index=ignore_index)
        stats.update(x, torch.where(y == -100, ignore_index, y))
        assert stats.count.tolist() == count, (convention, ignore_index)
        numbers = [int(n) for n in (stats.skipped, stats.ignored, stats.excluded)]
        assert numbers == [skipped, ignored, excluded], (convention, ignore_index)
        assert sum(numbers) + sum(count) == len(y)
        for histogram in (stats.entropy_hist, stats.margin_hist, stats.confidence_count):
            assert int(histogram.sum()) == sum(count)
        unkept = count[2]
        assert stats.coverage["decision_samples_kept"] == sum(count) - unkept
        assert stats.coverage["decision_unkept_share"] == pytest.approx(unkept / sum(count))


def test_kept_classes_between_others_by_value():
    """Classes 1 and 3 of five are kept: what is nearest among two is told by its own number."""
    seen = ClassStatistics(5, 2)
    seen.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1, 3]))
    weight, bias = torch.zeros(5, 2), torch.tensor([100.0, 0.0, 0.0, 5.0, 0.0])
    weight[1, 0], weight[3, 0] = 1, -1
    x, y = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [4.0, 0.0]]), torch.tensor([1, 3, 0])
    kept = dataclasses.replace(PRESETS["ncops"], name="kept", decision_classes="kept")
    for shift, convention, agree in (
        (None, "ncops", [1, 1, 0, 1, 0]),
        (None, kept, [1, 1, 0, 1, 0]),
        (bias, "ncops", [0, 0, 0, 0, 0]),  # class 0 wins everywhere
        (bias, kept, [1, 0, 0, 1, 0]),  # class 3 wins the first row by its bias
        (bias, dataclasses.replace(kept, decision_bias=False), [1, 1, 0, 1, 0]),
    ):
        stats = DecisionStatistics(seen.compute(), weight, shift, convention=convention)
        stats.update(x, y)
        assert stats.ncc_hit.tolist() == [0, 1, 0, 1, 0]
        assert stats.agree.tolist() == agree, (shift, convention)


def keeping(*classes, **options):
    """Decisions beside a geometry of these of five classes."""
    seen = ClassStatistics(5, 2)
    seen.update(torch.randn(len(classes), 2), torch.tensor(classes))
    return DecisionStatistics(seen.compute(), torch.ones(5, 2), **options), seen.compute()


def test_other_kept_classes_never_fit_however_many_they_are():
    one, geometry = keeping(0, 1, 3)
    other, _ = keeping(0, 2, 3)
    with pytest.raises(ValueError, match="state: kept: it was made with other kept classes"):
        one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="other: kept: it was made with other kept classes"):
        one.merge(other)
    with pytest.raises(ValueError, match="geometry: it kept other classes"):
        other.bind(geometry, torch.ones(5, 2))
    assert one.kept.tolist() == [True, True, False, True, False]
    namesake, _ = keeping(0, 1, 3, convention=dataclasses.replace(PRESETS["ncops"], decision_bias=False))
    with pytest.raises(ValueError, match="state: expected 5 classes under convention 'ncops'"):
        one.load_state_dict(namesake.state_dict())


def test_what_a_state_says_is_restored():
    one, geometry = keeping(0, 1, 3, scale=0.5, softcap=0.75, ignore_index=-7, convention="zhu")
    one.update(torch.randn(6, 2), torch.tensor([0, 1, 2, 3, 4, -7]))
    again = DecisionStatistics.from_state(one.config(), one.tensors()).bind(geometry, torch.ones(5, 2))
    assert (again.scale, again.softcap, again.ignore_index, again.convention.name) == (0.5, 0.75, -7, "zhu")
    x, y = torch.randn(9, 2), torch.tensor([0, 1, 2, 3, 4, -7, 0, 1, 2])
    for stats in (one, again):
        stats.reset()
        stats.update(x, y)
    for name, value in one.tensors().items():
        assert torch.equal(getattr(again, name), value), name


@pytest.mark.parametrize("name", PRESETS)
def test_conventions(name):
    geometry, weight, bias, x, y = problem()
    c = PRESETS[name]
    stats = run(geometry, weight, bias, x, y, convention=name)
    options = {"use_bias": c.decision_bias, "candidates": c.decision_classes, "rows": c.decision_rows}
    truth = decision_metrics(x, y.numpy(), weight, bias, numpy_geometry(geometry), **options)
    assert int(stats.agree.sum()) / stats.num_samples == pytest.approx(truth["nc4_agreement"], abs=1e-12)
    assert int(stats.hit.sum()) / stats.num_samples == pytest.approx(
        truth["accuracy"], abs=1e-12
    )  # of the whole classifier
    excluded = int((y >= 9).sum()) if c.decision_rows == "kept" else 0
    assert stats.num_samples == len(y) - excluded and int(stats.excluded) == excluded


def test_one_product_per_batch_by_default(monkeypatch):
    geometry, weight, bias, x, y = problem()
    calls = {"linear_stats": 0, "nearest_class_mean": 0}

    def counted(name, run):
        def wrapper(*args, **options):
            calls[name] += 1
            return run(*args, **options)

        return wrapper

    for name in calls:
        monkeypatch.setattr(decisions, name, counted(name, getattr(decisions, name)))
    run(geometry, weight, bias, x, y, batch=700)
    assert calls == {"linear_stats": 1, "nearest_class_mean": 1}


def test_ignored_and_poisoned_rows():
    geometry, weight, bias, x, y = problem()
    y[:40] = -100
    x[30:50, 0] = float("nan")
    x[60, 1] = float("inf")
    stats = run(geometry, weight, bias, x, y)
    keep = [i for i in range(50, 700) if i != 60]
    clean = run(geometry, weight, bias, x[keep], y[keep])
    for name in ("count", "agree", "ncc_hit", "hit", "nll", "entropy_hist", "margin_hist", "confidence_sum"):
        torch.testing.assert_close(getattr(stats, name), getattr(clean, name))
    assert stats.coverage["decision_ignored_rows"] == 40 and stats.coverage["decision_skipped_rows"] == 11


def test_a_poisoned_class_is_no_candidate():
    geometry, weight, bias, x, y = problem()
    geometry.means[2] = float("nan")
    stats = run(geometry, weight, bias, x, y)
    assert int(stats.ncc_hit[2]) == 0 and int(stats.ncc_hit.sum()) > 0


def test_masked_classes_give_infinite_nll():
    geometry, weight, bias, x, y = problem()
    bias[4] = -float("inf")
    stats = run(geometry, weight, bias, x, y)
    assert torch.isinf(stats.nll[4]) and torch.isfinite(stats.nll[torch.arange(11) != 4]).all()
    assert int(stats.margin_hist[0]) >= int(stats.count[4]) > 0


@pytest.mark.parametrize("kept", (0, 1))
def test_few_kept_classes(kept):
    _, weight, bias, x, y = problem()
    stats = ClassStatistics(11, 9)
    stats.update(x[y < kept], y[y < kept])
    for name in PRESETS:
        dec = run(stats.compute(), weight, bias, x, y, convention=name)
        assert int(dec.ncc_hit.sum()) == (int((y == 0).sum()) if kept else 0)
        if kept == 0:
            assert int(dec.agree.sum()) == 0


def test_a_failed_update_changes_nothing():
    geometry, weight, bias, x, y = problem(dtype=torch.float32)
    stats = run(geometry, weight, bias, x, y)
    before = {k: v.clone() for k, v in stats.state_dict().items() if k != "config"}
    bad = y.clone()
    bad[5] = 11
    for features, labels in ((x, bad), (x[:, :8], y), (x.double(), y), (x, y[:-1])):
        with pytest.raises(ValueError):
            stats.update(features, labels)
    for name, value in before.items():
        assert torch.equal(value, getattr(stats, name)), name


def test_arguments():
    geometry, weight, bias, x, y = problem()
    with pytest.raises(ValueError, match="weight: expected shape"):
        DecisionStatistics(geometry, weight[:-1])
    with pytest.raises(ValueError, match="bias: expected shape"):
        DecisionStatistics(geometry, weight, bias[:-1])
    with pytest.raises(ValueError, match="convention: expected one of ncops"):
        DecisionStatistics(geometry, weight, convention="mine")


def test_what_is_wrong_is_named():
    geometry, weight, bias, x, y = problem(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"geometry: .* got ClassStatistics: give .compute\(\) of it"):
        DecisionStatistics(ClassStatistics(11, 9), weight)
    with pytest.raises(ValueError, match="bias: expected torch.float32 .the dtype of weight."):
        DecisionStatistics(geometry, weight, bias.double())
    with pytest.raises(ValueError, match="scale: expected a number, got a tensor that requires a gradient"):
        DecisionStatistics(geometry, weight, scale=torch.ones((), requires_grad=True))
    stats = DecisionStatistics(geometry, weight, bias)
    with pytest.raises(TypeError, match="^x: expected a tensor, got ndarray"):
        stats.update(x.numpy(), y)
    with pytest.raises(TypeError, match="^labels: expected a tensor, got ndarray"):
        stats.update(x, y.numpy())
    for wrong, message in (
        (x[:, :8], r"^x: expected shape \(..., D\) with D = 9, got \(700, 8\)"),
        (x[0, 0], "^x: expected shape"),
        (x.double(), "^x: expected torch.float32 .the dtype of weight., got torch.float64"),
        (x.to("meta"), "^x: expected the device of weight"),
    ):
        with pytest.raises(ValueError, match=message):
            stats.update(wrong, y)
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 11\) .* got 11 at row 0 of 700"):
        stats.update(x, torch.full_like(y, 11))


def test_merge_copies_and_reset():
    geometry, weight, bias, x, y = problem()
    whole = run(geometry, weight, bias, x, y)
    parts = [run(geometry, weight, bias, x[rows], y[rows]) for rows in torch.tensor_split(torch.arange(700), 3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    for name, value in whole.state_dict().items():
        if name != "config":
            torch.testing.assert_close(getattr(merged, name), value)
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole).to("cpu")):
        twin.update(x, y)
        assert torch.equal(twin.count, 2 * whole.count)
    fresh = DecisionStatistics(geometry, weight, bias)
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh.hit, whole.hit)
    whole.reset()
    assert whole.num_samples == 0 and torch.equal(whole.kept, fresh.kept)
    assert fresh.num_samples == 700
    for options in ({"convention": "zhu"}, {"scale": 2.0}, {"softcap": 30.0}):
        other = run(geometry, weight, bias, x, y, **options)
        with pytest.raises(ValueError, match="other: "):
            fresh.merge(other)


def test_a_sum_over_ranks_takes_no_more_rows(tmp_path):
    geometry, weight, bias, x, y = problem()
    stats = run(geometry, weight, bias, x, y)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        stats.all_reduce().update(x, y)
        assert stats.all_reduce(inplace=True) is stats
        for call in (lambda: stats.update(x, y), stats.all_reduce):
            with pytest.raises(RuntimeError, match="hold the sum over all ranks"):
                call()
    finally:
        dist.destroy_process_group()
    assert stats.num_samples == 700
    stats.reset()
    stats.update(x, y)
    assert stats.num_samples == 700


def test_scale_and_leading_dimensions():
    geometry, weight, bias, x, y = problem()
    scaled = DecisionStatistics(geometry, weight, bias, scale=0.5)
    scaled.update(x.view(7, 100, 9), y.view(7, 100))
    direct = run(geometry, weight * 0.5, bias, x, y, batch=700)
    torch.testing.assert_close(scaled.nll, direct.nll)
    assert torch.equal(scaled.hit, direct.hit)


@pytest.mark.parametrize("bias_decides", (True, False))
def test_softcap(bias_decides):
    """Against capped logits; the second product, of the kept classes without the bias, is capped too."""
    geometry, weight, bias, x, y = problem()
    kept = {} if bias_decides else {"decision_bias": False, "decision_classes": "kept"}
    name = dataclasses.replace(PRESETS["ncops"], **kept)
    stats = run(geometry, weight, bias, x, y, scale=0.5, softcap=1.5, convention=name)
    z = 1.5 * torch.tanh((0.5 * x @ weight.T + bias) / 1.5)
    nll = -z.log_softmax(1)[torch.arange(len(y)), y]
    torch.testing.assert_close(stats.nll, torch.zeros_like(stats.nll).index_add_(0, y, nll), rtol=1e-12, atol=1e-12)
    entropy = np.histogram(-(z.softmax(1) * z.log_softmax(1)).sum(1), bins=64, range=(0, math.log(11)))[0]
    assert stats.entropy_hist.tolist() == entropy.tolist()
    rivals = z.clone()
    rivals[torch.arange(len(y)), y] = -math.inf
    margin = z[torch.arange(len(y)), y] - rivals.amax(1)
    assert int(stats.margin_hist[33:].sum()) == int((margin >= 0).sum()) and not stats.margin_hist[37:].any()
    plain = run(geometry, weight, bias, x, y, scale=0.5, convention=name)
    assert torch.equal(plain.hit, stats.hit) and torch.equal(plain.agree, stats.agree)


def test_states_from_before_the_softcap_are_read():
    one, _ = keeping(0, 1, 3, softcap=0.75)
    config = {name: value for name, value in one.config().items() if name != "softcap"}
    assert DecisionStatistics.from_state(config, one.tensors()).softcap is None


def test_autocast_does_not_touch_the_measurement():
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.arange(64) % 4
    stats = ClassStatistics(4, 8)
    stats.update(x, y)
    geometry, weight = stats.compute(), torch.randn(4, 8)
    plain, under = (DecisionStatistics(geometry, weight) for _ in range(2))
    plain.update(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        under.update(x, y)
    assert torch.equal(plain.nll, under.nll) and torch.equal(plain.agree, under.agree)
