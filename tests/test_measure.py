"""ncops.measure(): one line from tensors or arrays, every number against float64 NumPy; and class by class."""

from __future__ import annotations

import math
import sys
import types
import warnings
from importlib.machinery import PathFinder

import numpy as np
import pytest
import torch
from numpy_metrics import class_geometry, decision_metrics, geometry_metrics

import ncops
from ncops.conventions import PRESETS
from ncops.measuring.tensors import ArrayPart
from ncops.report import NAMES, ClassTable
from ncops.report.details import document
from ncops.report.page import render
from ncops.report.stored import read_report

DECIDED = ("nc4_agreement", "ncc_accuracy", "accuracy", "ece", "nll", "entropy")


def data(classes=6, dim=9, rows=400, seed=0):
    """Imbalanced float64 rows, held-out rows and a classifier; the last class is never seen in training."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, dim))
    share = np.arange(classes, 0.0, -1)
    share[-1] = 0
    y = rng.choice(classes, rows, p=share / share.sum())
    z = rng.integers(0, classes, rows // 2)
    x, held = (means[r] + 0.4 * rng.standard_normal((len(r), dim)) for r in (y, z))
    weight = means - means.mean(0) + 0.2 * rng.standard_normal((classes, dim))
    return x, y, held, z, weight, 0.1 * rng.standard_normal(classes)


def wanted(x, y, weight=None, bias=None, held=None, z=None, min_count=1, classes=None):
    """All numbers that NumPy has of these arrays."""
    geometry = class_geometry(x, y, len(weight) if classes is None else classes, min_count)
    values = geometry_metrics(geometry, weight)
    if weight is not None:
        rows = (x, y) if held is None else (held, z)
        keep = rows[1] >= 0
        decided = decision_metrics(rows[0][keep], rows[1][keep], weight, bias, geometry)
        values |= {name: decided[name] for name in DECIDED}
    return values


def agree(report, theirs, rel=1e-10, atol=1e-13, rows=None):
    assert set(theirs) <= set(NAMES)
    for name in NAMES:
        if name not in theirs:
            assert math.isnan(report[name]), name
        elif rows is not None and name in DECIDED[:-2]:  # rounding may turn a row
            assert abs(report[name] - theirs[name]) <= 1.5 / rows, name
        else:
            assert report[name] == pytest.approx(theirs[name], rel=rel, abs=atol), name


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
@pytest.mark.parametrize("batch", [65536, 37])
def test_every_number_of_tensors_and_of_arrays(kind, batch):
    x, y, held, z, weight, bias = data()
    arrays = [kind(a) for a in (x, y, weight, bias)]
    agree(ncops.measure(*arrays, batch=batch), wanted(x, y, weight, bias))
    report = ncops.measure(*arrays, val_features=kind(held), val_labels=kind(z), batch=batch)
    agree(report, wanted(x, y, weight, bias, held, z))
    assert report.coverage["decision_samples"] == len(z) and "samples of held-out data" in report.table()
    assert report.coverage["classes_seen"] == len(weight) - 1  # one has no row


def test_it_is_what_the_statistics_give_to_the_bit():
    x, y, held, z, weight, bias = (torch.from_numpy(a) for a in data())
    stats = ncops.ClassStatistics(len(weight), x.shape[1], scatter=True)
    stats.update(x, y)
    geometry = stats.compute()
    decisions = ncops.DecisionStatistics(geometry, weight, bias)
    decisions.update(held, z)
    by_hand = ncops.collapse(geometry, weight, bias, decisions=decisions)
    assert ncops.measure(x, y, weight, bias, val_features=held, val_labels=z).to_dict() == by_hand.to_dict()


def test_without_a_classifier_classes_follow_from_the_labels():
    x, y, *_ = data()
    report = ncops.measure(x, y)
    agree(report, wanted(x, y, classes=len(np.unique(y))))
    assert report.coverage["classes"] == y.max() + 1 and "needs the classifier's weight" in report.notes["nc3_cos_mean"]
    assert "no classifier was given" in report.details["notes"][0].lower()


@pytest.mark.parametrize("convention", PRESETS)
def test_conventions(convention):
    x, y, held, z, weight, bias = (torch.from_numpy(a) for a in data())
    stats = ncops.ClassStatistics(len(weight), x.shape[1], scatter=True)
    stats.update(x, y)
    geometry = stats.compute(2)
    decisions = ncops.DecisionStatistics(geometry, weight, bias, convention=convention)
    decisions.update(x, y)
    by_hand = ncops.collapse(geometry, weight, bias, decisions=decisions, convention=convention)
    report = ncops.measure(x, y, weight, bias, convention=convention, min_count=2)
    assert report.convention == convention and report.to_dict() == pytest.approx(by_hand.to_dict(), nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_features_and_a_classifier_of_another_dtype(dtype):
    x, y, held, z, weight, bias = data()
    narrow = torch.from_numpy(x).to(dtype)
    report = ncops.measure(narrow, y, weight, bias)
    rounded = [torch.from_numpy(a).to(dtype).double().numpy() for a in (x, weight, bias)]
    theirs = wanted(rounded[0], y, *rounded[1:])
    agree(report, theirs, rel=1e-4, atol=1e-5, rows=len(y))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64])
def test_labels_of_any_width(dtype):
    x, y, _, _, weight, bias = data()
    assert ncops.measure(x, y.astype(dtype), weight, bias).to_dict() == ncops.measure(x, y, weight, bias).to_dict()


def test_features_as_they_lie():
    """Strides, byte order, memory that may not be written, a file that is mapped, float16."""
    x, y, _, _, weight, bias = data()
    there = ncops.measure(x, y, weight, bias).to_dict()
    locked = x.copy()
    locked.flags.writeable = False
    wide = np.zeros((len(x), 2 * x.shape[1]))
    wide[:, ::2] = x
    with warnings.catch_warnings(action="error"):
        for same in (locked, np.asfortranarray(x), wide[:, ::2], x[::-1][::-1], x.astype(">f8")):
            assert ncops.measure(same, y.astype(">i4"), weight, bias).to_dict() == pytest.approx(there, rel=1e-9)


def test_a_mapped_file(tmp_path):
    x, y, _, _, weight, bias = data()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert ncops.measure(mapped, y, weight, bias).to_dict() == ncops.measure(x, y, weight, bias).to_dict()


class Lent:
    """An array of another library, on a device that NumPy cannot reach or not."""

    def __init__(self, tensor, reachable=False):
        self.tensor = tensor
        if reachable:
            self.__class__ = Reachable

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class Reachable:
    def __array__(self, dtype=None, copy=None):
        return self.tensor.numpy()


@pytest.mark.parametrize("reachable", [False, True])
def test_arrays_of_other_libraries(reachable):
    x, y, _, _, weight, bias = data()
    lent = [Lent(torch.from_numpy(a), reachable) for a in (x, y, weight, bias)]
    assert ncops.measure(*lent).to_dict() == ncops.measure(x, y, weight, bias).to_dict()


@pytest.mark.parametrize("lead", [(4, 100), (1, 400), (100, 2, 2), (1, 1, 400)])
def test_leading_dimensions(lead):
    x, y, _, _, weight, bias = data()
    assert len(y) == 400
    report = ncops.measure(x.reshape(*lead, -1), y.reshape(lead), weight, bias, batch=60)
    agree(report, wanted(x, y, weight, bias), rel=1e-9)
    turned = torch.from_numpy(x).reshape(4, 100, -1).transpose(0, 1)  # rows that lie apart
    there = ncops.measure(turned, torch.from_numpy(y).reshape(4, 100).T, weight, bias)
    agree(there, wanted(x, y, weight, bias), rel=1e-9)


@pytest.mark.parametrize(
    ("lead", "most"), [((400,), 60), ((4, 100), 100), ((1, 400), 60), ((100, 2, 2), 60), ((1, 1, 400), 60), ((7, 0), 0)]
)
def test_batches_are_no_larger_than_asked_for(lead, most):
    x, y = torch.randn(*lead, 3), torch.arange(math.prod(lead)).reshape(lead)
    parts = list(ArrayPart(x, y).batches(60))
    assert max(len(rows) for rows, _ in parts) == most
    assert torch.equal(torch.cat([rows for rows, _ in parts]), x.reshape(-1, 3))
    assert torch.equal(torch.cat([labels for _, labels in parts]), y.flatten())


@pytest.mark.parametrize("ignored", [-100, 3, -1, 255])
def test_ignored_rows_count_nowhere(ignored):
    x, y, held, z, weight, bias = data()
    y, z, keep = y.copy(), z.copy(), np.arange(len(y)) % 5 != 0
    x[~keep] = np.nan  # whatever they hold
    if ignored == 3:  # a class of its own number goes altogether
        y[y == 3] = 2
        z[z == 3] = 2
    y[~keep], z[:7] = ignored, ignored
    report = ncops.measure(
        x, y, weight, bias, val_features=held, val_labels=z, ignore_index=ignored, nonfinite="skip", num_classes=6
    )
    agree(report, wanted(x[keep], y[keep], weight, bias, held[7:], z[7:]))
    assert report.coverage["ignored_rows"] == (~keep).sum() and report.coverage["decision_ignored_rows"] == 7
    alone = ncops.measure(x, y, ignore_index=ignored)
    assert alone.coverage["classes"] == y[keep].max() + 1  # which an ignored label does not raise


def test_more_classes_than_a_simplex_has():
    x, y, _, _, weight, bias = data(classes=30, dim=4, rows=3000)
    report = ncops.measure(x, y, weight, bias)
    agree(report, wanted(x, y, weight, bias), rel=1e-9)
    assert report.goals.crowded and report.goals["nc2_cos_error"].text == "above 0 for K > D + 1"


def test_one_class_only():
    x, _, _, _, weight, bias = data()
    report = ncops.measure(x, np.full(len(x), 2), weight, bias)
    between = [name for name in NAMES if name.startswith(("nc1", "nc2", "nc3", "gnc2", "vci"))]
    assert all(math.isnan(report[name]) and "there are 1" in report.notes[name] for name in between)
    assert report["ncc_accuracy"] == 1 and report.classes().to_dict()["class"] == [2]
    assert "nearest" not in report.classes().names


def test_rows_that_are_not_finite():
    x, y, _, _, weight, bias = data()
    x[11, 3] = np.nan
    spoilt = ncops.measure(x, y, weight, bias)
    assert math.isnan(spoilt["nc1_pinv"]) and "nonfinite" in spoilt.notes["nc1_pinv"]
    keep = np.arange(len(x)) != 11
    agree(ncops.measure(x, y, weight, bias, nonfinite="skip"), wanted(x[keep], y[keep], weight, bias))
    with pytest.raises(ValueError, match="x: 1 of 400 rows hold a NaN or an infinity, first row 11"):
        ncops.measure(x, y, weight, bias, nonfinite="raise")


def test_no_rows_and_no_scatter():
    report = ncops.measure(np.zeros((0, 4)), np.zeros(0, int), num_classes=3)
    assert all(math.isnan(value) for value in report.values()) and len(report.classes()) == 0
    assert "class" in repr(report.classes()) and "<table>" in report.classes()._repr_html_()
    x, y, *_ = data()
    assert math.isnan(ncops.measure(x, y, scatter=False)["vci"])


def test_nothing_is_learned_and_nothing_is_changed():
    x, y, _, _, weight, bias = (torch.from_numpy(a) for a in data())
    before = [t.clone() for t in (x, y, weight, bias)]
    layer = torch.nn.Linear(9, 6, dtype=torch.float64)
    layer.weight.data, layer.bias.data = weight, bias
    report = ncops.measure(x.clone().requires_grad_(), y, layer.weight, layer.bias)
    assert report.to_dict() == ncops.measure(x, y, weight, bias).to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, weight, bias), strict=True))


# -- what is refused, before any work ---------------------------------------------------------------------------------


X, Y, W = np.ones((8, 3)), np.arange(8) % 4, np.ones((4, 3))
REFUSED = {
    "list": (TypeError, (X.tolist(), Y), {}, r"features: .*got list: numpy.asarray\(features\) is one"),
    "list of labels": (TypeError, (X, Y.tolist()), {}, r"labels: .*got list: numpy.asarray\(labels\) is one"),
    "text": (TypeError, ("features", Y), {}, "features: expected a tensor or an array, got str"),
    "module": (TypeError, (X, Y, torch.nn.Linear(3, 4)), {}, "weight: .*got Linear: give its weight and bias"),
    "mask": (TypeError, (np.ma.masked_array(X, X > 2), Y), {}, "features: expected an array without a mask"),
    "objects": (ValueError, (X, Y.astype(object)), {}, "labels: expected .* integers, got object"),
    "complex": (ValueError, (X.astype(complex), Y), {}, "features: expected float32.*got complex128"),
    "long double": (ValueError, (X.astype(np.longdouble), Y), {}, "features: expected float32.*got float128"),
    "integers": (ValueError, (X.astype(int), Y), {}, "features: expected float32.*got torch.int64"),
    "sparse": (ValueError, (torch.ones(8, 3).to_sparse(), Y), {}, "features: expected a dense tensor"),
    "one row": (ValueError, (X[0], Y[0]), {}, r"features: expected shape \(N, D\), got \(3,\)"),
    "no width": (ValueError, (X[:, :0], Y), {}, r"features: expected shape \(N, D\), got \(8, 0\)"),
    "fewer labels": (ValueError, (X, Y[:5]), {}, r"labels: expected shape .*= \(8,\), got \(5,\)"),
    "a column": (ValueError, (X, Y[:, None]), {}, r"labels: .*labels.squeeze\(-1\) has it"),
    "one-hot": (ValueError, (X, np.eye(4, dtype=int)[Y]), {}, r"labels: .*labels.argmax\(-1\) has it"),
    "float labels": (ValueError, (X, Y + 0.0), {}, "labels: expected an integer dtype, got torch.float64"),
    "bool labels": (ValueError, (X, Y > 1), {}, "labels: expected an integer dtype, got torch.bool"),
    "huge label": (ValueError, (X, np.full(8, 2**63, np.uint64)), {}, "labels: expected integers below 2"),
    "memory": (ValueError, (X, Y + 2**40), {}, "statistics of 1099511627780 classes .* GB are free"),
    "label": (ValueError, (X, Y, W[:3]), {}, r"labels: expected values in \[0, 3\).*got 3 at row 3 of 8"),
    "negative": (ValueError, (X, Y - 1), {}, r"labels: expected values in .*got -1 at row 0 of 8"),
    "no class": (ValueError, (X, np.full(8, -100)), {}, "labels: names no class"),
    "weight": (ValueError, (X, Y, W[:, :2]), {}, r"weight: expected shape \(num_classes, D\) = \(4, 3\), got \(4, 2"),
    "no rows": (ValueError, (X, Y, W[:0]), {}, "weight: expected at least one class"),
    "bias": (ValueError, (X, Y, W, W[:3, 0]), {}, r"bias: expected shape \(num_classes,\) = \(4,\), got \(3,\)"),
    "bias alone": (ValueError, (X, Y, None, W[:, 0]), {}, "weight: expected the rows that bias belongs to, got None"),
    "classes": (ValueError, (X, Y, W), {"num_classes": 5}, r"weight: expected shape .*\(5, 3\), got \(4, 3\)"),
    "num_classes": (ValueError, (X, Y), {"num_classes": 0}, "num_classes: expected an integer of 1 or more, got 0"),
    "min_count": (ValueError, (X, Y), {"min_count": 0}, "min_count: expected an integer of 1 or more, got 0"),
    "batch": (ValueError, (X, Y), {"batch": 0}, "batch: expected an integer of 1 or more, got 0"),
    "convention": (ValueError, (X, Y), {"convention": "nocps"}, "convention: expected one of ncops.*got 'nocps'"),
    "nonfinite": (ValueError, (X, Y), {"nonfinite": "drop"}, "nonfinite: expected one of .*got 'drop'"),
    "val labels": (ValueError, (X, Y, W), {"val_features": X}, "val_labels: expected it beside val_features"),
    "val features": (ValueError, (X, Y, W), {"val_labels": Y}, "val_features: expected it beside val_labels"),
    "val alone": (ValueError, (X, Y), {"val_features": X, "val_labels": Y}, "weight: expected the classifier whose"),
    "val width": (
        ValueError, (X, Y, W), {"val_features": X[:, :2], "val_labels": Y},
        r"val_features: expected features' width, D = 3, got shape \(8, 2\)",
    ),
    "val dtype": (
        ValueError, (X, Y, W), {"val_features": np.float32(X), "val_labels": Y},
        "val_features: expected torch.float64, the dtype of features, got torch.float32",
    ),
    "val label": (
        ValueError, (X, Y, W), {"val_features": X, "val_labels": Y + 1}, "val_labels: expected values .*got 4 at row 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name, monkeypatch):
    kind, arguments, options, message = REFUSED[name]
    monkeypatch.setattr(ncops.ClassStatistics, "update", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(kind, match=f"^{message}"):
        ncops.measure(*arguments, **options)


def test_collapse_says_what_it_takes_and_where_the_one_line_is():
    for features in (X, torch.from_numpy(X)):
        with pytest.raises(TypeError, match=r"^geometry: expected ClassGeometry, got \w+: it is what ") as refused:
            ncops.collapse(features, Y)
        told = str(refused.value)
        assert "ClassStatistics.compute()" in told and "ncops.measure(features, labels, weight, bias)" in told
        assert "\n" not in told


def test_the_name_is_the_function_whatever_is_imported():
    import ncops.cli.commands
    import ncops.lm.measure
    import ncops.measuring.features  # noqa: F401

    assert callable(ncops.measure) and ncops.measure.__module__ == "ncops.measuring.tensors"
    found = PathFinder.find_spec("ncops.measure", ncops.__path__)
    assert found is None or found.origin is None  # no module, whose import would take the function's place


# -- class by class ---------------------------------------------------------------------------------------------------


def table_of(x, y, held, z, weight, bias, min_count=1):
    """The table of classes by loops in NumPy: class -> column -> value."""
    g = class_geometry(x, y, len(weight), min_count)
    centred = g["means"] - g["means"].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    grid = unit @ unit.T
    np.fill_diagonal(grid, -2)
    logits = held @ weight.T + bias
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    chosen = logits.argmax(1)
    nearest = g["classes"][np.stack([((held - m) ** 2).sum(1) for m in g["means"]]).argmin(0)]
    table = {}
    for i, c in enumerate(g["classes"]):
        table[c] = {
            "count": g["counts"][i], "kept": True, "class_var": g["class_var"][i],
            "mean_norm": np.linalg.norm(centred[i]), "row_norm": np.linalg.norm(weight[c]),
            "row_cosine": unit[i] @ weight[c] / np.linalg.norm(weight[c]),
            "nearest": g["classes"][grid[i].argmax()], "nearest_cosine": grid[i].max(),
        }  # fmt: skip
    for c in np.unique(z):
        mine = z == c
        table.setdefault(c, {"count": 0 if min_count == 1 else None, "kept": False})
        table[c] |= {
            "decided": mine.sum(), "hit": (chosen[mine] == c).mean(), "ncc_hit": (nearest[mine] == c).mean(),
            "agree": (chosen[mine] == nearest[mine]).mean(), "nll": -logp[mine, c].mean(),
        }  # fmt: skip
    return table


@pytest.mark.parametrize("min_count", [1, 40])
def test_class_by_class(min_count):
    x, y, held, z, weight, bias = data()
    arrays = x, y, held, z, weight, bias = x, 5 - y, held, 5 - z, weight[::-1], bias[::-1]  # the first is never seen
    table = ncops.measure(
        x, y, weight, bias, val_features=held, val_labels=z, min_count=min_count
    ).classes().to_dict()  # fmt: skip
    theirs = table_of(*arrays, min_count=min_count)
    assert table["class"] == sorted(theirs) and False in table["kept"]
    for i, c in enumerate(table["class"]):
        for name, column in table.items():
            value = theirs[c].get(name, math.nan) if name != "class" else c
            if name in ("nearest", "count") and (value is None or value != value):
                assert column[i] is None, (c, name)
            else:
                assert column[i] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), (c, name)


def test_without_a_kept_class_nothing_is_near():
    x, y, _, _, weight, bias = data()
    table = ncops.measure(x, y, weight, bias, min_count=1000).classes()
    assert table["kept"] == [False] * 5 and table["count"] == [None] * 5 and sum(table["decided"]) == len(y)
    assert all(math.isnan(value) for name in ("ncc_hit", "agree", "mean_norm") for value in table[name])
    assert min(table["hit"]) > 0


def test_a_table_without_a_classifier_and_one_that_collapse_makes():
    x, y, *_ = data()
    table = ncops.measure(x, y).classes()
    assert table.names == ("class", "count", "kept", "class_var", "mean_norm", "nearest", "nearest_cosine")
    stats = ncops.ClassStatistics(6, 9)
    stats.update(torch.from_numpy(x), torch.from_numpy(y))
    assert ncops.collapse(stats.compute()).classes().to_dict() == table.to_dict()
    product = ncops.collapse(stats.compute(), convention="neural-collapse").classes()
    assert product["nearest_cosine"] == table["nearest_cosine"]  # cosines where the report has inner products


def test_norms_are_about_the_global_mean_of_the_convention():
    x, y, *_ = data()
    means = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    norms = ncops.measure(x, y, convention="zhu").classes()["mean_norm"]
    assert norms == pytest.approx(np.linalg.norm(means - x.mean(0), axis=1).tolist())


def test_sorted_and_cut():
    report = ncops.measure(*data()[:2], data()[4], data()[5], val_features=data()[2], val_labels=data()[3])
    table = report.classes("count", descending=True)
    assert table["count"] == sorted(table["count"], reverse=True)
    assert report.classes("count")["class"] == table["class"][::-1] == [5, 4, 3, 2, 1, 0]
    lone = report.classes("nearest_cosine")  # of the class that is not kept there is none
    assert lone["nearest_cosine"][:-1] == sorted(lone["nearest_cosine"][:-1]) and math.isnan(lone["nearest_cosine"][-1])
    assert report.classes("nearest_cosine", descending=True)["class"][-1] == lone["class"][-1] == 5
    few = ncops.measure(*data()[:2], data()[4], min_count=60)
    assert few.classes("count")["count"][-1:] == few.classes("count", descending=True)["count"][-1:] == [None]
    two = report.classes("count", descending=True, limit=2)
    assert len(two) == 2 and two.of == 6 and two["class"] == table["class"][:2]
    assert len(report.classes(limit=0)) == 0 and len(report.classes(limit=99)) == 6
    assert report.classes("kept")["kept"] == [False] + [True] * 5
    with pytest.raises(ValueError, match="by: expected one of class, count, .*got 'size'"):
        report.classes("size")
    with pytest.raises(ValueError, match="limit: expected an integer of 0 or more, got -1"):
        report.classes(limit=-1)
    with pytest.raises(KeyError, match="classes: no column 'size'; it has class, count"):
        table["size"]
    with pytest.raises(ValueError, match="made from numbers alone"):
        ncops.CollapseReport({"nll": 1.0}).classes()


def test_equal_values_are_in_the_order_of_the_classes():
    y = torch.arange(15) % 3
    x, weight = torch.randn(15, 4), torch.randn(3, 4)
    report = ncops.measure(x[y > 0], y[y > 0], weight, val_features=x, val_labels=y)
    for descending in (False, True):
        assert report.classes("decided", descending=descending).to_dict()["class"] == [0, 1, 2]


def test_a_long_table_shows_its_first_rows():
    many = {"class": torch.arange(5000), "count": torch.arange(5000), "kept": torch.ones(5000, dtype=torch.bool)}
    table = ClassTable(many)
    text, html = repr(table), table._repr_html_()
    assert len(text.splitlines()) == 22 and text.splitlines()[-1].startswith("20 of 5,000 classes; to_dict() and")
    assert html.count("<tr>") == 101 and "100 of 5,000 classes" in html
    assert "4999" in repr(table.sort("count", descending=True)) and len(table.to_dict()["class"]) == 5000


def test_a_table_as_a_frame(monkeypatch):
    made = types.SimpleNamespace(DataFrame=lambda columns, index=None: (columns, index))
    monkeypatch.setitem(sys.modules, "pandas", made)
    report = ncops.measure(*data()[:2])
    assert report.classes().to_frame() == (report.classes().to_dict(), None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        report.classes().to_frame()


# -- the page, the file -----------------------------------------------------------------------------------------------


def test_the_report_brings_its_page(tmp_path):
    x, y, _, _, weight, bias = data()
    report = ncops.measure(x, y, weight, bias)
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Class by class" in page and "nearest class" in page and "decisions are on the training data itself" in page
    assert "Decisions: 400 samples of training data" in report.table()
    runs = ncops.report.compare([report, report], labels=["step-1", "step-2"])
    assert "Class by class" in runs.html()


def test_a_stored_report_has_its_table(tmp_path):
    import json

    x, y, held, z, weight, bias = data()
    report = ncops.measure(x, y, weight, bias, val_features=held, val_labels=z)
    (tmp_path / "report.json").write_text(json.dumps(document(report, report.details)))
    again = read_report(tmp_path / "report.json").report
    table, there = again.classes(), report.classes().kept()
    assert set(table.names) == set(there.names) - {"row_norm", "nll"} and table["class"] == there["class"]
    assert all(table[name] == pytest.approx(there[name], nan_ok=True) for name in table.names)
    assert "Class by class" in render(again, details=again.details)
    stored = json.loads((tmp_path / "report.json").read_text())
    for wrong in (1.5, -3, 10**30, "<b>"):
        stored["classes"]["rows"][1]["nearest"] = wrong
        (tmp_path / "report.json").write_text(json.dumps(stored))
        lost = read_report(tmp_path / "report.json")
        assert "left out: classes" in lost.details["notes"][-1]
        with pytest.raises(ValueError, match="numbers alone"):
            lost.report.classes()
