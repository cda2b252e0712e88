"""ClassStatistics: one anchored pass equals two float64 passes, and nothing that fails leaves a trace."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy_metrics import class_geometry

import ncops
from ncops import ClassStatistics, DecisionStatistics
from ncops.stats import classes as statistics
from ncops.stats.anchored import Reach, drifted, move

STATE = ("counts", "center", "sums", "sqnorms", "scatter", "invalid", "skipped", "ignored")


def data(n=900, classes=12, dim=10, dtype=torch.float32, spread=0.3, distance=1.0, empty=()):
    labels = torch.randint(0, classes, (n,))
    for c in empty:
        labels[labels == c] = (c + 1) % classes
    means = distance * torch.randn(classes, dim, dtype=torch.float64)
    return (means[labels] + spread * torch.randn(n, dim, dtype=torch.float64)).to(dtype), labels


def stream(x, y, classes, batch=128, scatter=True, **options):
    stats = ClassStatistics(classes, x.shape[-1], scatter=scatter, **options)
    for start in range(0, len(x), batch):
        stats.update(x[start : start + batch], y[start : start + batch])
    return stats


def snapshot(stats):
    tensors = {name: None if getattr(stats, name) is None else getattr(stats, name).clone() for name in STATE}
    return {**tensors, "input_dtype": stats.input_dtype}


def same(a, b):
    for name in a:
        if isinstance(a[name], torch.Tensor):
            mine, theirs = (t.view(torch.int64) if t.dtype == torch.float64 else t for t in (a[name], b[name]))
            assert torch.equal(mine, theirs), name
        else:
            assert a[name] == b[name], name


def close(geometry, truth, rtol):
    assert geometry.classes.tolist() == truth["classes"].tolist()
    assert geometry.counts.tolist() == truth["counts"].tolist()
    assert geometry.num_samples == truth["num_samples"]
    for name in ("means", "class_var", "within_cov", "within_trace", "sample_mean", "global_mean"):
        ours, theirs = getattr(geometry, name).numpy(), truth[name]
        assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max(), name


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("min_count", (1, 70))
def test_one_pass_equals_two(dtype, min_count):
    x, y = data(dtype=dtype, empty=(3, 7))
    geometry = stream(x, y, 12).compute(min_count)
    close(
        geometry,
        class_geometry(x.double().numpy(), y.numpy(), 12, min_count),
        1e-13 if dtype == torch.float64 else 1e-6,
    )
    assert geometry.num_classes == 12 and geometry.input_dtype == dtype
    assert geometry.means.dtype == geometry.class_var.dtype == geometry.within_cov.dtype == torch.float64


def test_min_count_selects_classes_but_pools_every_row():
    x, y = data(n=300)
    y[y == 4] = 5
    y[:2] = 4
    stats = stream(x, y, 12)
    every, frequent = stats.compute(), stats.compute(min_count=3)
    assert 4 in every.classes and 4 not in frequent.classes
    for name in ("within_cov", "within_trace", "sample_mean"):
        assert torch.equal(getattr(every, name), getattr(frequent, name))
    assert frequent.num_samples == 300 and frequent.coverage["samples_in_kept"] == 298
    assert frequent.coverage["classes_seen"] == 12 and frequent.coverage["classes_kept"] == 11


def test_hand_computed():
    stats = ClassStatistics(3, 2, scatter=True)
    stats.update(torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 0, 2]))
    stats.update(torch.tensor([[5.0, 9.0]]), torch.tensor([2]))
    geometry = stats.compute()
    assert geometry.classes.tolist() == [0, 2] and geometry.counts.tolist() == [2, 2]
    assert geometry.means.tolist() == [[1, 0], [5, 7]]
    assert geometry.class_var.tolist() == [1, 4]
    assert geometry.within_cov.tolist() == [[0.5, 0], [0, 2]]
    assert float(geometry.within_trace) == 2.5
    assert geometry.global_mean.tolist() == geometry.sample_mean.tolist() == [3, 3.5]


@pytest.mark.parametrize("first", ("typical", "one outlier row", "a batch with an outlier"))
def test_collapsed_regime(first):
    """Means of norm 100, noise 1e-3, float32: variances and covariance within 1e-4 of float64."""
    classes, dim, n = 8, 24, 4000
    means = torch.randn(classes, dim, dtype=torch.float64)
    means *= 100 / means.norm(dim=1, keepdim=True)
    y = torch.randint(0, classes, (n,))
    x = (means[y] + 1e-3 * torch.randn(n, dim, dtype=torch.float64)).float()
    y[:classes] = torch.arange(classes)
    x[:classes] = means.float()
    start = 0
    stats = ClassStatistics(classes, dim, scatter=True)
    if first == "one outlier row":
        x[0] = -x[0]
        start = 1
    elif first == "a batch with an outlier":
        x[0] = -x[0]
        start = 300
    stats.update(x[:start], y[:start])
    for at in range(start, n, 250):
        stats.update(x[at : at + 250], y[at : at + 250])
    geometry = stats.compute()
    truth = class_geometry(x.double().numpy(), y.numpy(), classes)
    assert np.abs(geometry.class_var.numpy() / truth["class_var"] - 1).max() < 1e-4
    error = np.linalg.norm(geometry.within_cov.numpy() - truth["within_cov"]) / np.linalg.norm(truth["within_cov"])
    assert error < 1e-4
    np.testing.assert_allclose(geometry.means.numpy(), truth["means"], rtol=1e-7, atol=1e-6)


def strayed(n=20_000, classes=2, dim=64):
    """Tight classes far from the origin, each opened by a row on the other side of it."""
    means = torch.randn(classes, dim, dtype=torch.float64)
    y = torch.arange(n) % classes
    x = (100 * (means / means.norm(dim=1, keepdim=True))[y] + 1e-3 * torch.randn(n, dim, dtype=torch.float64)).float()
    x[:classes] *= -1
    return x, y


@pytest.mark.parametrize("batch", (1, 500, 20_000))
def test_a_large_batch_about_an_outlier(batch):
    """One float32 pass about such an anchor is 2 % off (measured); the batch is added again about better ones."""
    x, y = strayed(2_000 if batch == 1 else 20_000)
    stats = ClassStatistics(2, 64, scatter=True)
    stats.update(x[:2], y[:2])
    for start in range(2, len(x), batch):
        stats.update(x[start : start + batch], y[start : start + batch])
    close(stats.compute(), class_geometry(x.double().numpy(), y.numpy(), 2), 1e-6)


def test_a_failure_after_anchors_have_moved_changes_nothing(monkeypatch):
    x, y = strayed(200)
    stats = ClassStatistics(3, 64, scatter=True)
    stats.update(x[:2], y[:2])
    before = snapshot(stats)
    y[-1] = 2
    monkeypatch.setattr(statistics, "batch_scatter", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stats.update(x[2:], y[2:])
    same(before, snapshot(stats))
    monkeypatch.undo()
    stats.update(x[2:], y[2:])
    assert not torch.equal(stats.center[:2], before["center"][:2])
    close(stats.compute(), class_geometry(x.double().numpy(), y.numpy(), 3), 1e-6)


def test_bad_anchor_is_repaired():
    """An outlier that opens a class leaves the anchor inside the class once typical rows outnumber it."""
    x = torch.full((400, 3), 50.0) + 1e-3 * torch.randn(400, 3)
    x[0] = -50.0
    stats = stream(x, torch.zeros(400, dtype=torch.long), 1, batch=1)
    assert (stats.center - x[1:].mean(0)).abs().max() < 10
    drift = (stats.sums[0] / 400).square().sum()
    variance = stats.compute().class_var[0]
    assert drift <= 16 * variance


@pytest.mark.parametrize("scatter", [False, True])
def test_classes_that_cannot_have_drifted_are_not_looked_at(scatter, monkeypatch):
    """The same bits as if all were, in a stream in which some classes move away; and few that are looked at."""
    torch.manual_seed(0)
    looked = []

    def everything_looked_at(self, classes, counts, sqnorms, old):
        self._longest = torch.zeros_like(sqnorms)
        return classes

    def counting(present, *arguments):
        looked[-1] += len(present)
        return drifted(present, *arguments)

    monkeypatch.setattr(statistics, "drifted", counting)
    rows, labels = [], []
    for step in range(60):
        y = torch.randint(0, 40, (400,))
        place = 5.0 * y[:, None] + (3.0 * step) * (y[:, None] >= 36)  # the last four wander
        rows.append(place + 0.3 * torch.randn(400, 6))
        labels.append(y)
    found = []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr(Reach, "doubtful", everything_looked_at)
        looked.append(0)
        stats = ClassStatistics(40, 6, scatter=scatter)
        for x, y in zip(rows, labels, strict=True):
            stats.update(x, y)
        other = copy.deepcopy(stats)
        stats.merge(other)
        stats.update(rows[0], labels[0])
        found.append(snapshot(stats))
    same(*found)
    assert looked[0] < looked[1] / 4, looked


def test_moving_anchors_changes_no_statistic():
    x, y = data(dtype=torch.float64)
    stats = stream(x, y, 12)
    before = stats.compute()
    stats.center += 40
    stats.sums -= 40 * stats.counts[:, None]
    stats.sqnorms.copy_(torch.stack([(x[y == c] - stats.center[c]).square().sum() for c in range(12)]))
    stats.scatter.copy_((x - stats.center[y]).T @ (x - stats.center[y]))
    state = (stats.counts, stats.center, stats.sums, stats.sqnorms)
    classes, anchors = drifted(torch.arange(12), *state)
    assert classes.tolist() == list(range(12))
    move(classes, anchors, *state, stats.scatter)
    after = stats.compute()
    assert (stats.center.double() - before.means).abs().max() < 1e-12
    for name in ("means", "class_var", "within_cov", "within_trace"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-9, atol=1e-9)


def test_leading_dimensions_and_strides():
    x, y = data(n=240)
    flat = stream(x, y, 12, batch=240)
    stats = ClassStatistics(12, 10, scatter=True)
    stats.update(x.view(4, 60, 10), y.view(4, 60).to(torch.int32))
    same(snapshot(flat), snapshot(stats))
    stats = ClassStatistics(12, 10, scatter=True)
    stats.update(x.t().contiguous().t(), y)
    torch.testing.assert_close(stats.compute().means, flat.compute().means)


def test_ignored_rows_count_nowhere():
    x, y = data()
    y[::3] = -100
    x[0] = float("nan")
    stats = stream(x, y, 12)
    close(stats.compute(), class_geometry(x[y >= 0].double().numpy(), y[y >= 0].numpy(), 12), 1e-6)
    assert stats.compute().coverage["ignored_rows"] == 300
    inside = stream(x[1:], y[1:].clamp(min=0), 12, ignore_index=0)
    assert inside.compute().classes.tolist() == list(range(1, 12))
    assert inside.compute().coverage["ignored_rows"] == int((y[1:] <= 0).sum())


# -- rows that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_nonfinite(bad, dtype):
    x, y = data(dtype=dtype)
    clean = stream(torch.cat([x[:5], x[6:]]), torch.cat([y[:5], y[6:]]), 12).compute()
    x[5, 2] = bad

    skipped = stream(x, y, 12, nonfinite="skip").compute()
    assert skipped.coverage["skipped_rows"] == 1
    torch.testing.assert_close(skipped.means, clean.means)
    torch.testing.assert_close(skipped.within_cov, clean.within_cov)

    spoiled = stream(x, y, 12).compute()
    poisoned = ~torch.isfinite(spoiled.means).all(1)
    assert poisoned.nonzero().flatten().tolist() == [int(y[5])]
    assert spoiled.within_trace.isnan() and not torch.isfinite(spoiled.within_cov).all()

    stats = stream(x[:5], y[:5], 12, nonfinite="raise")
    before = snapshot(stats)
    with pytest.raises(ValueError, match="1 of 10 rows hold a NaN or an infinity, first row 3"):
        stats.update(x[2:12], y[2:12])
    same(before, snapshot(stats))


def test_a_class_of_skipped_rows_alone_is_not_seen():
    stats = ClassStatistics(2, 3, nonfinite="skip")
    stats.update(torch.full((4, 3), float("nan")), torch.tensor([0, 0, 1, -100]))
    assert stats.compute().coverage["classes_seen"] == 0
    assert int(stats.skipped) == 3 and int(stats.ignored) == 1
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 2\) .*got 2 at row 1 of 2"):
        stats.update(torch.full((2, 3), float("nan")), torch.tensor([1, 2]))  # a row to skip needs a class too
    assert int(stats.skipped) == 3


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scatter", (True, False))
@pytest.mark.parametrize("empty", (True, False))
def test_a_failed_update_changes_nothing(scatter, empty, monkeypatch):
    x, y = data()
    stats = ClassStatistics(12, 10, scatter=scatter)
    if not empty:
        stats.update(x[:50], y[:50])
    before = snapshot(stats)
    bad = y[50:200].clone()
    bad[77] = 12
    cases = {
        r"labels: expected values in \[0, 12\).*got 12 at row 77": (x[50:200], bad),
        r"x: expected shape \(\.\.\., dim\) with dim = 10, got \(150, 9\)": (x[50:200, :9], y[50:200]),
        r"labels: expected shape": (x[50:200], y[50:199]),
        r"labels: expected an integer dtype": (x[50:200], y[50:200].float()),
        r"x: expected float32, float64": (x[50:200].long(), y[50:200]),
    }
    if not empty:
        cases["x: expected torch.float32, the dtype of the first update, got torch.float64"] = (x[50:].double(), y[50:])
    for message, (features, labels) in cases.items():
        with pytest.raises(ValueError, match=message):
            stats.update(features, labels)
        same(before, snapshot(stats))

    # Even when something breaks after the moments were added.
    def explode(*_, **__):
        raise MemoryError("planted")

    monkeypatch.setattr(statistics, "batch_scatter" if scatter else "drifted", explode)
    with pytest.raises(MemoryError):
        stats.update(x[50:200], y[50:200])
    same(before, snapshot(stats))

    # Even when it is the last step of all, the rows that were left out counted by then.
    if scatter:
        y[60] = -100
        monkeypatch.setattr(statistics, "batch_scatter", lambda *_, **__: torch.ones(3, 3))
        with pytest.raises(RuntimeError, match="must match"):
            stats.update(x[50:200], y[50:200])
        same(before, snapshot(stats))


def test_arguments():
    for bad in ({"num_classes": 0}, {"dim": -1}, {"dim": 2.0}, {"nonfinite": "drop"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ClassStatistics(**{"num_classes": 3, "dim": 4, **bad})
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="min_count: expected a"):
            ClassStatistics(3, 4).compute(min_count=bad)
    with pytest.raises(TypeError, match="min_count: expected an integer, got None"):
        ClassStatistics(3, 4).compute(min_count=None)
    with pytest.raises(TypeError, match="x: expected a tensor"):
        ClassStatistics(3, 4).update([[1.0]], torch.tensor([0]))


def test_integers_of_numpy_are_integers(tmp_path):
    stats = ClassStatistics(np.int64(3), np.int32(4), ignore_index=np.int64(-1))
    stats.update(torch.randn(6, 4), torch.arange(6) % 3)
    stats.save(tmp_path / "a")  # JSON has no numbers of NumPy
    report = ncops.collapse(stats.compute(min_count=np.int64(2)))
    assert report.coverage["classes_kept"] == 3 and '"min_count": 2' in report.to_json()


def test_invalid_rows_raise_at_compute():
    stats = ClassStatistics(3, 2)
    stats.invalid += 5  # what a CUDA update leaves behind
    other = ClassStatistics(3, 2)
    other.invalid += 2
    for state, rows in ((stats, 5), (other.merge(stats), 7)):
        with pytest.raises(ValueError, match=f"{rows} rows had a label outside"):
            state.compute()


def test_nothing_seen():
    stats = ClassStatistics(3, 2, scatter=True)
    stats.update(torch.empty(0, 2), torch.empty(0, dtype=torch.long))
    geometry = stats.compute()
    assert geometry.num_kept == 0 and geometry.num_samples == 0 and geometry.means.shape == (0, 2)
    for value in (geometry.within_cov, geometry.within_trace, geometry.global_mean, geometry.sample_mean):
        assert value.isnan().all()


# -- merging and storing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("parts", (2, 5))
def test_merge_of_splits_equals_one_pass(dtype, parts):
    x, y = data(n=1200, distance=100.0, spread=0.1, dtype=dtype)
    y[:900] = y[:900].clamp(max=8)  # some classes are in one part only
    chunks = torch.tensor_split(torch.arange(1200), parts)
    merged = ClassStatistics(12, 10, scatter=True)
    for chunk in chunks:
        part = stream(x[chunk], y[chunk], 12)
        before = snapshot(part)
        assert merged.merge(part) is merged
        same(before, snapshot(part))
    whole = class_geometry(x.double().numpy(), y.numpy(), 12)
    close(merged.compute(), whole, 1e-9 if dtype == torch.float64 else 1e-5)


def test_merge_takes_a_side_verbatim():
    x, y = data()
    stats = stream(x, y, 12)
    for merged in (
        ClassStatistics(12, 10, scatter=True).merge(stats),
        copy.deepcopy(stats).merge(ClassStatistics(12, 10, True)),
    ):
        same(snapshot(stats), snapshot(merged))


def test_merge_with_itself_doubles():
    x, y = data(dtype=torch.float64)
    stats = stream(x, y, 12)
    before = stats.compute()
    stats.merge(stats)
    after = stats.compute()
    assert torch.equal(after.counts, 2 * before.counts)
    torch.testing.assert_close(after.within_cov, before.within_cov)
    torch.testing.assert_close(after.class_var, before.class_var)


def test_merge_mismatch():
    x, y = data()
    stats = stream(x, y, 12)
    before = snapshot(stats)
    others = {
        "num_classes": ClassStatistics(13, 10, scatter=True),
        "dim": ClassStatistics(12, 11, scatter=True),
        "scatter": ClassStatistics(12, 10),
        "input_dtype": stream(x.double(), y, 12),
    }
    for field, other in others.items():
        with pytest.raises(ValueError, match=f"other: {field}: expected"):
            stats.merge(other)
    with pytest.raises(TypeError, match="other: expected ClassStatistics"):
        stats.merge("x")
    same(before, snapshot(stats))


def test_merge_keeps_digits_across_distant_anchors():
    """One side has only an outlier of each class; the other a tight cluster far from it."""
    x = torch.full((500, 4), 70.0) + 1e-3 * torch.randn(500, 4)
    x[0] = -70
    y = torch.zeros(500, dtype=torch.long)
    one, rest = stream(x[:1], y[:1], 1), stream(x[1:], y[1:], 1)
    truth = class_geometry(x.double().numpy(), y.numpy(), 1)
    for merged in (copy.deepcopy(one).merge(rest), copy.deepcopy(rest).merge(one)):
        close(merged.compute(), truth, 1e-9)
        merged.update(x[1:], y[1:])
        close(merged.compute(), class_geometry(torch.cat([x, x[1:]]).double().numpy(), np.zeros(999), 1), 1e-6)


def test_copies_and_reset():
    x, y = data()
    stats = stream(x, y, 12)
    state = snapshot(stats)
    for twin in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats).to("cpu")):
        same(state, snapshot(twin))
        twin.update(x[:9], y[:9])
    same(state, snapshot(stats))
    loaded = ClassStatistics(12, 10, scatter=True)
    loaded.load_state_dict(stats.state_dict())
    same(state, snapshot(loaded))
    loaded.update(x, y)
    same(state, snapshot(stats))
    stats.reset()
    same(snapshot(ClassStatistics(12, 10, scatter=True)), snapshot(stats))
    stats.update(x.double(), y)
    assert stats.input_dtype == torch.float64
    with pytest.raises(ValueError, match="state: dim: expected 10, got 11"):
        stats.load_state_dict(ClassStatistics(12, 11, scatter=True).state_dict())
    with pytest.raises(ValueError, match="state: expected the tensors"):
        stats.load_state_dict({k: v for k, v in loaded.state_dict().items() if k != "sums"})


def test_update_keeps_no_graph():
    x, y = data()
    stats = stream(x.requires_grad_(), y, 12)
    assert not stats.sums.requires_grad and not stats.compute().means.requires_grad


@pytest.mark.parametrize("born", (False, True), ids=("born outside", "born inside"))
def test_inference_mode_makes_ordinary_state(born):
    x, y = data()
    with torch.inference_mode(born):
        stats = ClassStatistics(12, x.shape[1], scatter=True)
    with torch.inference_mode():
        stats.update(x[:40], y[:40])
        geometry = stats.compute()
        decisions = DecisionStatistics(geometry, torch.ones(12, x.shape[1], dtype=x.dtype))
        decisions.update(x, y)
    assert not any(t.is_inference() for t in (*stats.tensors().values(), *decisions.tensors().values()))
    assert not geometry.means.is_inference()
    other = stream(x[40:], y[40:], 12)
    stats.merge(other)
    torch.testing.assert_close(stats.compute().means, stream(x, y, 12).compute().means)
    decisions.update(x, y)
    decisions.reset()
