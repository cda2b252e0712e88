"""The bits of a row's results do not depend on the rows beside it, where docs/reinforcement-learning.md says so."""

from __future__ import annotations

import pytest
import torch
from logit_columns import problem
from testing import bits, dtypes, randn, random_labels

import ncops
from ncops.backends import native
from ncops.backends.dtypes import compute_dtype
from ncops.distributed.shard_columns import local_share, target_logits

D = 16
RANGES = {300: (600,), 700: (256, 600), 4200: (4110,)}
"""Of V classes: the last number of rows of each range of gradients, after that of the few rows."""


pytestmark = pytest.mark.skipif(native.load() is not None, reason="needs the native extension")


@pytest.fixture(params=("generic", "avx2", "avx512", "avx512_bf16", "avx512_amx", "neon", "neon_bf16"), autouse=True)
def isa(request, monkeypatch):
    monkeypatch.setenv("NCOPS_CPU_ISA", request.param)
    try:
        native.op("cpu_isa")()
    except RuntimeError as error:
        pytest.skip(str(error))
    with ncops.use_backend("cpu"):
        yield request.param


def few_rows(isa: str, dtype: torch.dtype) -> int:
    lanes = {"avx2": 32, "avx512": 64}.get(isa.partition("_")[0], 16) // compute_dtype(dtype).itemsize
    return 0 if dtype == torch.float16 else min(8, lanes)


def assert_the_same_in_ranges(run, lasts) -> None:
    """``run(n)``: results of the last ``n`` of all rows, which lie in other lanes for every ``n``."""
    first = 1
    for last in lasts:
        sizes = sorted({n for n in (first, first + 1, first + 7, 129) if first <= n < last})
        most = bits(run(last))
        for n in sizes:
            for mine, theirs in zip(bits(run(n)), most, strict=True):
                assert torch.equal(mine, theirs[-n:]), (n, last)
        first = last + 1


@dtypes
@pytest.mark.parametrize("v", RANGES)
def test_linear_stats(isa, v, dtype):
    x, weight, bias, target = problem(RANGES[v][-1], D, v, dtype)

    def run(n):
        own = x[-n:].clone().requires_grad_()
        stats = ncops.linear_stats(own, weight, bias, target[-n:])
        (stats.nll + 0.3 * stats.entropy).sum().backward()
        return [*stats.to_dict().values(), own.grad]

    assert_the_same_in_ranges(run, [n for n in (few_rows(isa, dtype), *RANGES[v]) if n])


@dtypes
@pytest.mark.parametrize("v", RANGES)
def test_linear_loss(isa, v, dtype):
    x, weight, bias, target = problem(RANGES[v][-1], D, v, dtype)
    target = target.clamp(min=0)  # rows that are ignored do not count

    def run(n):
        own = x[-n:].clone().requires_grad_()
        result = ncops.linear_loss(own, weight, bias, target[-n:], z_loss=0.1, reduction="sum")
        result.loss.backward()
        return [*result.stats.to_dict().values(), own.grad]

    assert_the_same_in_ranges(run, RANGES[v])


@dtypes
@pytest.mark.parametrize("op", ["linear_stats", "linear_topk"])
@pytest.mark.parametrize(("n", "v"), [(600, 700), (1_300, 2_000), (9_000, 1_100)])
def test_columns(isa, op, n, v, dtype):
    """Of any number of rows beyond few: the classes are cut alike, in ranges of 8192 rows too."""
    x, weight, bias, target = problem(n, D, v, dtype)

    def run(rows):
        if op == "linear_topk":
            return list(ncops.linear_topk(x[-rows:], weight, bias, k=5))
        return list(ncops.linear_stats(x[-rows:], weight, bias, target[-rows:]).to_dict().values())

    assert_the_same_in_ranges(run, [m for m in (few_rows(isa, dtype), n) if m])


def test_shares_of_classes(isa):
    x, weight, bias, target = problem(9_000, D, 1_100, torch.float32)

    def run(n):
        own, options = (x[-n:], weight, bias), (0, 0.7, 0.0)
        logit = target_logits(*own, target[-n:], *options, -100, False)
        return [logit, local_share(*own, logit, *options, False).T]

    assert_the_same_in_ranges(run, [few_rows(isa, x.dtype), 9_000])


@dtypes
@pytest.mark.parametrize("v", [300, 1000])
def test_logit_stats(v, dtype):
    logits, target = randn(600, v, dtype=dtype, scale=3), random_labels(600, v)

    def run(n):
        own = logits[-n:].clone().requires_grad_()
        stats = ncops.logit_stats(own, target[-n:])
        (stats.nll + 0.3 * stats.entropy).sum().backward()
        return [*stats.to_dict().values(), own.grad]

    assert_the_same_in_ranges(run, (600,))
