"""projected_sqnorms against dense float64 arithmetic."""

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
    "projected_sqnorms": {"BLOCK_N": 32, "BLOCK_J": 32, "BLOCK_D": 32},
    "projected_sqnorms.basis": {"BLOCK_R": 32, "BLOCK_D": 32, "BLOCK_N": 32, "FOLD": 64},
    "row_products": {"BLOCK_N": 32, "BLOCK_J": 32, "BLOCK_D": 32},
    "class_moments": {"CHUNK": 32, "BLOCK_D": 128},
    "class_moments.merge": {"BLOCK_D": 128},
}
wide_blocks = interpreter_blocks(BLOCKS)
# (N, D, r, C)
SHAPES = [
    (1, 1, 1, 1),
    (2, 17, 3, 2),
    (65, 33, 130, 4),
    (130, 65, 17, 7),
    (33, 130, 65, 40),
    (9, 5, 0, 2),
    (0, 5, 3, 2),
]


def naive(x, basis, labels=None, center=None):
    if labels is not None:
        keep = labels != IGNORE
        center = center[labels.clamp(min=0)] if center.shape[0] else 0
    r = x if center is None else x - center
    out = (r @ basis.T).square().sum(1)
    return out if labels is None else out.where(keep, 0)


@dtypes
@pytest.mark.parametrize("mode", ["uncentred", "one_centre", "classes"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_dense_float64(backend, monkeypatch, shape, dtype, mode):
    n, d, r, c = shape
    block_rows(monkeypatch, 8 * 37 * max(d, r))
    compute = compute_dtype(dtype)
    x, basis = randn(n, d, dtype=dtype, shift=0.5), randn(r, d, dtype=compute)
    center = {"uncentred": None, "one_centre": randn(d), "classes": randn(c, d)}[mode]
    center = None if center is None else center.to(compute)
    labels = random_labels(n, c) if mode == "classes" else None
    ours = ncops.projected_sqnorms(x, basis, labels, center)
    assert ours.dtype == compute
    theirs, truth = (naive(a, b, labels, e) for a, b, e in (plain(x, basis, center), exact(x, basis, center)))
    assert_accurate(ours, theirs, truth)


@layouts
def test_layouts(backend, layout):
    change = LAYOUTS[layout]
    x, basis, center = (change(randn(n, 33, dtype=torch.float32)) for n in (65, 17, 6))
    labels = random_labels(65, 6)
    ours = ncops.projected_sqnorms(x, basis, labels.repeat_interleave(2)[::2], center)
    truth = naive(x.double(), basis.double(), labels, center.double())
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-4)


def test_leading_dimensions_and_half_basis(backend):
    x, basis, labels, center = randn(2, 3, 5), randn(4, 5), random_labels(6, 3), randn(3, 5)
    ours = ncops.projected_sqnorms(x, basis, labels.view(2, 3), center)
    assert ours.shape == (2, 3)
    torch.testing.assert_close(ours.flatten(), naive(x.view(6, 5), basis, labels, center))
    assert ncops.projected_sqnorms(x[0, 0], basis).shape == ()
    half, half_basis = x.bfloat16(), basis.bfloat16()
    assert torch.equal(ncops.projected_sqnorms(half, half_basis), ncops.projected_sqnorms(half, half_basis.float()))


def test_by_hand(backend):
    x = torch.tensor([[3.0, 1.0], [1.0, 1.0], [5.0, 5.0]])
    basis = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    center = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # Deviations (2, 1), (0, 0): projections (3, 2), (0, 0).
    assert ncops.projected_sqnorms(x, basis, torch.tensor([0, 1, IGNORE]), center).tolist() == [13, 0, 0]
    assert ncops.projected_sqnorms(x, basis).tolist() == [20, 8, 200]


def test_collapsed_regime(backend):
    means = torch.nn.functional.normalize(randn(8, 24), dim=1) * 100
    labels = torch.arange(8).repeat(20)
    x, basis, center = (means[labels] + 1e-3 * randn(160, 24)).float(), randn(7, 24).float(), means.float()
    truth = naive(x.double(), basis.double(), labels, center.double())
    ours = ncops.projected_sqnorms(x, basis, labels, center)
    assert ((ours.double() / truth - 1).abs() < 1e-4).all()


def test_nan_touches_its_row_alone(backend):
    x, basis = randn(40, 9, dtype=torch.float32), randn(5, 9, dtype=torch.float32)
    clean = ncops.projected_sqnorms(x, basis)
    x[3, 2] = math.nan
    ours = ncops.projected_sqnorms(x, basis)
    rest = torch.arange(40) != 3
    assert ours[3].isnan() and torch.equal(ours[rest], clean[rest])
    labels = torch.zeros(40, dtype=torch.int64).index_fill(0, torch.tensor(3), IGNORE)
    assert ncops.projected_sqnorms(x, basis, labels, torch.zeros(1, 9))[3] == 0


@pytest.mark.parametrize("mode", ["uncentred", "one_centre", "classes"])
def test_gradients(backend, monkeypatch, mode):
    block_rows(monkeypatch, 8 * 3 * 6)
    labels = random_labels(9, 3) if mode == "classes" else None
    center = {"uncentred": None, "one_centre": randn(4), "classes": randn(3, 4)}[mode]
    inputs = [t.requires_grad_() for t in (randn(9, 4), randn(6, 4), center) if t is not None]
    weight = randn(9)

    def run(function):
        return lambda x, basis, center=None: (function(x, basis, labels, center) * weight).sum()

    assert torch.autograd.gradcheck(run(ncops.projected_sqnorms), inputs, fast_mode=backend == "triton")
    ours = torch.autograd.grad(run(ncops.projected_sqnorms)(*inputs), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(run(naive)(*inputs), inputs))


def test_gradients_of_no_rows(backend):
    basis, center = randn(2, 4).requires_grad_(), randn(3, 4).requires_grad_()
    out = ncops.projected_sqnorms(randn(0, 4), basis, torch.empty(0, dtype=torch.int64), center)
    for gradient in torch.autograd.grad(out.sum(), (basis, center)):
        assert (gradient == 0).all()


@dtypes
def test_gradient_accuracy(backend, dtype):
    x, basis, weight = randn(65, 33, dtype=dtype), randn(17, 33, dtype=compute_dtype(dtype)), randn(65)

    def gradients(function, x, basis):
        inputs = [x.detach().requires_grad_(), basis.detach().requires_grad_()]
        return torch.autograd.grad((function(*inputs) * weight).sum(), inputs)

    mine = gradients(ncops.projected_sqnorms, x, basis)
    for a, b, c in zip(mine, gradients(naive, *plain(x, basis)), gradients(naive, *exact(x, basis)), strict=True):
        assert_accurate(a, b.to(a.dtype), c, eps=8 if a.dtype.itemsize > 2 else 1)


def test_nan_row_without_gradient_leaves_basis_and_centre(backend):
    x, basis, center = randn(5, 4), randn(3, 4).requires_grad_(), randn(4).requires_grad_()
    x[2, 1] = math.nan
    out = ncops.projected_sqnorms(x, basis, None, center)
    for grad in torch.autograd.grad(out[torch.arange(5) != 2].sum(), (basis, center)):
        assert grad.isfinite().all() and (grad != 0).any()


def test_second_derivative_is_refused(backend):
    x = randn(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(ncops.projected_sqnorms(x, randn(2, 4)).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="projected_sqnorms: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_out_of_range(backend, bad):
    with pytest.raises(ValueError, match=rf"labels: .*\[0, 3\).*got {bad} at row 2"):
        ncops.projected_sqnorms(randn(4, 5), randn(2, 5), torch.tensor([0, IGNORE, bad, 77]), randn(3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": torch.randn(2, 4)}, r"basis: expected shape \(r, D\) = \(2, 5\), got \(2, 4\)"),
        ({"basis": torch.randn(2, 5).double()}, "basis: expected torch.float32"),
        ({"basis": torch.randn(5)}, "basis: expected 2 dimensions"),
        ({"center": None}, "center: expected shape"),
    ],
)
def test_errors(change, message):
    arguments = {
        "x": torch.randn(4, 5), "basis": torch.randn(2, 5), "labels": torch.zeros(4, dtype=torch.int64),
        "center": torch.randn(3, 5),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ncops.projected_sqnorms(**(arguments | change))


def test_deterministic(backend):
    rows = 2000 if backend != "triton" else 100
    x, basis, center = (randn(n, 130, dtype=torch.float32) for n in (rows, 65, 9))
    labels = random_labels(rows, 9)
    assert_deterministic(lambda: ncops.projected_sqnorms(x, basis, labels, center), backend)


def test_opcheck(backend):
    x = randn(9, 5, dtype=torch.bfloat16).requires_grad_()
    basis, center = (randn(n, 5, dtype=torch.float32).requires_grad_() for n in (4, 3))
    op = torch.ops.ncops.projected_sqnorms.default
    torch.library.opcheck(op, (x, basis, random_labels(9, 3), center, IGNORE, False))
    torch.library.opcheck(op, (x.detach(), basis.detach(), None, None, IGNORE, False))


def test_compile(backend):
    labels = random_labels(9, 3)
    run = lambda x, basis, center: ncops.projected_sqnorms(x, basis, labels, center)  # noqa: E731
    assert_compiles(run, randn(9, 5), randn(4, 5), randn(3, 5))
