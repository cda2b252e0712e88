"""Gradients and losses of linear_stats."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from logit_columns import COEFFICIENTS, FLOATS, collapsed, dense, naive, objective, problem
from testing import (
    IGNORE,
    assert_accurate,
    block_rows,
    dtypes,
    exact,
    plain,
    randn,
)

import ncops


@pytest.mark.parametrize("kind", ["nll", "gap", "entropy", "max_prob", "sum_squared_prob"])
def test_collapsed_regime_gradient_keeps_its_digits(backend, kind):
    x, weight, target = collapsed()
    for row in (0, 7):
        bias = torch.zeros(12, requires_grad=True)
        stats = ncops.linear_stats(x[row : row + 1], weight, bias, target[row : row + 1])
        (ours,) = torch.autograd.grad(getattr(stats, kind).sum(), bias)  # the gradient of the logits themselves
        z = (weight.double()[:, row]).requires_grad_()
        rest = (z - z[row]).exp()[torch.arange(12) != row].sum()
        terms = (z - z[row])[torch.arange(12) != row]
        value = {
            "nll": rest.log1p(), "gap": rest.log1p(), "max_prob": 1 / (1 + rest),
            "entropy": rest.log1p() - (terms.exp() * terms).sum() / (1 + rest),
            "sum_squared_prob": (1 + (2 * terms).exp().sum()) / (1 + rest).square(),
        }[kind]  # fmt: skip
        (truth,) = torch.autograd.grad(value, z)
        assert ((ours.double() / truth - 1).abs() < 1e-4).all(), (ours, truth)


@dtypes
@pytest.mark.parametrize("shape", [(1, 5, 2), (33, 17, 65), (17, 65, 130), (9, 4, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_match_dense_float64(backend, monkeypatch, shape, dtype, bias):
    block_rows(monkeypatch, 8 * 7 * shape[2])
    x, weight, bias, target = problem(*shape, dtype, bias=bias)
    if shape[2] == 1:
        monkeypatch.setitem(COEFFICIENTS, "second", 0.0)

    def gradients(inputs, run):
        inputs = [i.detach().requires_grad_() for i in inputs if i is not None]
        columns = run(*inputs)
        if shape[2] == 1:
            columns = {**columns, "second": torch.zeros_like(columns["lse"])}
        return torch.autograd.grad(objective(columns, shape[0]), inputs)

    def ours(x, w, b=None):
        return ncops.linear_stats(x, w, b, target, scale=0.7)._asdict()

    def dense_columns(x, w, b=None):
        return naive(dense(x, w, b, 0.7), target)

    mine = gradients((x, weight, bias), ours)
    theirs = gradients(plain(x, weight, bias), dense_columns)
    truth = gradients(exact(x, weight, bias), dense_columns)
    for name, a, b, c in zip(("x", "weight", "bias"), mine, theirs, truth, strict=False):
        assert a.dtype == dtype
        # A half gradient is rounded once at the end: half of the last place of the largest.
        assert_accurate(a, b.to(dtype), c, what=f"gradient of {name}", eps=8 if dtype.itemsize > 2 else 1)


@pytest.mark.parametrize("name", (*FLOATS, "margin", "max_prob", "sum", "sumsq"))
def test_gradcheck(backend, name):
    x, weight, bias, target = problem(5, 4, 6, torch.float64)
    target[0] = IGNORE
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *i: getattr(ncops.linear_stats(*i, target, scale=0.7), name), inputs, fast_mode=True
    )


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_asked_for(backend, needs):
    inputs = problem(6, 4, 5, torch.float64)
    target = inputs[3]
    full = [t.detach().requires_grad_() for t in inputs[:3]]
    part = [t.detach().requires_grad_(need) for t, need in zip(inputs[:3], needs, strict=True)]
    for group in (full, part):
        ncops.linear_stats(*group, target).loss("nll").backward()
    for a, b, need in zip(full, part, needs, strict=True):
        assert torch.equal(b.grad, a.grad) if need else b.grad is None


def test_second_derivative_is_refused(backend):
    x, weight, _, target = problem(4, 3, 5, torch.float64)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(ncops.linear_stats(x, weight, None, target).loss("nll"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_stats: second derivatives"):
        grad.sum().backward()


def test_losses(backend):
    x, weight, bias, target = problem(20, 5, 7, torch.float64)
    z = dense(x, weight, bias, 1)
    truth = naive(z, target)
    stats = ncops.linear_stats(x, weight, bias, target)
    valid = target != IGNORE
    rows = {
        "nll": truth["nll"],
        "z_loss": truth["lse"].square(),
        "entropy": truth["entropy"],
        "margin": -truth["margin"],
    }
    for kind, values in rows.items():
        torch.testing.assert_close(stats.loss(kind, "none"), values.where(valid, 0))
        torch.testing.assert_close(stats.loss(kind, "sum"), values[valid].sum())
        torch.testing.assert_close(stats.loss(kind), values[valid].mean())
    torch.testing.assert_close(stats.loss("cross_entropy"), F.cross_entropy(z, target))
    with pytest.raises(ValueError, match="kind: expected one of nll, .*got 'focal'"):
        stats.loss("focal")
    with pytest.raises(ValueError, match="reduction: expected one of mean, sum, none, got 'max'"):
        stats.loss("nll", "max")
    bare = ncops.linear_stats(x, weight, bias)
    torch.testing.assert_close(bare.loss("entropy"), truth["entropy"].mean())
    with pytest.raises(ValueError, match="target"):
        bare.loss("nll")
    nothing = ncops.linear_stats(x, weight, bias, torch.full_like(target, IGNORE))
    assert nothing.loss("nll").isnan() and nothing.loss("nll", "sum") == 0


def test_ignored_rows_carry_no_gradient(backend):
    x, weight, bias, target = problem(8, 5, 7, torch.float64)
    target[:4] = IGNORE
    x[0] = math.nan
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    for kind in ("nll", "margin", "z_loss", "entropy"):
        stats = ncops.linear_stats(*inputs, target)
        grads = torch.autograd.grad(stats.loss(kind), inputs)
        assert (grads[0][:4] == 0).all() and (grads[0][4:] != 0).any()
        clean = [t.detach()[4:].requires_grad_() if t is x else t for t in inputs]
        same = torch.autograd.grad(ncops.linear_stats(*clean, target[4:]).loss(kind), clean)
        torch.testing.assert_close([grads[0][4:], *grads[1:]], list(same))
    assert (stats.nll[:4] == 0).all() and (stats.margin[:4] == 0).all() and (stats.target_rank[:4] == -1).all()
    assert stats.lse[1:].isfinite().all()


def test_the_last_of_an_odd_number_of_classes_has_no_other(backend):
    """Kernels that take classes in pairs: it has neither the next row of memory nor an old product beside it."""
    x, weight, _, target = problem(33, 17, 66, torch.bfloat16)
    weight[65] = x[3] = math.nan
    inputs = [t.requires_grad_() for t in (x, weight[:65])]
    stats = ncops.linear_stats(*inputs, None, target.clamp(max=64).index_fill(0, torch.tensor([3]), IGNORE))
    grads = torch.autograd.grad(stats.loss("entropy"), inputs)
    assert all(g.isfinite().all() for g in grads) and (grads[0][3] == 0).all()


def test_autocast_casts_and_the_gradient_returns_to_float32(backend):
    x, weight, bias, target = problem(9, 5, 7, torch.float32)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        stats = ncops.linear_stats(*inputs, target)
        loss = stats.loss("nll")
    half = ncops.linear_stats(*(t.detach().bfloat16() for t in inputs), target)
    assert torch.equal(stats.lse, half.lse) and stats.lse.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in inputs)


def test_autocast_leaves_float64_alone(backend):
    x, weight, bias, target = problem(5, 4, 7, torch.float64)
    plain = ncops.linear_stats(x, weight, bias, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ncops.linear_stats(x, weight, bias, target)
        with pytest.raises(ValueError, match="weight: expected the dtype of x"):
            ncops.linear_stats(x, weight.float())
    assert inside.nll.dtype == torch.float64 and torch.equal(inside.nll, plain.nll)


def _bits(grads):
    return [g.contiguous().view(torch.int32) for g in grads]


def _gradients(inputs, target, loss, scale=1.0):
    inputs = [t.detach().requires_grad_() for t in inputs]
    return torch.autograd.grad(loss(ncops.linear_stats(*inputs, target, scale=scale)), inputs)


def test_ignored_panels_change_no_bit(backend):
    """Whole panels of ignored rows between the others: nothing of them reaches the sums."""
    n, start, stop = (60, 16, 48) if backend == "triton" else (200, 32, 160)  # Triton's interpreter is slow
    x, weight, bias, target = problem(n, 37, n + 100, torch.float32)
    target[:] = torch.arange(n)
    ignored = target.clone()
    ignored[start:stop] = IGNORE
    ours = _gradients((x, weight, bias), ignored, lambda s: s.nll.sum())
    rest = torch.cat([torch.arange(start), torch.arange(stop, n)])
    for poison in (0.0, math.nan):  # what ignored rows hold is of no account
        other = x.clone()
        other[start:stop] = poison
        again = _gradients((other, weight, bias), ignored, lambda s: s.nll.sum())
        assert all(torch.equal(a, b) for a, b in zip(_bits(ours), _bits(again), strict=True))

    def dense_gradients(inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(naive(dense(*inputs, 1.0), target[rest])["nll"].sum(), inputs)

    theirs, truth = dense_gradients((x[rest], weight, bias)), dense_gradients(exact(x[rest], weight, bias))
    for name, a, b, c in zip(("x", "weight", "bias"), (ours[0][rest], *ours[1:]), theirs, truth, strict=True):
        assert_accurate(a, b, c, what=f"gradient of {name}")
    assert (ours[0][start:stop] == 0).all() and (ours[0][rest] != 0).any(1).all()


@dtypes
def test_only_a_few_logits_have_a_gradient(backend, dtype):
    """A margin loss: three columns per row, most tiles of classes hold none of them."""
    x, weight, bias, target = problem(*((44, 9, 150) if backend == "triton" else (70, 19, 900)), dtype)
    target[:40] = torch.arange(40) % 3  # all in the first tile

    def loss(columns):
        return (columns["max"] * 0.5 - columns["target_logit"] + columns["second"] * 2).sum()

    mine = _gradients((x, weight, bias), target, lambda s: loss(s._asdict()), 0.7)

    def dense_gradients(inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(loss(naive(dense(*inputs, 0.7), target)), inputs)

    theirs, truth = dense_gradients(plain(x, weight, bias)), dense_gradients(exact(x, weight, bias))
    for name, a, b, c in zip(("x", "weight", "bias"), mine, theirs, truth, strict=True):
        assert_accurate(a, b.to(dtype), c, what=f"gradient of {name}", eps=8 if dtype.itemsize > 2 else 1)
        zero = c == 0
        assert (a[zero] == 0).all() and (name == "x" or zero.any())


def test_most_tiles_vanish(backend):
    """Logits so far apart that float32 knows one class per row; the rest is exactly zero, not small."""
    classes, dim = 700, 16
    weight = randn(classes, dim, dtype=torch.float32)
    weight = F.normalize(weight)
    target = torch.arange(64) * 10
    x = weight[target] + 0.01 * randn(64, dim, dtype=torch.float32)
    inputs, scale = (x, weight, torch.zeros(classes)), 900.0
    mine = _gradients(inputs, target, lambda s: s.loss("z_loss") + s.loss("nll"), scale)

    def dense_gradients(inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        z = dense(*inputs, scale)
        loss = z.logsumexp(1).square().mean() + F.cross_entropy(z, target)
        return torch.autograd.grad(loss, inputs)

    theirs, truth = dense_gradients(inputs), dense_gradients(exact(*inputs))
    for name, a, b, c in zip(("x", "weight", "bias"), mine, theirs, truth, strict=True):
        assert_accurate(a, b, c, what=f"gradient of {name}")
    never = torch.ones(classes, dtype=torch.bool)
    never[(truth[2].abs() > 1e-38)] = False
    assert never.sum() > classes // 2 and (mine[1][never] == 0).all() and (mine[2][never] == 0).all()


@pytest.mark.parametrize("target", [0, 95, 96, 192, 299])
def test_one_logit_anywhere(backend, target):
    """The gradient of one logit alone, of which a tile of classes may be all there is: also its first, and its last."""
    x, weight = randn(2, 3, dtype=torch.float32), randn(300, 3, dtype=torch.float32).requires_grad_()
    stats = ncops.linear_stats(x, weight, target=torch.full((2,), target))
    (ours,) = torch.autograd.grad(stats.target_logit.sum(), weight)
    expected = torch.zeros(300, 3).index_add_(0, torch.full((2,), target), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("row", [0, 7, 19])
def test_one_row_has_a_gradient_of_squares(backend, row):
    x, weight = randn(20, 3, dtype=torch.float32), randn(30, 3, dtype=torch.float32).requires_grad_()
    (ours,) = torch.autograd.grad(ncops.linear_stats(x, weight).sum_squared_prob[row], weight)
    z = (x.double() @ weight.double().T).softmax(1)
    (expected,) = torch.autograd.grad(z[row].square().sum(), weight)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
