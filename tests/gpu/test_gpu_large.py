"""Inputs beyond 2^31 elements, and memory that stays small beside them."""

from __future__ import annotations

import pytest
import torch
from op_cases import gpu_backends

import ncops

BEYOND = 2**31 + 2**20


def _needs(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes:g} GB of GPU memory, {free / 1e9:.0f} GB are free")


def _grown(run) -> float:
    """Megabytes that ``run`` needs at its peak beyond what was there."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


@gpu_backends("class_moments")
def test_class_moments_beyond_32_bits(gpu_backend):
    _needs(6)
    d = 4096
    n = BEYOND // d + 1
    x = torch.zeros((n, d), dtype=torch.bfloat16, device="cuda")
    labels = torch.zeros(n, dtype=torch.int64, device="cuda")
    x[-1], labels[-1] = 3, 1  # the last row's offset does not fit in 32 bits
    with ncops.use_backend(gpu_backend):
        moments = ncops.class_moments(x, labels, 2)
    assert moments.counts.tolist() == [n - 1, 1]
    assert (moments.sums[0] == 0).all() and (moments.sums[1] == 3).all() and moments.sqnorms[1] == 9 * d


@gpu_backends("class_scatter")
def test_class_scatter_beyond_32_bits(gpu_backend):
    _needs(6)
    d = 64
    n = BEYOND // d + 1
    x = torch.zeros((n, d), dtype=torch.bfloat16, device="cuda")
    x[-1] = 2
    with ncops.use_backend(gpu_backend):
        assert (ncops.class_scatter(x) == 4).all()


@gpu_backends("logit_stats")
def test_logit_stats_beyond_32_bits(gpu_backend):
    _needs(7)
    v = 131072
    n = BEYOND // v + 1
    logits = torch.zeros((n, v), dtype=torch.bfloat16, device="cuda")
    logits[-1, -1] = 30
    target = torch.full((n,), v - 1, device="cuda")
    with ncops.use_backend(gpu_backend):
        stats = ncops.logit_stats(logits, target)
    assert stats.argmax[-1] == v - 1 and stats.target_rank[-1] == 0 and stats.max[-1] == 30
    assert (stats.argmax[:-1] == 0).all() and torch.allclose(stats.lse[0], torch.tensor(float(v)).log().cuda())


@gpu_backends("linear_stats")
def test_linear_stats_with_more_than_2_31_logits_needs_little_memory(gpu_backend):
    _needs(3)
    n, d, v = 16640, 128, 131072  # 2.2e9 logits: 8.7 GB in float32
    x = torch.randn(n, d, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(v, d, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(0, v, (n,), device="cuda")
    with ncops.use_backend(gpu_backend):
        run = lambda: ncops.linear_stats(x, weight, None, target)  # noqa: E731
        run()
        assert _grown(run) < 200
        last = run()
    part = x[-4:].float() @ weight.float().t()
    torch.testing.assert_close(last.lse[-4:], part.logsumexp(1), rtol=1e-4, atol=1e-3)
    assert torch.equal(last.argmax[-4:], part.argmax(1))


@pytest.mark.parametrize("gpu_backend", ["triton"])
def test_linear_stats_gradient_needs_little_memory(gpu_backend):
    _needs(3)
    n, d, v = 8192, 256, 65536  # 2.1 GB of float32 logits
    x = torch.randn(n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(v, d, device="cuda", dtype=torch.bfloat16).mul_(d**-0.5).requires_grad_()
    target = torch.randint(0, v, (n,), device="cuda")

    def run():
        return torch.autograd.grad(ncops.linear_stats(x, weight, None, target).loss("nll"), (x, weight))

    with ncops.use_backend(gpu_backend):
        run()
        assert _grown(run) < 300 + (x.nbytes + weight.nbytes) * 3 / 1e6


@pytest.mark.parametrize("kernel", ["cosine", "log_distance"])
@gpu_backends("pair_stats")
def test_pair_stats_needs_little_memory(gpu_backend, kernel):
    _needs(2)
    rows = torch.randn(32768, 128, device="cuda")  # the grid would be 4.3 GB
    with ncops.use_backend(gpu_backend):
        ncops.pair_stats(rows, kernel)
        assert _grown(lambda: ncops.pair_stats(rows, kernel)) < 300


@gpu_backends("class_scatter")
def test_class_scatter_workspace(gpu_backend):
    _needs(2)
    d = 1024
    x = torch.randn(100_000, d, device="cuda")
    with ncops.use_backend(gpu_backend):
        ncops.class_scatter(x)
        assert _grown(lambda: ncops.class_scatter(x)) < (8 + 1) * d * d * 4 / 1e6 + 8
