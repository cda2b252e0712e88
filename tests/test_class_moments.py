"""class_moments against dense float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testing import (
    IGNORE,
    LAYOUTS,
    assert_accurate,
    assert_compiles,
    assert_deterministic,
    block_rows,
    dtypes,
    exact,
    interpreter_blocks,
    layouts,
    plain,
    randn,
    random_labels,
)

import ncops
from ncops.backends import native
from ncops.backends.dtypes import compute_dtype

wide_blocks = interpreter_blocks(
    {"class_moments": {"CHUNK": 32, "BLOCK_D": 128}, "class_moments.merge": {"BLOCK_D": 128}}
)

# (N, D, C): one of each; more classes than rows; tiles and vectors from below and above; nothing.
SHAPES = [(1, 1, 1), (2, 17, 33), (65, 33, 4), (130, 65, 130), (33, 130, 2), (300, 16, 1), (0, 5, 3), (5, 0, 2)]


def naive(x, labels, classes, center=None):
    """``(counts, sums, sqnorms)`` by a one-hot product."""
    keep = labels != IGNORE
    x, labels = x[keep], labels[keep]
    r = x if center is None else x - center[labels]
    onehot = torch.nn.functional.one_hot(labels, classes).to(x.dtype)
    return onehot.sum(0).long(), onehot.T @ r, onehot.T @ r.square().sum(1)


@dtypes
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_dense_float64(backend, monkeypatch, shape, dtype, centred):
    n, d, c = shape
    block_rows(monkeypatch, 8 * 37 * max(1, d))
    x, labels = randn(n, d, dtype=dtype, shift=0.5), random_labels(n, c)
    center = randn(c, d, dtype=compute_dtype(dtype)) if centred else None
    ours = ncops.class_moments(x, labels, c, center=center)
    assert (ours.sums.dtype, ours.sqnorms.dtype) == (compute_dtype(dtype), torch.float64)
    assert ours.counts.dtype == ours.invalid.dtype == torch.int64 and ours.invalid == 0
    counts, sums, sqnorms = naive(*exact(x, labels), c, *exact(center))
    _, plain_sums, plain_sqnorms = naive(*plain(x, labels), c, *plain(center))
    assert torch.equal(ours.counts, counts)
    # A sum of terms of both signs may end near zero: its roundings are those of its terms.
    terms = x.double() if center is None or not c else x.double() - center.double()[labels.clamp(0, c - 1)]
    size = naive(terms.abs(), labels, c, None)[1].max().item() if x.numel() and c else 0
    assert_accurate(ours.sums, plain_sums, sums, scale=max(1, size))
    # Squares are summed in float64 over rows; a row's own squares in the compute dtype.
    assert_accurate(ours.sqnorms.to(compute_dtype(dtype)), plain_sqnorms, sqnorms, eps=4)
    assert ((ours.sqnorms - sqnorms).abs() <= 8 * torch.finfo(compute_dtype(dtype)).eps * sqnorms).all()


@layouts
@pytest.mark.parametrize("centred", [False, True])
def test_layouts(backend, layout, centred):
    change = LAYOUTS[layout]
    x, labels = change(randn(65, 70, dtype=torch.float32)), random_labels(65, 6)
    center = change(randn(6, 70, dtype=torch.float32)) if centred else None
    ours = ncops.class_moments(x, labels.repeat_interleave(2)[::2], 6, center=center)
    counts, sums, sqnorms = naive(*exact(x, labels), 6, *exact(center))
    assert torch.equal(ours.counts, counts)
    torch.testing.assert_close(ours.sums.double(), sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sqnorms, sqnorms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_leading_dimensions_and_label_dtypes(backend, labels_dtype):
    x, labels = randn(2, 3, 5), torch.randint(0, 4, (2, 3))
    ours = ncops.class_moments(x, labels.to(labels_dtype), 4)
    counts, sums, sqnorms = naive(x.view(6, 5), labels.view(6), 4)
    assert torch.equal(ours.counts, counts)
    torch.testing.assert_close((ours.sums, ours.sqnorms), (sums, sqnorms))
    one = ncops.class_moments(x[0, 0], labels[0, 0], 4)
    assert one.counts.sum() == 1 and torch.equal(one.sums[labels[0, 0]], x[0, 0])


def test_by_hand(backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 7.0]])
    labels = torch.tensor([2, 0, 2, IGNORE])
    counts, sums, sqnorms, invalid = ncops.class_moments(x, labels, 3)
    assert counts.tolist() == [1, 0, 2] and invalid == 0
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8]] and sqnorms.tolist() == [25, 0, 66]
    center = torch.tensor([[3.0, 3.0], [9.0, 9.0], [3.0, 4.0]])
    _, sums, sqnorms, _ = ncops.class_moments(x, labels, 3, center=center)
    assert sums.tolist() == [[0, 1], [0, 0], [0, 0]] and sqnorms.tolist() == [1, 0, 16]


def test_collapsed_regime(backend):
    # Class means of norm 100, spread 1e-3, anchors inside the classes: the variance keeps four digits and more.
    means = torch.nn.functional.normalize(randn(10, 32), dim=1) * 100
    labels = torch.arange(10).repeat(200 if backend != "triton" else 40)
    x = (means[labels] + 1e-3 * randn(len(labels), 32)).float()
    counts, sums, sqnorms, _ = ncops.class_moments(x, labels, 10, center=x[:10].clone())
    ours = sqnorms / counts - (sums.double() / counts[:, None]).square().sum(1)
    truth = torch.stack([x.double()[labels == c].var(0, correction=0).sum() for c in range(10)])
    assert ((ours / truth - 1).abs() < 1e-4).all()
    counts, sums, sqnorms, _ = ncops.class_moments(x, labels, 10)
    bare = sqnorms / counts - (sums.double() / counts[:, None]).square().sum(1)
    assert ((bare / truth - 1).abs() > 1e-4).any()  # without anchors it does not


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_value_touches_its_class_alone(backend, bad):
    x, labels = randn(40, 9, dtype=torch.float32), torch.arange(40) % 5
    clean = ncops.class_moments(x, labels, 5)
    x[3, 2] = bad
    ours = ncops.class_moments(x, labels, 5)
    rest = torch.arange(5) != 3
    assert torch.equal(ours.counts, clean.counts)
    assert torch.equal(ours.sums[rest], clean.sums[rest]) and torch.equal(ours.sqnorms[rest], clean.sqnorms[rest])
    assert not ours.sums[3, 2].isfinite() and not ours.sqnorms[3].isfinite()
    labels[3] = IGNORE
    assert ncops.class_moments(x, labels, 5).sums.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_squares_that_overflow_float32_touch_their_class_alone(backend, dtype):
    x, labels = randn(40, 5, dtype=dtype), torch.arange(40) % 4
    x[7] = x[7].abs() * 1e20
    ours = ncops.class_moments(x, labels, 4)
    counts, sums, sqnorms = naive(*exact(x, labels), 4)
    assert torch.equal(ours.counts, counts)
    torch.testing.assert_close(ours.sums.double(), sums, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.sqnorms[:3], sqnorms[:3], rtol=1e-6, atol=0)
    assert ours.sqnorms[3] == math.inf or abs(ours.sqnorms[3] / sqnorms[3] - 1) < 1e-6


def test_nothing_counts(backend):
    for classes in (0, 3):
        counts, sums, sqnorms, invalid = ncops.class_moments(randn(5, 2), torch.full((5,), IGNORE), classes)
        assert counts.shape == sqnorms.shape == (classes,) and sums.shape == (classes, 2) and invalid == 0
        assert (counts == 0).all() and (sums == 0).all() and (sqnorms == 0).all()


@pytest.mark.parametrize("bad", [-1, 3, 2**40, -(2**40)])
def test_label_out_of_range(backend, bad):
    labels = torch.tensor([0, IGNORE, 2, 1, bad, 99])
    with pytest.raises(ValueError, match=rf"labels: .*\[0, 3\) or ignore_index=-100, got {bad} at row 4"):
        ncops.class_moments(randn(6, 2), labels, 3)


def test_another_ignore_index(backend):
    # An ignore_index that is itself a class: that class stays empty.
    counts = ncops.class_moments(randn(6, 2), torch.tensor([0, 1, 2, 1, 0, 0]), 3, ignore_index=1).counts
    assert counts.tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels: expected shape x.shape\[:-1\] = \(4,\)"),
        ({"labels": torch.zeros(4)}, ValueError, "labels: expected an integer dtype, got torch.float32"),
        ({"labels": [0] * 4}, TypeError, "labels: expected a tensor, got list"),
        ({"x": torch.zeros(4, 2, dtype=torch.int64)}, ValueError, "x: expected float32"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected shape"),
        ({"num_classes": -1}, ValueError, "num_classes: expected an integer of 0 or more, got -1"),
        ({"num_classes": 5.0}, ValueError, r"num_classes: expected an integer, got 5\.0"),
        ({"num_classes": 2**70}, ValueError, f"num_classes: expected an integer of 64 bits, got {2**70}"),
        ({"num_classes": None}, TypeError, "num_classes: expected an integer, got None"),
        ({"num_classes": True}, ValueError, "num_classes: expected an integer, got True"),
        ({"num_classes": torch.ones(2)}, ValueError, "num_classes: expected an integer, got tensor"),
        ({"ignore_index": -1.5}, ValueError, r"ignore_index: expected an integer, got -1\.5"),
        ({"x": torch.eye(4).to_sparse()}, ValueError, "x: expected a dense tensor, got layout torch.sparse_coo"),
        ({"center": torch.zeros(2, 2)}, ValueError, r"center: expected shape \(num_classes, D\) = \(3, 2\)"),
        ({"center": torch.zeros(3, 2).double()}, ValueError, "center: expected torch.float32"),
    ],
)
def test_errors(change, error, message):
    arguments = {"x": torch.randn(4, 2), "labels": torch.zeros(4, dtype=torch.int64), "num_classes": 3} | change
    with pytest.raises(error, match=message):
        ncops.class_moments(**arguments)


def test_integers_of_other_kinds():
    x, labels = randn(4, 2), torch.zeros(4, dtype=torch.int64)
    for number in (np.int64(3), np.uint8(3), torch.tensor(3)):
        counts = ncops.class_moments(x, labels, number, ignore_index=np.int32(-100)).counts
        assert counts.tolist() == [4, 0, 0]


def test_the_row_of_a_bad_label_is_that_of_all_rows():
    labels = torch.zeros(3, 4, dtype=torch.int64)
    labels[2, 1] = 7
    with pytest.raises(ValueError, match="got 7 at row 9 of 12"):
        ncops.class_moments(randn(3, 4, 2), labels, 3)


def test_too_little_memory_is_said():
    if native.load() is not None:
        pytest.skip("needs the native extension")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("this torch does not tell what went wrong behind its C interface")
    with pytest.raises(RuntimeError, match=r"class_moments: .*you tried to allocate \d+ bytes"):
        ncops.class_moments(randn(4, 3), torch.zeros(4, dtype=torch.int64), 10**13)


@pytest.mark.parametrize("centred", [False, True])
def test_gradients(backend, monkeypatch, centred):
    block_rows(monkeypatch, 8 * 3 * 4)
    labels = random_labels(9, 3)
    inputs = [randn(9, 4).requires_grad_()] + ([randn(3, 4).requires_grad_()] if centred else [])
    weight = randn(3, 4)

    def run(function):
        def value(x, center=None):
            _, sums, sqnorms = function(x, labels, 3, center)[:3]
            return (sums * weight).sum() + (sqnorms * weight[:, 0]).sum()

        return value

    ours = run(lambda x, y, c, center: ncops.class_moments(x, y, c, center=center))
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=backend == "triton")
    mine, truth = (torch.autograd.grad(f(*inputs), inputs) for f in (ours, run(naive)))
    torch.testing.assert_close(mine, truth)


@dtypes
def test_gradient_accuracy(backend, dtype):
    x, labels, weight = randn(65, 33, dtype=dtype), random_labels(65, 4), randn(4, 33)

    def gradient(function, x):
        x = x.detach().requires_grad_()
        _, sums, sqnorms = function(x, labels, 4)[:3]
        return torch.autograd.grad((sums * weight).sum() + (sqnorms * weight[:, 0]).sum(), x)[0]

    mine, truth = gradient(ncops.class_moments, x), gradient(naive, x.double())
    theirs = gradient(naive, plain(x)[0])
    assert mine.dtype == dtype and (mine[labels == IGNORE] == 0).all()
    assert_accurate(mine, theirs.to(dtype), truth, eps=8 if dtype.itemsize > 2 else 1)


def test_second_derivative_is_refused(backend):
    x = randn(3, 4).requires_grad_()
    moments = ncops.class_moments(x, torch.tensor([0, 1, 0]), 2)
    (grad,) = torch.autograd.grad(moments.sqnorms.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="class_moments: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("classes", [5, 3000])
def test_deterministic(backend, classes):
    n, d, classes = (5000, 65, classes) if backend != "triton" else (200, 17, classes // 10 + 3)
    x, labels = randn(n, d, dtype=torch.float32), random_labels(n, classes)
    assert_deterministic(lambda: ncops.class_moments(x, labels, classes), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    x, center = randn(9, 5, dtype=dtype).requires_grad_(), randn(3, 5, dtype=torch.float32).requires_grad_()
    op = torch.ops.ncops.class_moments.default
    torch.library.opcheck(op, (x, random_labels(9, 3), 3, center, IGNORE))
    torch.library.opcheck(op, (x.detach(), random_labels(9, 3), 3, None, IGNORE))


def test_compile(backend):
    labels = random_labels(9, 3)
    assert_compiles(lambda x, center: ncops.class_moments(x, labels, 3, center=center), randn(9, 5), randn(3, 5))
