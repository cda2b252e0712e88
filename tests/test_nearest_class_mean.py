"""nearest_class_mean against dense float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from testing import LAYOUTS, assert_accurate, assert_compiles, assert_deterministic, block_rows, dtypes, layouts, randn

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.reference.center import row_center

SHAPES = [(1, 1, 1), (1, 17, 2), (2, 5, 33), (65, 33, 130), (130, 65, 7), (33, 130, 1), (0, 5, 3)]


def distances(x, means, valid=None):
    """Squared distances in float64, +inf for classes that do not count."""
    d2 = (x.double()[:, None] - means.double()).square().sum(2)
    return d2 if valid is None else d2.masked_fill(~valid, math.inf)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_matches_dense_float64(backend, monkeypatch, shape, dtype, masked, double):
    n, d, c = shape
    block_rows(monkeypatch, 8 * 7 * max(c, d))
    x, means = randn(n, d, dtype=dtype), randn(c, d, dtype=torch.float64 if double else compute_dtype(dtype))
    valid = torch.rand(c) < 0.7 if masked else None
    if masked:
        valid[c // 2] = True
    index, sqdist = ncops.nearest_class_mean(x, means, valid=valid)
    truth = distances(x, means, valid)
    assert index.dtype == torch.int64 and sqdist.dtype == compute_dtype(dtype)
    assert index.shape == sqdist.shape == (n,)
    if n == 0:
        return
    picked = truth.gather(1, index[:, None]).squeeze(1)
    size = (x.double().square().sum(1).max() + means.double().square().sum(1).max()).item()
    near = 16 * torch.finfo(sqdist.dtype).eps * size
    assert (picked <= truth.amin(1) + near).all()
    apart = truth.topk(min(2, c), largest=False).values
    clear = apart[:, -1] - apart[:, 0] > near if c > 1 else torch.ones(n, dtype=torch.bool)
    assert torch.equal(index[clear], truth.argmin(1)[clear]) and clear.sum() >= n // 2
    plain = (x.to(sqdist.dtype) - means.to(sqdist.dtype)[index]).square().sum(1)
    assert_accurate(sqdist, plain, picked)


def test_by_hand(backend):
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    means = torch.tensor([[0.0, 1.0], [3.0, 3.0], [2.0, 0.0], [2.0, 0.0]])
    index, sqdist = ncops.nearest_class_mean(x, means)
    assert index.tolist() == [0, 1, 2] and sqdist.tolist() == [1, 1, 1]
    index, sqdist = ncops.nearest_class_mean(x, means, valid=torch.tensor([False, True, False, True]))
    assert index.tolist() == [3, 1, 3] and sqdist.tolist() == [4, 1, 1]


@layouts
def test_layouts(backend, layout):
    x, means = LAYOUTS[layout](randn(33, 17, dtype=torch.float32)), LAYOUTS[layout](randn(9, 17, dtype=torch.float32))
    valid = torch.ones(18, dtype=torch.bool)[::2]
    index, sqdist = ncops.nearest_class_mean(x, means, valid=valid)
    same = ncops.nearest_class_mean(x.contiguous(), means.contiguous())
    assert torch.equal(index, same.index) and torch.equal(sqdist, same.sqdist)
    torch.testing.assert_close(sqdist.double(), distances(x, means).amin(1), rtol=1e-5, atol=1e-5)


def test_leading_dimensions(backend):
    x, means = randn(2, 3, 5), randn(4, 5)
    index, sqdist = ncops.nearest_class_mean(x, means)
    assert index.shape == sqdist.shape == (2, 3)
    assert torch.equal(index.flatten(), distances(x.view(6, 5), means).argmin(1))
    assert ncops.nearest_class_mean(x[0, 0], means).index.shape == ()


@dtypes
def test_ties_go_to_the_lowest(backend, dtype):
    # Integers, and means that sum to zero: centring and products are exact, so the ties are.
    half = torch.randint(-2, 3, (40, 3))
    means = torch.cat([half, -half]).to(compute_dtype(dtype))
    x = torch.randint(-2, 3, (50, 3)).to(dtype)
    truth = distances(x, means)
    lowest = (truth == truth.amin(1, keepdim=True)).int().argmax(1)
    assert (truth == truth.amin(1, keepdim=True)).sum() > 60
    assert torch.equal(ncops.nearest_class_mean(x, means).index, lowest)


@pytest.mark.parametrize("double", [False, True])
def test_a_common_offset_flips_no_decision(backend, double):
    offset = 1000 * randn(32)
    means = (offset + randn(50, 32)).float()
    x = (means.double()[torch.arange(400) % 50] + 0.7 * randn(400, 32)).float()
    truth = distances(x, means)
    apart = truth.topk(2, largest=False).values
    clear = apart[:, 1] - apart[:, 0] > 1e-4
    index, sqdist = ncops.nearest_class_mean(x, means.double() if double else means)
    assert torch.equal(index[clear], truth.argmin(1)[clear]) and clear.sum() > 380
    torch.testing.assert_close(sqdist.double(), truth.gather(1, index[:, None]).squeeze(1), rtol=1e-5, atol=1e-6)
    scores = x @ means.T - means.square().sum(1) / 2
    assert (scores.argmax(1) != truth.argmin(1))[clear].any()  # what the usual expression makes of it


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("which", [slice(None, None, 30), slice(40)], ids=("some", "first"))
def test_far_means_flip_no_decision_among_the_others(backend, far, masked, which):
    """About the mean of all, which is far from each, float32 products cannot tell the other classes apart."""
    means = randn(100, 16, dtype=torch.float32)
    means[which] = far * means[which].abs()
    x = means[torch.arange(300) % 100] + 0.3 * randn(300, 16, dtype=torch.float32)
    valid = torch.arange(100) % 7 != 3 if masked else None
    truth = distances(x, means)
    if masked:
        truth[:, ~valid] = math.inf
    apart = truth.topk(2, largest=False).values
    clear = apart[:, 1] - apart[:, 0] > 1e-3
    index, _ = ncops.nearest_class_mean(x, means, valid=valid)
    assert torch.equal(index[clear], truth.argmin(1)[clear]) and clear.sum() > 280


def test_means_in_float64_are_not_rounded_before_they_are_centred(backend):
    """Far from the origin, where both means round to the same float32: the second is the nearer one."""
    means = torch.tensor([[1e6 + 0.02, 0.0], [1e6 - 0.01, 0.0]], dtype=torch.float64)
    index, sqdist = ncops.nearest_class_mean(torch.tensor([[1e6, 0.0]]), means)
    assert index.item() == 1 and sqdist.item() == pytest.approx(1e-4, rel=1e-5)


def test_the_centre_is_amid_rows_from_first_to_last():
    rows = torch.arange(1000.0)[:, None]
    mean = rows.double().mean(0)
    assert row_center(rows, None, mean).item() == 31 * 1000 // 63  # the middle one of 63
    odd = rows[:, 0] % 2 == 1
    assert row_center(rows, odd, mean).item() == 2 * (31 * 500 // 63) + 1
    assert row_center(rows[:2], None, mean).item() == 0 and row_center(rows[:0], None, mean) is mean
    assert row_center(rows, None, mean * math.nan).isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@dtypes
def test_a_bad_row_is_alone(backend, bad, dtype):
    x, means = randn(9, 5, dtype=dtype), randn(4, 5, dtype=compute_dtype(dtype))
    clean = ncops.nearest_class_mean(x, means)
    x[3, 2] = bad
    index, sqdist = ncops.nearest_class_mean(x, means)
    rest = torch.arange(9) != 3
    assert index[3] == -1 and sqdist[3].isnan()
    assert torch.equal(index[rest], clean.index[rest]) and torch.equal(sqdist[rest], clean.sqdist[rest])


@pytest.mark.parametrize("held", [math.nan, 1e30])
def test_invalid_means_may_hold_anything(backend, held):
    x, means = randn(9, 5, dtype=torch.float32), randn(40, 5, dtype=torch.float32)
    valid = torch.arange(40) % 4 == 3  # most are not: the centre is amid those that are
    clean = ncops.nearest_class_mean(x, means, valid=valid)
    means[~valid] = held
    bad = ncops.nearest_class_mean(x, means, valid=valid)
    assert torch.equal(clean.index, bad.index) and torch.equal(clean.sqdist, bad.sqdist)


@pytest.mark.parametrize("classes", [0, 3])
def test_no_valid_class(backend, classes):
    index, sqdist = ncops.nearest_class_mean(
        randn(5, 2), randn(classes, 2), valid=torch.zeros(classes, dtype=torch.bool)
    )
    assert (index == -1).all() and sqdist.isnan().all()
    assert (ncops.nearest_class_mean(randn(5, 2), randn(0, 2)).index == -1).all()


def test_results_carry_no_gradient(backend):
    x, means = randn(5, 3).requires_grad_(), randn(4, 3).requires_grad_()
    index, sqdist = ncops.nearest_class_mean(x, means)
    assert not index.requires_grad and not sqdist.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        sqdist.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.randn(4, 3)}, r"means: expected shape \(C, D\) = \(4, 5\), got \(4, 3\)"),
        ({"means": torch.randn(4, 5).half()}, "means: expected torch.float64 or torch.float32"),
        (
            {"x": torch.randn(9, 5).double()},
            r"means: expected torch.float64 .* .x is torch.float64., got torch.float32",
        ),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid: expected shape \(C,\) = \(4,\), got \(3,\)"),
        ({"valid": torch.ones(4)}, "valid: expected torch.bool"),
        ({"x": torch.zeros(9, 5, dtype=torch.int64)}, "x: expected float32"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.randn(9, 5), "means": torch.randn(4, 5), "valid": None} | change
    with pytest.raises(ValueError, match=message):
        ncops.nearest_class_mean(arguments["x"], arguments["means"], valid=arguments["valid"])


def test_deterministic(backend):
    n, c = (2000, 300) if backend != "triton" else (100, 70)  # the interpreter takes 10 ms a tile
    x, means = randn(n, 65, dtype=torch.float32), randn(c, 65, dtype=torch.float32)
    assert_deterministic(lambda: ncops.nearest_class_mean(x, means), backend)


def test_opcheck(backend):
    x, means = randn(9, 5, dtype=torch.bfloat16), randn(4, 5)
    op = torch.ops.ncops.nearest_class_mean.default
    torch.library.opcheck(op, (x, means, torch.rand(4) < 0.8, False))
    torch.library.opcheck(op, (x.float().requires_grad_(), means.float(), None, False))


def test_compile(backend):
    assert_compiles(lambda x, means: ncops.nearest_class_mean(x, means), randn(9, 5), randn(4, 5))
