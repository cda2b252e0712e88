"""The cap on logits in the Triton kernels: how accurate it is, and what is made of capped logits over many blocks."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, dense, objective, problem
from op_cases import OpCase, check
from testing import IGNORE, randn, random_labels

import ncops

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from ncops.triton_kernels._launch import override  # noqa: E402
from ncops.triton_kernels._logits_tile import capped, capped_slope  # noqa: E402

pytestmark = pytest.mark.triton
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
CAPS = pytest.mark.parametrize("softcap", [3.0, 30.0])  # most logits at the cap, and few


@triton.jit
def _both(z, value, slope, SOFTCAP: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(value + at, capped(tl.load(z + at), SOFTCAP))
    tl.store(slope + at, capped_slope(tl.load(z + at), SOFTCAP))


def cap_of(z: torch.Tensor, softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    value, slope = torch.empty_like(z), torch.empty_like(z)
    _both[(1,)](z, value, slope, softcap, z.shape[0])
    return value, slope


@pytest.mark.parametrize("softcap", [1.0, 0.3, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_cap_keeps_every_digit(dtype, softcap):
    u = torch.cat([torch.logspace(-25, 1.6, 1024), torch.linspace(0, 2, 1024)]).double()
    z = (softcap * torch.cat([-u, u])).to(dtype).sort().values
    value, slope = cap_of(z, softcap)
    u, eps = z.double() / softcap, torch.finfo(dtype).eps
    truth = softcap * u.tanh()
    assert ((value.double() - truth).abs() <= 4 * eps * truth.abs()).all()
    assert (value[1:] >= value[:-1]).all() and value.double().abs().max() <= softcap * (1 + eps)
    truth = u.cosh() ** -2  # to the rounding of u, which it is as sensitive to as e^(-2 u)
    assert ((slope.double() - truth).abs() <= (4 + 2 * u.abs()) * eps * truth).all()


def test_infinities_and_nan_pass_the_cap():
    value, slope = cap_of(torch.tensor([math.inf, -math.inf, math.nan, 3e38]), 30.0)
    assert value[:2].tolist() == [math.inf, -math.inf] and value[2].isnan() and value[3] == 30
    assert slope[[0, 1, 3]].tolist() == [0, 0, 0]


def columns(stats):
    return {name: getattr(stats, name) for name in (*FLOATS, "argmax", "second_index", "target_rank", "valid")}


def loss(stats):
    return objective({name: getattr(stats, name) for name in FLOATS}, stats.lse.shape[0])


def linear_cases(shape, softcap):
    options = {"scale": 0.7, "softcap": softcap}

    def make(dtype):
        return dict(zip(("x", "weight", "bias", "target"), problem(*shape, dtype), strict=True))

    def gradients(x, weight, bias, target):
        inputs = [t.requires_grad_() for t in (x, weight, bias)]
        found = torch.autograd.grad(loss(ncops.linear_stats(*inputs, target, **options)), inputs)
        return dict(zip(("g_x", "g_weight", "g_bias"), found, strict=True))

    def score(inputs):
        return softcap * (dense(inputs["x"], inputs["weight"], inputs["bias"], 0.7) / softcap).tanh()

    def forward(**inputs):
        return columns(ncops.linear_stats(**inputs, **options))

    size = lambda name, inputs: max(1.0, softcap ** (2 if name == "var" else 1))  # noqa: E731
    yield OpCase("linear_stats", "capped", make, forward, size, score)
    yield OpCase("linear_stats", "capped, backward", make, gradients, gradient=True)


def stored_cases(shape, softcap):
    options = {"scale": 0.7, "softcap": softcap}

    def make(dtype):
        return {"logits": randn(*shape, dtype=dtype, scale=9), "target": random_labels(*shape)}

    def gradients(logits, target):
        stats = ncops.logit_stats(logits.requires_grad_(), target, **options)
        return {"g_logits": torch.autograd.grad(loss(stats), logits)[0]}

    def score(inputs):
        return softcap * (0.7 * inputs["logits"] / softcap).tanh()

    def forward(**inputs):
        return columns(ncops.logit_stats(**inputs, **options))

    size = lambda name, inputs: max(1.0, softcap ** (2 if name == "var" else 1))  # noqa: E731
    yield OpCase("logit_stats", "capped", make, forward, size, score)
    yield OpCase("logit_stats", "capped, backward", make, gradients, gradient=True)


@DTYPES
@CAPS
@pytest.mark.parametrize("shape", [(37, 40, 90), (5, 20, 12)], ids=["many tiles", "one tile"])
def test_linear_stats(dtype, softcap, shape):
    for case in linear_cases(shape, softcap):
        check(case, "triton", dtype)


@DTYPES
@CAPS
def test_logit_stats(dtype, softcap):
    for case in stored_cases((37, 90), softcap):
        check(case, "triton", dtype)


def test_wide_tiles_in_halves():
    with override("linear_stats", BLOCK_N=32, BLOCK_V=64, HALVES=1), override("linear_stats_64", BLOCK_V=32, HALVES=1):
        for case in linear_cases((37, 40, 150), 3.0):
            check(case, "triton", torch.float32)


def test_bad_rows_stay_bad_and_ignored_ones_without_gradient():
    logits = randn(6, 50, dtype=torch.float32)
    logits[1, 3], logits[2, 40], logits[4, 3] = math.inf, math.nan, math.nan
    target = torch.tensor([1, 2, 3, 4, IGNORE, 5])
    with ncops.use_backend("triton"):
        stats = ncops.logit_stats(logits.requires_grad_(), target, softcap=30.0)
        (gradient,) = torch.autograd.grad(stats.nll.sum(), logits)
    assert stats.lse.isnan().tolist() == gradient.isnan().any(1).tolist()[:4] + [True, False]
    assert stats.lse.isnan().tolist() == [False, True, True, False, True, False]
    assert (gradient[4] == 0).all() and gradient[[0, 3, 5]].isfinite().all()
