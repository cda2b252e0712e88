"""The native gradient of stored logits: layouts, long rows, masks, single columns, determinism."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, naive, objective
from testing import IGNORE, LAYOUTS, assert_accurate, assert_deterministic, dtypes, layouts, plain, randn, random_labels

import ncops
from ncops import backends
from ncops.backends import native as extension

COLUMNS = [(name,) for name in FLOATS] + [("nll", "entropy"), ("max", "second", "target_logit"), ("mean", "var")]


@pytest.fixture
def native():
    if backends.why_not("cpu", "logit_stats_backward", "cpu"):
        pytest.skip("needs the native extension")


def gradient(logits, target, run, columns=FLOATS):
    z = logits.detach().requires_grad_()
    values = run(z)
    values = {name: values[name] if name in columns else torch.zeros(len(target)) for name in FLOATS}
    return torch.autograd.grad(objective(values, len(target)), z)[0]


def ours(target, scale=1.0):
    return lambda z: ncops.logit_stats(z, target, scale=scale)._asdict()


def test_the_kernel_is_native(native):
    with ncops.use_backend("cpu"):
        assert backends.choose("logit_stats_backward", "cpu") == "cpu"
    assert extension.op("logit_stats_backward") is not None


@dtypes
@pytest.mark.parametrize("columns", COLUMNS, ids="+".join)
@pytest.mark.parametrize("scale", [1.0, -0.7])
def test_each_column_alone(backend, dtype, columns, scale):
    """The kernel leaves out what a row's gradients do not need; every combination has to be right by itself."""
    logits, target = randn(9, 83, dtype=dtype, scale=2), random_labels(9, 83)
    target[0] = (scale * logits[0]).argmax()
    mine = gradient(logits, target, ours(target, scale), columns)
    theirs = gradient(plain(logits)[0], target, lambda z: naive(scale * z, target), columns)
    truth = gradient(logits.double(), target, lambda z: naive(scale * z, target), columns)
    assert mine.dtype == dtype
    assert_accurate(mine, theirs.to(dtype), truth, what="gradient", eps=8 if dtype.itemsize > 2 else 1)


@layouts
@dtypes
def test_layouts(backend, layout, dtype):
    for shape in ((33, 65), (2, 2_500)) if backend == "cpu" else ((33, 65),):
        logits, target = LAYOUTS[layout](randn(*shape, dtype=dtype)), random_labels(*shape)
        mine, same = (gradient(z, target, ours(target)) for z in (logits, logits.contiguous()))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(mine, same, rtol=4 * eps, atol=4 * eps)
        assert mine.is_contiguous()


@dtypes
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 31, 4096, 5001])
def test_every_width_equals_the_reference(native, dtype, classes):
    """Rows shorter than a vector, of whole vectors, and with a rest; last, a result too large for the caches."""
    rows = 600 if classes == 5001 else 5
    logits, target = randn(rows, classes, dtype=dtype, scale=3), random_labels(rows, classes)
    target[1] = logits[1].argmax()
    columns = [name for name in FLOATS if name != "second" or classes > 1]
    mine = gradient(logits, target, ours(target), columns)
    with ncops.use_backend("reference"):
        truth = gradient(logits.double(), target, ours(target), columns)
    eps = torch.finfo(dtype).eps
    assert ((mine.double() - truth).abs() <= 8 * eps * truth.abs().clamp(min=0.1)).all()  # terms of size 1 cancel


@pytest.mark.parametrize("masked", [-math.inf, -3.4e38])
def test_masked_classes_get_nothing(backend, masked):
    logits, target = randn(6, 90, dtype=torch.float32, scale=3), torch.arange(6)
    logits[:, 20::3] = masked
    stats = ("lse", "gap", "max", "second", "target_logit", "nll", "entropy")
    mine = gradient(logits, target, ours(target), stats)
    kept = torch.ones(90, dtype=torch.bool)
    kept[20::3] = False
    assert (mine[:, ~kept] == 0).all()
    alone = gradient(logits[:, kept], target, ours(target), stats)
    torch.testing.assert_close(mine[:, kept], alone, rtol=1e-5, atol=1e-6)


@dtypes
def test_rows_without_gradient_and_bad_rows(backend, dtype):
    logits, target = randn(5, 37, dtype=dtype), torch.tensor([1, IGNORE, 2, 3, 4])
    logits[1, 5], logits[3, 6] = math.nan, math.inf
    logits.requires_grad_()
    nll = ncops.logit_stats(logits, target).nll
    (grad,) = torch.autograd.grad((nll * torch.tensor([1, 1, 0, 1, 1])).sum(), logits)
    assert (grad[1:3] == 0).all() and grad[3].isnan().all() and grad[[0, 4]].isfinite().all()


def test_halves_are_rounded_to_nearest(native):
    """One rounding, ties to even, of what float32 logits of the same values get; tiny ones are subnormal."""
    for dtype in (torch.bfloat16, torch.float16):
        logits, target = randn(40, 300, dtype=dtype, scale=4), random_labels(40, 300)
        wide = gradient(logits.float(), target, ours(target), ("nll",))
        assert torch.equal(gradient(logits, target, ours(target), ("nll",)), wide.to(dtype))
        assert dtype != torch.float16 or ((wide != 0) & (wide.abs() < 6e-5)).any()


@pytest.mark.parametrize("shape", [(300, 301), (700, 4099)], ids=str)  # the second is written past the caches
def test_deterministic(backend, shape):
    shape = (40, 99) if backend == "triton" else shape  # Triton's interpreter is slow
    logits, target = randn(*shape, dtype=torch.float32), random_labels(*shape)
    assert_deterministic(lambda: gradient(logits, target, ours(target)), backend)


def test_the_logits_are_not_written(backend):
    logits, target = randn(20, 33, dtype=torch.float32), random_labels(20, 33)
    before = logits.clone()
    gradient(logits, target, ours(target))
    assert torch.equal(logits, before)
