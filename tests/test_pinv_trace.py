"""pinv_trace, solve_trace and between_svd against dense float64 pseudo-inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testing import assert_compiles, randn, random_labels

import ncops
from ncops.ops import between_svd

SHAPES = [(2, 1), (2, 5), (5, 2), (7, 7), (4, 17), (33, 8), (130, 65)]  # (K, D)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def problem(k, d):
    x = randn(2 * d + 3, d)
    return x.T @ x / x.shape[0], randn(k, d, shift=1.0)


def between(means, weights=None, global_mean=None):
    weights = torch.ones(means.shape[0], dtype=torch.float64) if weights is None else weights
    weights = weights / weights.sum()
    centred = means - (weights @ means if global_mean is None else global_mean)
    return centred.T @ (weights[:, None] * centred)


def pinv(a):
    return torch.linalg.pinv(a, rtol=1e-10, hermitian=True)


@shapes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("given_mean", [False, True])
def test_matches_dense_pseudo_inverse(shape, weighted, given_mean):
    k, d = shape
    within, means = problem(k, d)
    options = {"weights": torch.rand(k).double() + 0.1 if weighted else None}
    options["global_mean"] = randn(d) if given_mean else None
    b = between(means, **options)
    trace = ncops.pinv_trace(within, means, **options)
    assert trace.dtype == torch.float64 and trace.shape == ()
    torch.testing.assert_close(trace, (within @ pinv(b)).trace() / k, rtol=1e-9, atol=0)
    whole = ncops.pinv_trace(within, means, divide=False, **options)
    torch.testing.assert_close(whole, trace * k)
    total = within + b
    torch.testing.assert_close(ncops.solve_trace(total, means, **options), (pinv(total) @ b).trace(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(shape, weighted):
    k, d = shape
    within, means = problem(k, d)
    inputs = [within, means] + ([torch.rand(k).double() + 0.1] if weighted else [])
    inputs = [t.requires_grad_() for t in inputs]

    def of_within(w, m, weights=None):
        return ncops.pinv_trace(w, m, weights=weights)

    def of_total(w, m, weights=None):
        return ncops.solve_trace(w + w.T, m, weights=weights)

    assert torch.autograd.gradcheck(of_within, inputs) and torch.autograd.gradcheck(of_total, inputs)


def test_gradient_of_a_given_mean_and_of_rank_deficient_total():
    # Means in a plane, total of rank 3: every change keeps the ranks, so finite differences are defined along it.
    basis = torch.linalg.qr(randn(6, 3)).Q.T
    coordinates, mean = randn(4, 3).requires_grad_(), randn(3).requires_grad_()
    factor = randn(5, 3).requires_grad_()

    def of_within(c, m, f):
        return ncops.pinv_trace(torch.eye(6).double(), c @ basis, global_mean=m @ basis)

    def of_total(c, m, f):
        root = f @ basis
        return ncops.solve_trace(root.T @ root, c @ basis, global_mean=m @ basis)

    inputs = (coordinates, mean, factor)
    assert torch.autograd.gradcheck(of_within, inputs) and torch.autograd.gradcheck(of_total, inputs)


def simplex(k, d):
    """An exact simplex ETF of K unit rows in D dimensions."""
    etf = torch.eye(k, dtype=torch.float64) - 1 / k
    return (etf / etf.norm(dim=1, keepdim=True)) @ torch.eye(k, d, dtype=torch.float64)


def test_by_hand_at_an_exact_etf():
    # Sigma_B of unit ETF rows is I/(K-1) on its range, so the trace is (K-1) times that of Sigma_W there.
    k, d = 5, 8
    means = simplex(k, d).requires_grad_()
    within = torch.eye(d, dtype=torch.float64).requires_grad_()
    trace = ncops.pinv_trace(within, means)
    assert trace.item() == pytest.approx((k - 1) ** 2 / k, rel=1e-12)
    g_within, g_means = torch.autograd.grad(trace, (within, means))
    # Scaling the means by 1 + t divides the trace by (1 + t)^2.
    assert (g_means * means).sum().item() == pytest.approx(-2 * trace.item(), rel=1e-10)
    assert (g_within * within).sum().item() == pytest.approx(trace.item(), rel=1e-10)
    assert g_means.isfinite().all()
    # Sigma_T = I makes tr(Sigma_T^+ Sigma_B) the trace of Sigma_B: 1 for unit rows.
    assert ncops.solve_trace(torch.eye(d, dtype=torch.float64), means).item() == pytest.approx(1, rel=1e-12)


def test_rounding_is_not_a_dimension():
    # Means in a plane, rounded to float32 far from the origin: the rounding must not enter the inverse.
    plane = randn(30, 2) @ randn(2, 20) + 100
    within = torch.eye(20, dtype=torch.float64)
    exact = ncops.pinv_trace(within, plane, rtol=1e-10)
    rounded = plane.float()
    torch.testing.assert_close(ncops.pinv_trace(within.float(), rounded), exact, rtol=1e-4, atol=0)
    # One narrow argument makes the rule that of float32, whatever the others are.
    for square, point in ((within.float(), None), (within, plane.mean(0).float())):
        mixed = ncops.pinv_trace(square, rounded.double(), global_mean=point)
        torch.testing.assert_close(mixed, exact, rtol=1e-4, atol=0)
    assert between_svd(rounded)[0].shape == (2,)
    assert ncops.pinv_trace(within, rounded.double()) > 1e6 * exact  # float64 inputs are taken at their word
    assert between_svd(rounded.double(), rtol=1e-4)[0].shape == (2,)


@pytest.mark.parametrize("shape", [(8, 2000), (2000, 8), (50, 50)], ids=str)
def test_errors_of_every_entry_are_no_direction(shape):
    """Equal rows, each entry off by up to four roundings of float32: a thin matrix has them add up."""
    ulp = torch.finfo(torch.float32).eps
    means = ((1 + torch.rand(shape[1])).double() + ulp * torch.randint(-4, 5, shape).double()).float()
    assert between_svd(means)[0].numel() == 0
    assert ncops.pinv_trace(torch.eye(shape[1]), means) == 0


def test_wide_spectrum_keeps_its_small_directions():
    scales = torch.logspace(0, -6, 10, dtype=torch.float64)
    means = torch.linalg.qr(randn(40, 10)).Q * scales
    within = torch.eye(10, dtype=torch.float64)
    truth = (1 / torch.linalg.svdvals(means - means.mean(0)).square()).sum()
    torch.testing.assert_close(ncops.pinv_trace(within, means), truth, rtol=1e-6, atol=0)


def test_rtol_is_relative_to_the_largest():
    means = torch.diag(torch.tensor([4.0, 2.0, 1.0]).double())
    zero, within = torch.zeros(3).double(), torch.eye(3).double()
    for rtol, kept in ((0.1, (4, 2, 1)), (0.3, (4, 2)), (0.5, (4,)), (1.0, ())):
        expected = sum(3 / s**2 for s in kept) / 3
        assert ncops.pinv_trace(within, means, global_mean=zero, rtol=rtol).item() == pytest.approx(expected)
    total = torch.diag(torch.tensor([4.0, 2.0, 1.0]).double())
    assert ncops.solve_trace(total, means, global_mean=zero, rtol=0.3).item() == pytest.approx((16 / 4 + 4 / 2) / 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_means_about_their_own_mean_have_rank_k_minus_1(weighted):
    """The last direction is what centring has rounded, and rtol = 0 asks for every other one."""
    k, d = 5, 8
    within, means = problem(k, d)
    weights = torch.tensor([1.0, 2, 3, 4, 5]).double() if weighted else None
    expected = (within @ pinv(between(means, weights))).trace() / k
    for rtol in (0, 1e-30):
        assert between_svd(means, weights=weights, rtol=rtol)[0].shape == (k - 1,)
        torch.testing.assert_close(ncops.pinv_trace(within, means, weights=weights, rtol=rtol), expected)
    elsewhere = randn(d)  # about a point that is not their mean they have one more
    assert between_svd(means, global_mean=elsewhere, weights=weights, rtol=0)[0].shape == (k,)
    expected = (within @ pinv(between(means, weights, elsewhere))).trace() / k
    trace = ncops.pinv_trace(within, means, global_mean=elsewhere, weights=weights, rtol=0)
    torch.testing.assert_close(trace, expected)


def test_streaming_form_agrees():
    labels = random_labels(400, 6, ignored=0)
    x = randn(6, 9)[labels] + 0.1 * randn(400, 9)
    means = torch.stack([x[labels == c].mean(0) for c in range(6)])
    r = x - means[labels]
    s, basis = between_svd(means)
    assert s.shape == (5,) and basis.shape == (5, 9) and (s[:-1] >= s[1:]).all()
    torch.testing.assert_close(basis.T @ (s.square()[:, None] * basis), between(means))
    streamed = ncops.projected_sqnorms(x, basis / s[:, None], labels, means).sum() / (6 * 400)
    torch.testing.assert_close(streamed, ncops.pinv_trace(r.T @ r / 400, means))


def test_few_classes_and_nan():
    eye = torch.eye(3).double()
    assert ncops.pinv_trace(eye, randn(1, 3)) == 0 and ncops.solve_trace(eye, randn(1, 3)) == 0
    assert ncops.pinv_trace(eye, randn(0, 3)).isnan()
    assert ncops.pinv_trace(eye, torch.ones(4, 3)) == 0
    means = randn(4, 3)
    assert ncops.pinv_trace(eye * math.nan, means).isnan() and ncops.solve_trace(eye * math.nan, means).isnan()
    means[1, 1] = math.inf
    assert ncops.pinv_trace(eye, means).isnan() and ncops.solve_trace(eye, means).isnan()


def test_a_class_of_weight_zero_is_not_there():
    within, means = problem(5, 7)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0]).double()
    inputs = [means.requires_grad_(), weights.requires_grad_()]
    trace = ncops.pinv_trace(within, means, weights=weights, divide=False)
    kept = weights > 0
    alone = ncops.pinv_trace(within, means[kept], weights=weights[kept], divide=False)
    torch.testing.assert_close(trace, alone)
    g_means, g_weights = torch.autograd.grad(trace, inputs)
    assert (g_means[2] == 0).all() and g_weights.isfinite().all()


@pytest.mark.parametrize("function", [ncops.pinv_trace, ncops.solve_trace])
def test_second_derivative_is_refused(function):
    square, means = problem(4, 6)
    means.requires_grad_()
    (grad,) = torch.autograd.grad(function(square, means), means, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{function.__name__}: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"within": torch.eye(4)}, r"within: expected shape \(D, D\) = \(3, 3\), got \(4, 4\)"),
        ({"means": torch.randn(3)}, "means: expected 2 dimensions"),
        ({"weights": torch.ones(3)}, r"weights: expected shape \(K,\) = \(5,\), got \(3,\)"),
        ({"global_mean": torch.ones(5)}, r"global_mean: expected shape \(D,\) = \(3,\), got \(5,\)"),
    ],
)
def test_errors(change, message):
    arguments = {"within": torch.eye(3), "means": torch.randn(5, 3)} | change
    with pytest.raises(ValueError, match=message):
        ncops.pinv_trace(arguments.pop("within"), arguments.pop("means"), **arguments)
    if "within" not in change:
        with pytest.raises(ValueError, match=message):
            arguments = {"means": torch.randn(5, 3)} | change
            ncops.solve_trace(torch.eye(3), arguments.pop("means"), **arguments)


@pytest.mark.parametrize("function", [ncops.pinv_trace, ncops.solve_trace])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1, 2, 3j]), "weights: expected real numbers, got torch.complex64"),
        (torch.tensor([1, math.nan, 2]), "weights: expected finite numbers of 0 or more, got nan at class 1"),
        (torch.tensor([1, 2, math.inf]), "weights: expected finite numbers of 0 or more, got inf at class 2"),
        (torch.tensor([-1, 3, 4]), "weights: expected finite numbers of 0 or more, got -1.0 at class 0"),
    ],
)
def test_weights_are_numbers_of_0_or_more(function, weights, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(torch.eye(4), torch.randn(3, 4), weights=weights)


@pytest.mark.parametrize("rtol", (1j, math.nan, math.inf, -1e-9, "0.1", torch.ones(2), np.array([0.1, 0.2])), ids=repr)
def test_rtol_is_a_number_of_0_or_more(rtol):
    square, means = torch.eye(4), torch.randn(3, 4)
    for function in (ncops.pinv_trace, ncops.solve_trace):
        with pytest.raises(ValueError, match="^rtol: expected a finite number of 0 or more, or None, got "):
            function(square, means, rtol=rtol)
    with pytest.raises(ValueError, match="^rtol: "):
        between_svd(means, rtol=rtol)
    for good in (0, np.float32(0.25), torch.tensor(0.25)):
        assert ncops.pinv_trace(square, means, rtol=good).isfinite()


def test_none_is_named():
    for function, square in ((ncops.pinv_trace, "within"), (ncops.solve_trace, "total")):
        for name, arguments in (("means", (torch.eye(3), None)), (square, (None, torch.eye(3)))):
            with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got NoneType"):
                function(*arguments)


@pytest.mark.parametrize("size", (2e19, 1e30))
def test_rows_whose_squares_are_no_float32(size):
    means, within = size * torch.randn(6, 4), size * torch.eye(4)
    trace = ncops.pinv_trace(within, means)
    torch.testing.assert_close(trace, ncops.pinv_trace(within.double(), means.double()), rtol=1e-12, atol=0)
    unit = ncops.pinv_trace(within.double() / size, means.double() / size)
    torch.testing.assert_close(trace * size, unit, rtol=1e-6, atol=0)
    assert between_svd(means)[0].shape == (4,)


def test_autocast_stays_in_float64():
    within, means = problem(5, 7)
    expected = ncops.pinv_trace(within.float(), means.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ncops.pinv_trace(within.float(), means.float()), expected)


@pytest.mark.parametrize("function", [ncops.pinv_trace, ncops.solve_trace])
def test_compile(function):
    assert_compiles(function, *problem(5, 7))
