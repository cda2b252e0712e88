"""class_scatter against dense float64 arithmetic."""

from __future__ import annotations

import math

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
from ncops.backends.dtypes import compute_dtype

BLOCKS = {
    "class_scatter": {"BLOCK_D": 32, "BLOCK_N": 32, "FOLD": 64},
    "row_products": {"BLOCK_N": 32, "BLOCK_J": 32, "BLOCK_D": 32},
    "class_moments": {"CHUNK": 32, "BLOCK_D": 128},
    "class_moments.merge": {"BLOCK_D": 128},
}
wide_blocks = interpreter_blocks(BLOCKS)
SHAPES = [(1, 1, 1), (1, 17, 2), (2, 1, 3), (65, 33, 4), (130, 65, 7), (33, 130, 40), (300, 16, 5), (0, 5, 2)]


def naive(x, labels=None, center=None):
    if labels is None:
        r = x if center is None else x - center
    else:
        keep = labels != IGNORE
        r = x[keep] - center[labels[keep]]
    return r.T @ r


@dtypes
@pytest.mark.parametrize("mode", ["uncentred", "one_centre", "classes"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_dense_float64(backend, monkeypatch, shape, dtype, mode):
    block_rows(monkeypatch, 8 * 37 * shape[1])
    n, d, c = shape
    x = randn(n, d, dtype=dtype, shift=0.5)
    center = {"uncentred": None, "one_centre": randn(d), "classes": randn(c, d)}[mode]
    center = None if center is None else center.to(compute_dtype(dtype))
    labels = random_labels(n, c) if mode == "classes" else None
    ours = ncops.class_scatter(x, labels, center)
    assert ours.dtype == compute_dtype(dtype) and torch.equal(ours, ours.T)
    theirs, truth = (naive(a, labels, b) for a, b in (plain(x, center), exact(x, center)))
    scale = truth.diagonal().max().item()
    assert_accurate(ours, theirs, truth, scale=scale)


@layouts
def test_layouts(backend, layout):
    x, center = LAYOUTS[layout](randn(65, 33, dtype=torch.float32)), LAYOUTS[layout](randn(6, 33, dtype=torch.float32))
    labels = random_labels(65, 6)
    ours = ncops.class_scatter(x, labels.repeat_interleave(2)[::2], center)
    torch.testing.assert_close(ours.double(), naive(x.double(), labels, center.double()), rtol=1e-5, atol=1e-4)


def test_leading_dimensions(backend):
    x, labels, center = randn(2, 3, 5), random_labels(6, 4), randn(4, 5)
    ours = ncops.class_scatter(x, labels.view(2, 3), center)
    torch.testing.assert_close(ours, naive(x.view(6, 5), labels, center))
    torch.testing.assert_close(ncops.class_scatter(x[0, 0]), naive(x[0, :1]))


def test_by_hand(backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [9.0, 9.0], [0.0, 1.0]])
    center = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    labels = torch.tensor([0, 1, IGNORE, 0])  # deviations (0, 1), (1, 2), (-1, 0)
    assert ncops.class_scatter(x, labels, center).tolist() == [[2, 2], [2, 5]]
    assert ncops.class_scatter(x[:2], None, torch.tensor([1.0, 1.0])).tolist() == [[4, 8], [8, 17]]


def test_collapsed_regime(backend):
    # Class means of norm 100, spread 1e-3: the deviations are exact, so the scatter is, to float32 rounding.
    means = torch.nn.functional.normalize(randn(8, 24), dim=1) * 100
    labels = torch.arange(8).repeat(50)
    x = (means[labels] + 1e-3 * randn(400, 24)).float()
    center = torch.stack([x[labels == c].mean(0) for c in range(8)])
    truth = naive(x.double(), labels, center.double())
    error = (ncops.class_scatter(x, labels, center).double() - truth).abs().max() / truth.diagonal().max()
    assert error < 1e-5


def test_nan_spreads_to_its_row_and_column_only(backend):
    x = randn(40, 9, dtype=torch.float32)
    clean = ncops.class_scatter(x)
    x[3, 2] = math.nan
    ours = ncops.class_scatter(x)
    assert ours[2].isnan().all() and ours[:, 2].isnan().all()
    rest = torch.arange(9) != 2
    torch.testing.assert_close(ours[rest][:, rest], clean[rest][:, rest])
    labels = torch.zeros(40, dtype=torch.int64).index_fill(0, torch.tensor(3), IGNORE)
    assert ncops.class_scatter(x, labels, torch.zeros(1, 9)).isfinite().all()


def test_nothing_counts(backend):
    labels = torch.full((5,), IGNORE)
    assert (ncops.class_scatter(randn(5, 3), labels, randn(2, 3)) == 0).all()
    assert (ncops.class_scatter(randn(5, 3), labels, randn(0, 3)) == 0).all()
    assert ncops.class_scatter(randn(5, 0)).shape == (0, 0)


def test_gradients_of_no_rows(backend):
    center = randn(3, 4).requires_grad_()
    out = ncops.class_scatter(randn(0, 4), torch.empty(0, dtype=torch.int64), center)
    assert (torch.autograd.grad(out.sum(), center)[0] == 0).all()


@pytest.mark.parametrize("mode", ["uncentred", "one_centre", "classes"])
def test_gradients(backend, monkeypatch, mode):
    block_rows(monkeypatch, 8 * 3 * 4)
    x = randn(9, 4).requires_grad_()
    labels = random_labels(9, 3) if mode == "classes" else None
    center = {"uncentred": None, "one_centre": randn(4), "classes": randn(3, 4)}[mode]
    inputs = [x] if center is None else [x, center.requires_grad_()]
    weight = randn(4, 4)  # not symmetric, as a gradient need not be

    def run(function):
        return lambda x, center=None: (function(x, labels, center) * weight).sum()

    assert torch.autograd.gradcheck(run(ncops.class_scatter), inputs, fast_mode=backend == "triton")
    ours = torch.autograd.grad(run(ncops.class_scatter)(*inputs), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(run(naive)(*inputs), inputs))


@dtypes
def test_gradient_accuracy(backend, dtype):
    x, labels, center, weight = randn(65, 33, dtype=dtype), random_labels(65, 4), randn(4, 33), randn(33, 33)
    center = center.to(compute_dtype(dtype))

    def gradient(function, x, center):
        x = x.detach().requires_grad_()
        return torch.autograd.grad((function(x, labels, center) * weight).sum(), x)[0]

    mine = gradient(ncops.class_scatter, x, center)
    theirs, truth = (gradient(naive, *a) for a in (plain(x, center), exact(x, center)))
    assert mine.dtype == dtype
    assert_accurate(mine, theirs.to(dtype), truth, eps=8 if dtype.itemsize > 2 else 1)


def test_second_derivative_is_refused(backend):
    x = randn(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(ncops.class_scatter(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="class_scatter: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_out_of_range(backend, bad):
    with pytest.raises(ValueError, match=rf"labels: .*\[0, 3\).*got {bad} at row 2"):
        ncops.class_scatter(randn(4, 5), torch.tensor([0, IGNORE, bad, 77]), randn(3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": None}, r"center: expected shape \(C, D\) with labels, got None"),
        ({"center": torch.randn(3, 4)}, r"center: expected shape \(C, D\) with labels = \(3, 5\), got \(3, 4\)"),
        ({"labels": None}, r"center: expected shape \(D,\) without labels = \(5,\), got \(3, 5\)"),
        ({"center": torch.randn(3, 5).double()}, "center: expected torch.float32"),
        ({"labels": torch.zeros(4)}, "labels: expected an integer dtype"),
        ({"x": torch.tensor(0.0)}, "x: expected shape"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.randn(4, 5), "labels": torch.zeros(4, dtype=torch.int64), "center": torch.randn(3, 5)}
    with pytest.raises(ValueError, match=message):
        ncops.class_scatter(**(arguments | change))


def test_autocast_leaves_float32_products(backend):
    x = randn(30, 8, dtype=torch.float32)
    expected = ncops.class_scatter(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ncops.class_scatter(x), expected)


def test_deterministic(backend):
    n, d = (3000, 130) if backend != "triton" else (200, 65)
    x, labels, center = randn(n, d, dtype=torch.float32), random_labels(n, 9), randn(9, d, dtype=torch.float32)
    assert_deterministic(lambda: ncops.class_scatter(x, labels, center), backend)


def test_opcheck(backend):
    x, center = randn(9, 5, dtype=torch.bfloat16).requires_grad_(), randn(3, 5, dtype=torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.ncops.class_scatter.default, (x, random_labels(9, 3), center, IGNORE, False))
    torch.library.opcheck(torch.ops.ncops.class_scatter.default, (x.detach(), None, None, IGNORE, False))


def test_compile(backend):
    labels = random_labels(9, 3)
    assert_compiles(lambda x, center: ncops.class_scatter(x, labels, center), randn(9, 5), randn(3, 5))


def test_the_cross_scatter_of_two_sides(backend):
    """The route of the docstring, with rows of two widths about the centres of their classes."""
    x, other, labels = randn(40, 9, shift=0.5), randn(40, 5), random_labels(40, 3)
    centers = randn(3, 9), randn(3, 5)
    both = ncops.class_scatter(torch.cat([x, other], 1), labels, torch.cat(centers, 1))
    keep = labels != IGNORE
    left, right = (side[keep] - center[labels[keep]] for side, center in zip((x, other), centers, strict=True))
    torch.testing.assert_close(both[:9, 9:], left.T @ right)
