"""Sums over thousands of features: no product may lose more digits than torch's own; one long float32 chain would."""

from __future__ import annotations

import pytest
import torch

import ncops


def worst(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).abs().max() / truth.abs().max())


@pytest.fixture(params=[4096, 16384])
def matrices(request):
    torch.manual_seed(0)
    # Positive entries: every rounding of a running sum counts, none average out.
    return torch.rand(40, request.param), torch.rand(97, request.param)


@pytest.mark.parametrize("rows", [3, 40])
def test_linear_stats(matrices, rows):
    x, weight = matrices[0][:rows], matrices[1]
    truth = x.double() @ weight.double().t()
    stats, plain = ncops.linear_stats(x, weight), x @ weight.t()
    assert worst(stats.max, truth.amax(1)) <= 2 * worst(plain.amax(1), truth.amax(1)) + 4e-7
    assert worst(stats.mean, truth.mean(1)) <= 2 * worst(plain.mean(1), truth.mean(1)) + 4e-7


def test_linear_stats_gradients(matrices):
    x, weight = (m.clone().requires_grad_() for m in matrices)
    target = torch.arange(40)
    ours = torch.autograd.grad(ncops.linear_stats(x, weight, None, target, scale=0.001).loss("nll"), (x, weight))
    plain = torch.autograd.grad(torch.nn.functional.cross_entropy(0.001 * (x @ weight.t()), target), (x, weight))
    xd, wd = (m.double().requires_grad_() for m in matrices)
    truth = torch.autograd.grad(torch.nn.functional.cross_entropy(0.001 * (xd @ wd.t()), target), (xd, wd))
    for a, b, t in zip(ours, plain, truth, strict=True):
        assert worst(a, t) <= 2 * worst(b, t) + 1e-6


def test_pair_stats_and_projections(matrices):
    rows = matrices[0]
    gram = rows.double() @ rows.double().t()
    off = ~torch.eye(40, dtype=torch.bool)
    plain = (rows @ rows.t())[off]
    assert worst(ncops.pair_stats(rows, "dot").max, gram[off].max()) <= 2 * worst(plain, gram[off]) + 4e-7
    truth = (matrices[0].double() @ matrices[1].double().t()).square().sum(1)
    plain = (matrices[0] @ matrices[1].t()).square().sum(1)
    assert worst(ncops.projected_sqnorms(*matrices), truth) <= 2 * worst(plain, truth) + 4e-7


def test_scatter_of_many_rows():
    torch.manual_seed(0)
    x = torch.rand(20000, 24)
    truth = x.double().t() @ x.double()
    assert worst(ncops.class_scatter(x), truth) <= 2 * worst(x.t() @ x, truth) + 4e-7
