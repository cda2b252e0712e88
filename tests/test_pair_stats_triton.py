"""What only the Triton kernels of pair_stats do: groups of tiles, tiles with close pairs, strips of the backward."""

from __future__ import annotations

import math

import pytest
import torch
from testing import bits, randn

import ncops
from ncops.reference import pair_stats as reference

pytestmark = pytest.mark.triton
launch = pytest.importorskip("ncops.triton_kernels._launch")
if not launch.interpreted():
    pytest.skip("tests/gpu runs the compiled kernels", allow_module_level=True)


def close(ours, theirs, dtype):
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype == true.dtype and mine.shape == true.shape
        bound = {"rtol": 2e-5, "atol": 2e-5} if dtype != torch.float64 else {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(mine, true, equal_nan=True, **bound)


@pytest.mark.parametrize("multiprocessors", [1, 2, 4])
@pytest.mark.parametrize("kernel", ["dot", "distance"])
def test_any_grouping_gives_the_same_partners(kernel, multiprocessors, monkeypatch):
    """Groups of one to several tiles a side: each row's best partner comes through every plane of partial results."""
    from ncops.triton_kernels import pair_stats

    rows, valid = randn(45, 5, dtype=torch.float32), torch.rand(45) < 0.8
    monkeypatch.setattr(pair_stats, "INTERPRETED_MULTIPROCESSORS", multiprocessors)
    with launch.override("pair_products", BLOCK=8), launch.override("pair_distances", BLOCK=8):
        ours = pair_stats.pair_stats(rows, kernel, None, 1.0, valid, None, -100, False)
    theirs = reference.pair_stats(rows, kernel, None, 1.0, valid, None, -100, False)
    close(ours, theirs, torch.float32)


@pytest.mark.parametrize("kernel", ["log_distance", "riesz", "cdnv"])
@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 3.0, -1.0])
def test_powers(kernel, power):
    from ncops.triton_kernels.pair_stats import pair_stats

    for dtype in (torch.float32, torch.float64):
        rows = randn(9, 4, dtype=dtype)
        variances = torch.rand(9, dtype=dtype) if kernel == "cdnv" else None
        arguments = (rows, kernel, variances, power, None, None, -100, False)
        close(pair_stats(*arguments), reference.pair_stats(*arguments), dtype)


def test_tiles_wholly_of_close_pairs():
    """Every row has close partners, in its own tile and in others."""
    from ncops.triton_kernels.pair_stats import pair_stats

    rows = (randn(5, 6).repeat(7, 1) + 1e-3 * randn(35, 6)).float()
    truth = torch.pdist(rows.double())
    stats = pair_stats(rows, "distance", None, 1.0, None, None, -100, False)
    for mine, true in zip(stats[:4], (truth.mean(), truth.var(correction=0), truth.min(), truth.max()), strict=True):
        assert mine.item() == pytest.approx(true.item(), rel=1e-6)


@pytest.mark.parametrize("kernel", ["distance", "gaussian", "cdnv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_backward_by_strips(kernel, dtype, monkeypatch):
    from ncops.triton_kernels import _pair_backward as backward

    k, dim = 21, 9
    rows = randn(k, dim)
    rows[18] = rows[0] + 1e-3 * randn(dim)
    rows, valid = rows.to(dtype), torch.arange(k) % 5 != 1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    variances = torch.rand(k, dtype=wide) if kernel == "cdnv" else None
    out = reference.pair_stats(rows, kernel, variances, 1.0, valid, None, -100, False)
    g_mean, g_row_max = randn(1, dtype=wide)[0], randn(k, dtype=wide)
    arguments = (g_mean, g_row_max, out[5], out[6], rows, kernel, variances, 1.0, valid, None, -100, False)
    whole = backward.pair_stats_backward(*arguments)
    monkeypatch.setattr(backward, "STRIP_BYTES", 1)  # one row of tiles a strip
    strips = backward.pair_stats_backward(*arguments)
    exact = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments]
    truth = reference.pair_stats_backward(*exact)
    eps = torch.finfo(dtype).eps
    for one, other, true in zip(whole, strips, truth, strict=True):
        size = true.abs().max().item() if true.numel() else 0
        assert torch.allclose(one.double(), true, rtol=0, atol=64 * max(eps, torch.finfo(wide).eps) * size)
        assert torch.allclose(other.double(), true, rtol=0, atol=64 * max(eps, torch.finfo(wide).eps) * size)


def test_one_row_is_everyones_partner():
    """The longest row wins every dot product, and its gradient sums all others."""
    rows = randn(40, 6, dtype=torch.float32).abs()
    rows[7] *= 100
    weight = randn(40, dtype=torch.float32)
    with ncops.use_backend("triton"):
        leaf = rows.clone().requires_grad_()
        stats = ncops.pair_stats(leaf, "dot")
        assert (stats.row_argmax[torch.arange(40) != 7] == 7).all()
        (mine,) = torch.autograd.grad((stats.row_max * weight).sum(), leaf)
        again = torch.autograd.grad((ncops.pair_stats(leaf, "dot").row_max * weight).sum(), leaf)
    with ncops.use_backend("reference"):
        (true,) = torch.autograd.grad((ncops.pair_stats(leaf, "dot").row_max * weight).sum(), leaf)
    torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-4)
    assert torch.equal(bits(mine)[0], bits(again[0])[0])


def test_infinite_and_missing_values_cross_tiles():
    from ncops.triton_kernels.pair_stats import pair_stats

    rows = randn(20, 3, dtype=torch.float32)
    rows[18] = rows[2]
    mean, var, low, high, row_max, count, row_argmax = pair_stats(rows, "riesz", None, 1.0, None, None, -100, False)
    assert mean == high == math.inf and var.isnan() and low > 0 and count == 190
    assert row_argmax[2] == 18 and row_argmax[18] == 2
    rows[18, 1] = math.nan
    mean, _, low, high, row_max, count, row_argmax = pair_stats(rows, "distance", None, 1.0, None, None, -100, False)
    assert all(value.isnan() for value in (mean, low, high)) and row_max.isnan().all() and (row_argmax == -1).all()
