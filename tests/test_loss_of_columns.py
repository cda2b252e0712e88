"""``LinearStats.loss`` with label smoothing and class weights, and ``logprob``, against F.cross_entropy in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from logit_columns import dense, problem
from testing import IGNORE, assert_compiles

import ncops

V = 7
OPTIONS = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "all of it": {"label_smoothing": 1.0},
    "weight": {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.1, 1.5], dtype=torch.float64)},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def assert_as_cross_entropy(inputs, target, options, reduction):
    def value_and_gradients(run):
        own = [t.detach().requires_grad_() for t in inputs]
        value = run(*own)
        pull = value.detach() * 0 + torch.linspace(1, 2, value.numel(), dtype=torch.float64).view(value.shape)
        pull = pull.where(value.isfinite(), 1)
        return value.detach(), *torch.autograd.grad(value, own, pull)

    ours = value_and_gradients(lambda *t: ncops.linear_stats(*t, target).loss("nll", reduction, **options))
    theirs = value_and_gradients(
        lambda x, w, b: F.cross_entropy(dense(x, w, b, 1), target, reduction=reduction, **options)
    )
    torch.testing.assert_close(ours, theirs)
    return ours


@options
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equal_to_cross_entropy(backend, options, reduction):
    *inputs, target = problem(40, 5, V, torch.float64)
    assert (target == IGNORE).any() and (target == 2).any()
    assert_as_cross_entropy(inputs, target, options, reduction)


@options
def test_a_masked_class_is_infinitely_far_and_pulls_as_in_cross_entropy(backend, options):
    *inputs, target = problem(20, 5, V, torch.float64)
    inputs[2][4] = -math.inf
    value, *gradients = assert_as_cross_entropy(inputs, target.where(target != 4, 3), options, "mean")
    assert value == math.inf if "label_smoothing" in options else value.isfinite()
    assert all(g.isfinite().all() for g in gradients)


def test_rows_that_count_nowhere_are_zero_whatever_their_nll(backend):
    x, weight, bias, _ = problem(3, 5, V, torch.float64)
    bias[4] = -math.inf
    x.requires_grad_()
    stats = ncops.linear_stats(x, weight, bias, torch.tensor([4, 1, 1]))
    assert stats.nll[0] == math.inf
    factors = torch.ones(V).index_fill(0, torch.tensor(4), 0)
    losses = stats.loss("nll", "none", weight=factors)
    assert losses[0] == 0 and torch.equal(losses[1:], stats.nll[1:])
    torch.testing.assert_close(stats.loss("nll", weight=factors), stats.nll[1:].mean())
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert (gradient[0] == 0).all() and gradient.isfinite().all()
    assert ncops.linear_stats(x, weight, bias, torch.tensor([4, 4, 4])).loss("nll", weight=factors).isnan()


def test_leading_dimensions_and_logits(backend):
    x, weight, bias, target = problem(24, 5, V, torch.float64)
    z, factors = dense(x, weight, bias, 1), OPTIONS["weight"]["weight"]
    ours = ncops.logit_stats(z.view(2, 3, 4, V), target.view(2, 3, 4)).loss("nll", "none", weight=factors)
    torch.testing.assert_close(ours.flatten(), F.cross_entropy(z, target, factors, reduction="none"))


def test_logprob(backend):
    x, weight, bias, target = problem(20, 5, V, torch.float64)
    stats = ncops.linear_stats(x, weight, bias, target)
    truth = dense(x, weight, bias, 1).log_softmax(1).gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    torch.testing.assert_close(stats.logprob, truth.where(target != IGNORE, 0))
    with pytest.raises(ValueError, match="logprob: expected statistics computed with a target"):
        ncops.linear_stats(x, weight, bias).logprob  # noqa: B018


def test_refusals():
    x, weight, bias, target = problem(9, 5, V, torch.float32)
    stats, factors = ncops.linear_stats(x, weight, bias, target), torch.ones(V)
    for kind in ("z_loss", "entropy", "margin"):
        with pytest.raises(ValueError, match=f"label_smoothing: expected 0 for loss\\('{kind}'\\), got 0.1"):
            stats.loss(kind, label_smoothing=0.1)
        with pytest.raises(ValueError, match=f"weight: expected None for loss\\('{kind}'\\), got .* shape \\(7,\\)"):
            stats.loss(kind, weight=factors)
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"label_smoothing: expected a number in \\[0, 1\\], got {value}"):
            stats.loss("nll", label_smoothing=value)
    with pytest.raises(ValueError, match="weight: expected None with label_smoothing=0.1, .*ncops.linear_loss"):
        stats.loss("nll", label_smoothing=0.1, weight=factors)
    with pytest.raises(ValueError, match=r"weight: expected shape \(V,\) = \(7,\), got \(6,\)"):
        stats.loss("nll", weight=factors[:6])
    with pytest.raises(ValueError, match="weight: expected a tensor that requires no gradient"):
        stats.loss("nll", weight=factors.requires_grad_())
    with pytest.raises(ValueError, match="target"):
        ncops.linear_stats(x, weight, bias).loss("nll", label_smoothing=0.1)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler):
    def run(x, weight, bias, target):
        stats = ncops.linear_stats(x, weight, bias, target)
        factors = torch.linspace(0, 2, V)
        return stats.loss("nll", label_smoothing=0.1), stats.loss("nll", "sum", weight=factors), stats.logprob

    assert_compiles(run, *problem(9, 5, V, torch.float32), backend=compiler)
