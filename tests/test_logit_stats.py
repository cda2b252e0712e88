"""logit_stats against dense float64 arithmetic, and against linear_stats on the same logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from logit_columns import DERIVED, FLOATS, collapsed, naive, objective
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

INDICES = ("argmax", "second_index", "target_rank", "valid", "correct")


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 17), (33, 130), (65, 33), (5, 1000), (0, 4)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_every_column_matches_dense_float64(backend, shape, dtype, scale):
    logits, target = randn(*shape, dtype=dtype, scale=3), random_labels(*shape)
    stats = ncops.logit_stats(logits, target, scale=scale)
    (z,) = exact(logits)
    theirs, truth = naive(scale * plain(logits)[0], target), naive(scale * z, target)
    size = z.abs().max().item() if z.numel() else 0
    sizes = {"sumsq": size**2 * shape[1], "sum": size * shape[1], "var": size**2}
    for name in (*FLOATS, *DERIVED):
        bound = max(1, sizes.get(name, size))
        assert_accurate(getattr(stats, name), theirs[name], truth[name], what=name, scale=bound, eps=4)
    for name in INDICES:  # the scaled logits are the input's own, rounded once: order and ties are those of float32
        same = naive(scale * plain(logits)[0], target)[name]
        assert torch.equal(getattr(stats, name), same), name


@dtypes
def test_ties_go_to_the_lowest(backend, dtype):
    logits, target = torch.randint(-3, 3, (50, 67)).to(dtype), random_labels(50, 67)
    stats, truth = ncops.logit_stats(logits, target), naive(logits.double(), target)
    assert (truth["max"] == truth["second"]).all()
    for name in INDICES:
        assert torch.equal(getattr(stats, name), truth[name]), name


@layouts
def test_layouts(backend, layout):
    logits, target = LAYOUTS[layout](randn(33, 65, dtype=torch.float32)), random_labels(33, 65)
    stats = ncops.logit_stats(logits, target.repeat_interleave(2)[::2])
    torch.testing.assert_close(list(stats[:13]), list(ncops.logit_stats(logits.contiguous(), target)[:13]))
    torch.testing.assert_close(stats.nll.double(), naive(logits.double(), target)["nll"], rtol=1e-5, atol=1e-5)


def test_leading_dimensions(backend):
    logits, target = randn(2, 3, 7), random_labels(6, 7).view(2, 3)
    stats, flat = ncops.logit_stats(logits, target), ncops.logit_stats(logits.view(6, 7), target.view(6))
    assert all(torch.equal(a.flatten(), b) for a, b in zip(stats[:13], flat[:13], strict=True))
    assert stats.nll.shape == stats.correct.shape == (2, 3)
    assert ncops.logit_stats(logits).nll is None


def test_by_hand(backend):
    stats = ncops.logit_stats(torch.tensor([[0.0, math.log(3), 0.0, 0.0]]), torch.tensor([2]))  # p = 1/6, 1/2, 1/6, 1/6
    expected = {
        "lse": math.log(6), "gap": math.log(2), "argmax": 1, "second": 0, "second_index": 0, "target_rank": 1,
        "nll": math.log(6), "entropy": math.log(2) / 2 + math.log(6) / 2, "mean": math.log(3) / 4,
        "var": 3 * math.log(3) ** 2 / 16, "margin": -math.log(3), "max_prob": 0.5,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(stats, name).item() == pytest.approx(value, rel=2e-6), name


def test_collapsed_regime_keeps_its_digits(backend):
    _, weight, target = collapsed()
    logits = weight.T.contiguous().requires_grad_()
    truth = naive(logits.detach().double(), target)["gap"]
    stats = ncops.logit_stats(logits, target)
    assert ((stats.nll.double() / truth - 1).abs() < 1e-5).all()
    (grad,) = torch.autograd.grad(stats.nll.sum(), logits)
    own = grad.diagonal().double()
    assert ((own / truth.neg().expm1() - 1).abs() < 1e-5).all()
    assert (F.cross_entropy(logits, target, reduction="none") == 0).all()
    rest = grad.sum(1).double() / own  # a softmax gradient sums to nothing
    assert (rest.abs() < 1e-5).all()


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (33, 65), (17, 130)], ids=str)
def test_gradients_match_dense_float64(backend, monkeypatch, shape, dtype):
    block_rows(monkeypatch, 8 * 7 * shape[1])
    logits, target = randn(*shape, dtype=dtype, scale=2), random_labels(*shape)

    def gradient(z, run):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(objective(run(z), shape[0]), z)[0]

    mine = gradient(logits, lambda z: ncops.logit_stats(z, target, scale=0.7)._asdict())
    theirs = gradient(plain(logits)[0], lambda z: naive(0.7 * z, target))
    truth = gradient(logits.double(), lambda z: naive(0.7 * z, target))
    assert mine.dtype == dtype
    assert_accurate(mine, theirs.to(dtype), truth, what="gradient", eps=8 if dtype.itemsize > 2 else 1)


@pytest.mark.parametrize("name", (*FLOATS, *DERIVED))
def test_gradcheck(backend, name):
    logits, target = randn(5, 6).requires_grad_(), torch.tensor([0, 1, IGNORE, 5, 2])
    column = lambda z: getattr(ncops.logit_stats(z, target, scale=0.7), name)  # noqa: E731
    assert torch.autograd.gradcheck(column, logits, fast_mode=backend == "triton")


def test_second_derivative_is_refused(backend):
    logits = randn(3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(ncops.logit_stats(logits).loss("entropy"), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="logit_stats: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("only", [0, 1, 2])
def test_all_classes_but_one_masked(backend, only):
    logits = torch.full((1, 3), -math.inf)
    logits[0, only] = 5.0
    stats = ncops.logit_stats(logits, torch.tensor([only]))
    assert stats.max == 5 and stats.argmax == only and stats.gap == stats.nll == stats.entropy == 0
    assert stats.second == -math.inf and stats.second_index == (1 if only == 0 else 0) and stats.margin == math.inf


@pytest.mark.parametrize("classes", [1, 2, 40])
def test_every_class_masked(backend, classes):
    stats = ncops.logit_stats(torch.full((1, classes), -math.inf), torch.tensor([0]))
    assert stats.max == stats.lse == stats.mean == -math.inf and stats.argmax == 0
    assert all(column.isnan() for column in (stats.gap, stats.nll, stats.entropy, stats.var))


def test_masked_classes_under_a_large_entropy_gradient(backend):
    logits = torch.tensor([[1.0, -math.inf, 2.0]]).requires_grad_()
    (ones,) = torch.autograd.grad(ncops.logit_stats(logits).entropy.sum(), logits)
    (many,) = torch.autograd.grad(ncops.logit_stats(logits).entropy.sum() * 64, logits)
    assert ones[0, 1] == 0 and torch.equal(many, 64 * ones)


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 5, 66])
def test_a_bad_logit_poisons_its_row_alone(backend, dtype, value, column):
    logits, target = randn(9, 67, dtype=dtype), torch.arange(9)
    clean = ncops.logit_stats(logits, target)
    logits[3, column] = value
    stats = ncops.logit_stats(logits, target)
    rest = torch.arange(9) != 3
    for name in (*FLOATS, *DERIVED, *INDICES):
        assert torch.equal(getattr(stats, name)[rest], getattr(clean, name)[rest]), name
    assert all(getattr(stats, name)[3].isnan() for name in (*FLOATS, *DERIVED))
    assert stats.argmax[3] == stats.second_index[3] == stats.target_rank[3] == -1
    assert stats.valid[3] and not stats.correct[3]


def test_ignored_nan_row_leaves_the_loss_and_its_gradient(backend):
    logits, target = randn(4, 5), torch.tensor([1, IGNORE, 2, 3])
    logits[1, 2] = math.nan
    logits.requires_grad_()
    for kind in ("nll", "margin", "z_loss", "entropy"):
        loss = ncops.logit_stats(logits, target).loss(kind)
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and grad.isfinite().all() and (grad[1] == 0).all() and (grad[0] != 0).any()


def test_minus_infinity(backend):
    logits = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf] * 3, [-math.inf, 2.0, -math.inf]])
    stats = ncops.logit_stats(logits, torch.tensor([0, 1, 1]))
    rest = math.log1p(math.exp(-1))
    torch.testing.assert_close(stats.gap, torch.tensor([rest, math.nan, 0.0]), equal_nan=True)
    torch.testing.assert_close(stats.nll, torch.tensor([rest + 1, math.nan, 0.0]), equal_nan=True)
    assert stats.lse[1] == stats.max[1] == -math.inf and stats.entropy[2] == 0
    assert stats.argmax.tolist() == [2, 0, 1] and stats.second_index.tolist() == [0, 1, 0]
    assert stats.second[2] == -math.inf and stats.target_rank.tolist() == [1, 0, 0]
    assert (stats.mean == -math.inf).all() and stats.var.isnan().all()


@pytest.mark.parametrize("bad", [-7, 5])
def test_target_out_of_range(backend, bad):
    target = torch.tensor([[0, IGNORE, 1], [2, bad, 99]])
    with pytest.raises(ValueError, match=rf"target: .*\[0, 5\).*got {bad} at row 4"):
        ncops.logit_stats(randn(2, 3, 5), target)


def test_another_ignore_index(backend):
    logits = randn(3, 4)
    logits[:, 3] += 9
    stats = ncops.logit_stats(logits, torch.tensor([0, 3, 2]), ignore_index=3)
    assert stats.valid.tolist() == [True, False, True] and stats.nll[1] == 0
    assert stats.argmax.tolist() == [3, 3, 3] and not stats.correct.any()  # what is ignored is not right either
    torch.testing.assert_close(stats.loss("nll"), F.cross_entropy(logits, torch.tensor([0, 3, 2]), ignore_index=3))


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(3, 0), None, ValueError, r"logits: expected .*at least one class, got \(3, 0\)"),
        (torch.tensor(1.0), None, ValueError, r"logits: expected shape"),
        (torch.zeros(3, 2, dtype=torch.int32), None, ValueError, "logits: expected float32"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), ValueError, "target: expected shape"),
        (torch.zeros(3, 2), [0, 1, 0], TypeError, "target: expected a tensor, got list"),
    ],
)
def test_errors(logits, target, error, message):
    with pytest.raises(error, match=message):
        ncops.logit_stats(logits, target)


def test_a_scale_that_requires_a_gradient_is_refused():
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match=r"scale: .*into it \(logit_stats\(logits \* scale, ...\)\)"):
        ncops.logit_stats(torch.randn(3, 4), scale=scale)
    with pytest.raises(ValueError, match="ignore_index: expected an integer"):
        ncops.logit_stats(torch.randn(3, 4), ignore_index=0.5)
    # What the message says trains it.
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    ours, theirs = (
        torch.autograd.grad(loss, scale)[0]
        for loss in (
            ncops.logit_stats(logits * scale, target).loss("nll"),
            torch.nn.functional.cross_entropy(logits * scale, target),
        )
    )
    torch.testing.assert_close(ours, theirs)


def test_deterministic(backend):
    size = (40, 300) if backend == "triton" else (300, 3001)  # Triton's interpreter is slow
    logits, target = randn(*size, dtype=torch.float32), random_labels(*size)
    assert_deterministic(lambda: ncops.logit_stats(logits, target)[:13], backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    logits = randn(9, 7, dtype=dtype).requires_grad_()
    torch.library.opcheck(torch.ops.ncops.logit_stats.default, (logits, random_labels(9, 7), 0.5, 0.0, IGNORE))
    torch.library.opcheck(torch.ops.ncops.logit_stats.default, (logits.detach(), None, 1.0, 0.0, IGNORE))


def test_compile(backend):
    target = random_labels(9, 7)
    assert_compiles(lambda z: ncops.logit_stats(z, target).loss("nll"), randn(9, 7))


@dtypes
@pytest.mark.parametrize("classes", [767, 768, 2047, 2048, 2063, 4097, 20001])
@pytest.mark.parametrize("strided", [False, True])
def test_long_rows(classes, dtype, strided):
    """Long rows are read one by one, in blocks: ties, masks, NaN, what is past the last whole vector."""
    torch.manual_seed(classes)
    logits = torch.randn(9, classes).to(dtype)
    middle, half = classes * 2 // 3, classes // 2
    logits[1, [100, middle]] = 9.0
    logits[2:4] = -math.inf
    logits[2, middle] = 1.0
    logits[4, 7] = math.nan
    logits[5, -1] = 30.0
    logits[6] = 3.0
    logits[7] = torch.linspace(-3, 3, classes).to(dtype)  # every block holds a new maximum and second
    logits[8, half:] = -math.inf
    target = torch.tensor([5, 100, middle, 0, 1, classes - 1, 17, half, 3])
    source = torch.stack([logits, -logits], 2)[..., 0] if strided else logits
    stats = ncops.logit_stats(source, target)
    with ncops.use_backend("reference"):
        expected = ncops.logit_stats(logits, target)
    for name, value, truth in zip(stats._fields, stats, expected, strict=True):
        torch.testing.assert_close(
            value, truth, equal_nan=True, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=2e-6, msg=name
        )
    assert stats.argmax[[1, 2, 3, 4, 5, 6]].tolist() == [100, middle, 0, -1, classes - 1, 0]
    assert stats.second_index[1] == middle and stats.second_index[6] == 1 and stats.target_rank[6] == 0


@dtypes
@pytest.mark.parametrize("depth", [80, 90, 800])
def test_terms_that_vanish(dtype, depth):
    """Logits so far below the maximum that their terms are zero, in a block of near ones and in blocks of their own."""
    logits = torch.randn(2, 20_001).to(dtype)
    logits[:, 9_000:9_100] -= depth
    logits[1, 15_000:] -= depth
    stats, truth, theirs = ncops.logit_stats(logits), naive(logits.double()), naive(plain(logits)[0])
    for name in ("lse", "gap", "entropy", "sum_squared_prob"):
        assert_accurate(getattr(stats, name), theirs[name], truth[name], what=name)


def test_a_first_block_unlike_millions_of_other_logits():
    """The shift of the moments follows the mean: that of the first block would cost the variance two digits."""
    logits = torch.randn(1, 2_000_000)
    logits[:, 2048:] += 3000
    found = ncops.logit_stats(logits).var.double()
    torch.testing.assert_close(found, logits.double().var(1, correction=0), rtol=1e-6, atol=0)


@dtypes
def test_long_rows_far_from_zero(dtype):
    """Moments about a shift: neither a large common offset nor a first block unlike the rest may cost their digits."""
    logits = torch.randn(3, 5000, dtype=torch.float64)
    logits[0] += 200
    logits[1, :64] -= 50
    logits = logits.sort(1).values.to(dtype) if dtype.itemsize > 2 else logits.to(dtype)
    stats, truth = ncops.logit_stats(logits), naive(logits.double())
    theirs = naive(plain(logits)[0])
    for name in ("mean", "var", "lse", "gap", "entropy"):
        assert_accurate(getattr(stats, name), theirs[name], truth[name], what=name)
