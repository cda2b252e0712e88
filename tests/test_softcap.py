"""Capped logits: columns and gradients against float64, the cap's own accuracy, saturation, masks, torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import DERIVED, FLOATS, capped, dense, naive, objective, problem
from testing import (
    IGNORE,
    LAYOUTS,
    assert_accurate,
    assert_compiles,
    assert_deterministic,
    block_rows,
    dtypes,
    exact,
    layouts,
    plain,
    randn,
    random_labels,
)

import ncops

CAP = 1.5
INTEGERS = ("argmax", "second_index", "target_rank", "valid", "correct")
# Register tiles and vectors from below and above; few rows; classes that several tasks share.
SHAPES = [(1, 5, 2), (1, 9, 700), (2, 17, 33), (4, 8, 90), (8, 6, 70), (33, 17, 130), (9, 4, 1), (0, 4, 7)]


def assert_columns(stats, theirs, truth, z):
    size = z.abs().max().item() if z.numel() else 0
    sizes = {"sumsq": size**2 * z.shape[1], "sum": size * z.shape[1], "var": size**2}
    for name in (*FLOATS, *DERIVED):
        bound = max(1, sizes.get(name, size))
        assert_accurate(getattr(stats, name), theirs[name], truth[name], what=name, scale=bound, eps=4)
    near = 16 * torch.finfo(stats.lse.dtype).eps * max(1, size)
    rows = torch.arange(len(z))
    if len(z):
        assert (z[rows, stats.argmax] >= truth["max"] - near).all()
    if len(z) and z.shape[1] > 1:
        assert (z[rows, stats.second_index] >= truth["second"] - near).all()
    t = truth["target_logit"][:, None]
    low, high, rank = (z > t + near).sum(1), (z > t - near).sum(1), stats.target_rank
    assert torch.where(stats.valid, (low <= rank) & (rank <= high), rank == -1).all()


def gradients(inputs, run, rows, classes):
    inputs = [i.detach().requires_grad_() for i in inputs]
    columns = run(*inputs)
    if classes == 1:
        columns = {**columns, "second": torch.zeros_like(columns["lse"])}
    return torch.autograd.grad(objective(columns, rows), inputs)


def assert_gradients(mine, theirs, truth, dtype):
    for a, b, c in zip(mine, theirs, truth, strict=True):
        assert a.dtype == dtype
        assert_accurate(a, b.to(dtype), c, what="gradient", eps=8 if dtype.itemsize > 2 else 1)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_stats_matches_dense_float64(backend, monkeypatch, shape, dtype):
    block_rows(monkeypatch, 8 * 7 * shape[2])
    *inputs, target = problem(*shape, dtype)

    def run(x, weight, bias):
        return ncops.linear_stats(x, weight, bias, target, scale=0.7, softcap=CAP)

    def logits(x, weight, bias):
        return capped(dense(x, weight, bias, 0.7), CAP)

    theirs, truth = (naive(logits(*precision(*inputs)), target) for precision in (plain, exact))
    assert_columns(run(*inputs), theirs, truth, logits(*exact(*inputs)))
    size = shape[0], shape[2]
    mine = gradients(inputs, lambda *i: run(*i)._asdict(), *size)
    theirs, truth = (
        gradients(precision(*inputs), lambda *i: naive(logits(*i), target), *size) for precision in (plain, exact)
    )
    assert_gradients(mine, theirs, truth, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (2, 17), (33, 130), (5, 1000), (0, 4)], ids=str)
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_logit_stats_matches_dense_float64(backend, monkeypatch, shape, dtype, scale):
    block_rows(monkeypatch, 8 * 7 * shape[1])
    logits, target = randn(*shape, dtype=dtype, scale=3), random_labels(*shape)

    def run(logits):
        return ncops.logit_stats(logits, target, scale=scale, softcap=CAP)

    def dense_columns(z):
        return naive(capped(scale * z, CAP), target)

    theirs, truth = (dense_columns(*precision(logits)) for precision in (plain, exact))
    assert_columns(run(logits), theirs, truth, capped(scale * logits.double(), CAP))
    mine = gradients([logits], lambda z: run(z)._asdict(), *shape)
    theirs, truth = (gradients(precision(logits), dense_columns, *shape) for precision in (plain, exact))
    assert_gradients(mine, theirs, truth, dtype)


@pytest.mark.parametrize("name", (*FLOATS, "margin", "max_prob", "sum", "sumsq"))
def test_gradcheck(backend, name):
    x, weight, bias, target = problem(5, 4, 6, torch.float64)
    target[0] = IGNORE
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    options = {"scale": 0.7, "softcap": CAP}
    for run, given in (
        (lambda *i: ncops.linear_stats(*i, target, **options), inputs),
        (lambda z: ncops.logit_stats(z, target, **options), [dense(x, weight, bias, 1).detach().requires_grad_()]),
    ):
        assert torch.autograd.gradcheck(lambda *i, run=run: getattr(run(*i), name), given, fast_mode=True)


@layouts
def test_layouts(backend, layout):
    x, weight, bias, target = problem(33, 17, 65, torch.float32)
    there = LAYOUTS[layout]
    for inputs, run in (
        ((x, weight), lambda x, w: ncops.linear_stats(x, w, bias, target, softcap=CAP)),
        ((randn(33, 900, dtype=torch.float32),), lambda z: ncops.logit_stats(z, target, softcap=CAP)),
    ):
        strided = [there(t).detach().requires_grad_() for t in inputs]
        dense = [there(t).contiguous().detach().requires_grad_() for t in inputs]
        mine, same = run(*strided), run(*dense)
        torch.testing.assert_close(list(mine[:13]), list(same[:13]))
        both = [torch.autograd.grad(s.loss("nll") + s.var.sum(), i) for s, i in ((mine, strided), (same, dense))]
        torch.testing.assert_close(*both)


# ---- the cap itself: with one class the largest logit is that logit, and its gradient the slope of the cap
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cap", [1.0, 30.0, 0.37])
def test_the_cap_and_its_slope_keep_their_digits(backend, dtype, cap):
    u = torch.logspace(-12, 1.3, 3001, dtype=torch.float64)
    z = (cap * torch.cat([u, -u, u.new_zeros(1)])).to(dtype)
    logits = z[:, None].clone().requires_grad_()
    found = ncops.logit_stats(logits, softcap=cap).max
    (slope,) = torch.autograd.grad(found.sum(), logits)
    u, eps = z.double() / cap, torch.finfo(dtype).eps
    truth = cap * u.tanh()
    assert ((found.double() - truth).abs() <= 4 * eps * truth.abs()).all()
    assert (found.abs() <= cap).all()
    truth = u.cosh().square().reciprocal()  # an exponential of -2 |u|, which is rounded
    assert ((slope[:, 0].double() - truth).abs() <= (8 + 4 * u.abs()) * eps * truth).all()


def test_saturated_logits_are_ties_and_move_nothing(backend):
    logits = torch.tensor([[5e3, 4e3, 3e38, 2e3], [-5e3, -3e38, -2e3, -4e3]])
    for classes in (4, 900):
        z = logits.repeat(1, classes // 4).requires_grad_()
        stats = ncops.logit_stats(z, torch.tensor([2, 3]), softcap=30.0)
        assert torch.equal(stats.max, torch.tensor([30.0, -30.0])) and torch.equal(stats.second, stats.max)
        assert stats.argmax.tolist() == [0, 0] and stats.second_index.tolist() == [1, 1]
        assert stats.target_rank.tolist() == [0, 0] and torch.equal(stats.target_logit, stats.max)
        assert torch.equal(stats.mean, stats.max) and torch.equal(stats.var, torch.zeros(2))
        torch.testing.assert_close(stats.nll, torch.full((2,), math.log(classes)))
        (gradient,) = torch.autograd.grad(objective(stats._asdict(), 2), z)
        assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("classes", [37, 900])
def test_ranks_are_those_of_the_logits_before_the_cap(backend, classes):
    """Which they are only if the target's logit, formed alone, has the bits that it has among its rivals."""
    order = torch.stack([torch.randperm(classes) for _ in range(20)])
    logits = torch.linspace(-2, 2, classes).expand(20, -1).gather(1, order)
    target = torch.randint(0, classes, (20,))
    rank = classes - 1 - order.gather(1, target[:, None])[:, 0]
    assert torch.equal(ncops.logit_stats(logits, target, softcap=CAP).target_rank, rank)
    for rows in (1, 3, 20):
        x, weight = torch.eye(20)[:rows], logits.t().contiguous()
        stats = ncops.linear_stats(x, weight, None, target[:rows], softcap=CAP)
        assert torch.equal(stats.target_rank, rank[:rows])


@pytest.mark.parametrize("classes", [40, 900])
def test_masked_classes_stay_masked(backend, classes):
    z, target = randn(6, classes, dtype=torch.float32, scale=3), torch.arange(6) * 2
    masked = torch.arange(classes) % 2 == 1
    there, few = z.masked_fill(masked, -math.inf), z[:, ~masked].clone()
    there.requires_grad_(), few.requires_grad_()
    stats, truth = ncops.logit_stats(there, target, softcap=CAP), ncops.logit_stats(few, target // 2, softcap=CAP)
    for name in ("lse", "gap", "max", "second", "target_logit", "nll", "entropy", "sum_squared_prob"):
        torch.testing.assert_close(getattr(stats, name), getattr(truth, name), msg=name)
    assert torch.equal(stats.argmax, 2 * truth.argmax) and torch.equal(stats.target_rank, truth.target_rank)
    assert (stats.mean == -math.inf).all() and stats.var.isnan().all()
    mine, theirs = (
        torch.autograd.grad((s.nll + s.entropy + s.max).sum(), i) for s, i in ((stats, there), (truth, few))
    )
    assert torch.equal(mine[0][:, masked], torch.zeros(6, classes // 2))
    torch.testing.assert_close(mine[0][:, ~masked], theirs[0])
    # The mean's gradient is the same for every logit, -inf or not; the cap's slope there is zero.
    bias = torch.zeros(classes).masked_fill(masked, -math.inf).requires_grad_()
    stats = ncops.linear_stats(torch.ones(9, 3), torch.ones(classes, 3), bias, softcap=CAP)
    (gradient,) = torch.autograd.grad(stats.mean.sum(), bias)
    assert torch.equal(gradient[masked], torch.zeros(classes // 2)) and (gradient[~masked] > 0).all()


@pytest.mark.parametrize("spoilt", [math.inf, math.nan])
def test_a_spoilt_row_stays_spoilt_and_alone(backend, spoilt):
    for classes in (12, 900):
        logits = randn(5, classes, dtype=torch.float32)
        clean = ncops.logit_stats(logits, softcap=CAP)
        logits[2, 7] = spoilt
        logits.requires_grad_()
        stats = ncops.logit_stats(logits, softcap=CAP)
        (gradient,) = torch.autograd.grad(stats.lse.sum(), logits)
        rows = torch.arange(5) != 2
        for name in FLOATS[:4]:
            mine, theirs = getattr(stats, name), getattr(clean, name)
            assert mine[2].isnan() and torch.equal(mine[rows], theirs[rows])
        assert stats.argmax[2] == -1 and gradient[2].isnan().all() and gradient[rows].isfinite().all()


def test_rows_without_gradient_hold_anything(backend):
    x, weight, bias, target = problem(6, 4, 9, torch.float32)
    target[:] = torch.arange(6)
    x[1], target[1] = math.nan, IGNORE
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    loss = ncops.linear_stats(*inputs, target, softcap=CAP).nll.sum()
    g_x, g_weight, g_bias = torch.autograd.grad(loss, inputs)
    assert (g_x[1] == 0).all() and g_weight.isfinite().all() and g_bias.isfinite().all()


@pytest.mark.parametrize("name", ["max", "second", "target_logit", "margin"])
def test_gradient_of_columns_that_are_one_logit(backend, name):
    x, weight, bias, target = problem(20, 5, 300, torch.float64)
    target = target.clamp(min=0)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    mine = getattr(ncops.linear_stats(*inputs, target, softcap=CAP), name)
    truth = naive(capped(dense(*inputs, 1), CAP), target)[name]
    torch.testing.assert_close(*(torch.autograd.grad(column.sum(), inputs) for column in (mine, truth)))


@pytest.mark.parametrize(
    ("softcap", "error", "message"),
    [
        (0, ValueError, r"softcap: expected None or a positive number \(1e-30 to 1e30\), got 0.0"),
        (-30.0, ValueError, "softcap: expected None or a positive number .* got -30.0"),
        (math.inf, ValueError, "softcap: expected a finite number, got inf"),
        (math.nan, ValueError, "softcap: expected a finite number, got nan"),
        ("30", TypeError, "softcap: expected a number, got '30'"),
        (torch.ones(3), ValueError, r"softcap: expected a number, got shape \(3,\)"),
        (torch.ones((), requires_grad=True), ValueError, "softcap: .* requires a gradient: .* float\\(softcap\\)"),
    ],
)
def test_errors(softcap, error, message):
    x, weight, _, target = problem(3, 4, 5, torch.float32)
    with pytest.raises(error, match=message):
        ncops.linear_stats(x, weight, None, target, softcap=softcap)
    with pytest.raises(error, match=message):
        ncops.logit_stats(x, softcap=softcap)


def test_deterministic(backend):
    size = (40, 20, 70) if backend == "triton" else (300, 20, 900)  # Triton's interpreter is slow
    x, weight, bias, target = problem(*size, torch.float32)
    x.requires_grad_()

    def run():
        stats = ncops.linear_stats(x, weight, bias, target, softcap=CAP)
        return [*stats[:13], *torch.autograd.grad(stats.loss("nll"), x)]

    assert_deterministic(run, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(backend, dtype):
    x, weight, bias, target = problem(9, 5, 7, dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.ncops.linear_stats.default, (*inputs, target, 0.5, CAP, IGNORE, False))
    torch.library.opcheck(torch.ops.ncops.logit_stats.default, (x, target % 5, 0.5, CAP, IGNORE))


def test_compile(backend):
    def run(x, weight, bias, target):
        stats = ncops.linear_stats(x, weight, bias, target, scale=0.7, softcap=CAP)
        again = ncops.logit_stats(x, softcap=CAP)
        return stats.loss("nll"), stats.argmax, stats.var, again.entropy

    assert_compiles(run, *problem(9, 5, 7, torch.float32))
