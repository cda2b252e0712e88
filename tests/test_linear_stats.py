"""linear_stats against dense float64 arithmetic, and where float32 arithmetic usually fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from logit_columns import DERIVED, FLOATS, collapsed, dense, naive, problem
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

INTEGERS = ("argmax", "second_index", "target_rank", "valid", "correct")
# One row, one class, one feature; below, at and above register tiles and vectors; nothing at all.
SHAPES = [
    (1, 1, 1),
    (1, 5, 2),
    (2, 17, 33),
    (33, 65, 130),
    (130, 33, 5),
    (65, 2, 257),
    (17, 130, 1),
    (5, 1, 64),
    (0, 4, 7),
]


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_column_matches_dense_float64(backend, shape, dtype):
    x, weight, bias, target = problem(*shape, dtype, bias=shape[0] % 2 == 1)
    stats = ncops.linear_stats(x, weight, bias, target, scale=0.7)
    ours = naive(dense(*plain(x, weight, bias), 0.7), target)
    z = dense(*exact(x, weight, bias), 0.7)
    truth = naive(z, target)
    size = z.abs().max().item() if z.numel() else 0
    for name in (*FLOATS, *DERIVED):
        # Statistics cannot be better than the logits they come from: a few roundings of the logits are allowed.
        scale = {"sumsq": z.numel() and z.square().sum(1).max().item(), "sum": size * shape[2], "var": size**2}
        assert_accurate(
            getattr(stats, name), ours[name], truth[name], what=name, scale=max(1, scale.get(name, size)), eps=4
        )
        assert getattr(stats, name).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Indices may differ from float64's only between logits closer than the logits' own error.
    near = 8 * torch.finfo(stats.lse.dtype).eps * max(1, size) * shape[1] ** 0.5
    rows = torch.arange(shape[0])
    assert (z[rows, stats.argmax] >= truth["max"] - near).all()
    assert torch.equal(stats.valid, truth["valid"])
    if shape[2] > 1 and shape[0]:
        assert (z[rows, stats.second_index] >= truth["second"] - near).all()
        assert (stats.second_index != stats.argmax).all()
    t = truth["target_logit"][:, None]
    low, high = (z > t + near).sum(1), (z > t - near).sum(1)
    assert torch.where(
        stats.valid, (low <= stats.target_rank) & (stats.target_rank <= high), stats.target_rank == -1
    ).all()


@dtypes
@pytest.mark.parametrize("shape", [(30, 2, 3), (40, 5, 33), (64, 4, 130)], ids=str)
def test_indices_are_exact_and_ties_go_to_the_lowest(backend, shape, dtype):
    n, d, v = shape
    # Small integers: products are exact in every dtype, and ties are everywhere.
    x, weight = torch.randint(-2, 3, (n, d)).to(dtype), torch.randint(-2, 3, (v, d)).to(dtype)
    weight[-1] = weight[0]
    target = random_labels(n, v)
    stats = ncops.linear_stats(x, weight, None, target)
    truth = naive(dense(*exact(x, weight), None, 1), target)
    assert (truth["max"] == truth["second"]).any()
    for name in INTEGERS:
        assert torch.equal(getattr(stats, name), truth[name]), name
    for name in ("max", "second", "target_logit", "margin"):
        assert torch.equal(getattr(stats, name).double(), truth[name]), name


@layouts
@pytest.mark.parametrize("rows", [3, 33])
def test_layouts(backend, layout, rows):
    x, weight, bias, target = problem(rows, 17, 65, torch.float32)
    x, weight, bias = LAYOUTS[layout](x), LAYOUTS[layout](weight), bias.repeat_interleave(2)[::2]
    stats = ncops.linear_stats(x, weight, bias, target.repeat_interleave(2)[::2])
    same = ncops.linear_stats(x.contiguous(), weight.contiguous(), bias.contiguous(), target)
    torch.testing.assert_close(list(stats[:13]), list(same[:13]))
    truth = naive(dense(*exact(x, weight, bias), 1), target)
    torch.testing.assert_close(stats.nll.double(), truth["nll"], rtol=1e-5, atol=1e-5)


def test_leading_dimensions_and_no_target(backend):
    x, weight, bias, _ = problem(24, 5, 7, torch.float32)
    stats = ncops.linear_stats(x.view(2, 3, 4, 5), weight, bias)
    flat = ncops.linear_stats(x, weight, bias)
    for name in ("lse", "argmax", "second_index", "entropy", "sumsq"):
        assert getattr(stats, name).shape == (2, 3, 4)
        assert torch.equal(getattr(stats, name).flatten(), getattr(flat, name))
    assert stats.nll is stats.target_logit is stats.target_rank is stats.valid is stats.target is None
    one = ncops.linear_stats(x[0], weight, bias, torch.tensor(3))
    assert one.nll.shape == () and one.margin.shape == ()
    assert torch.equal(one.correct, one.argmax == 3)
    for name in ("margin", "correct"):
        with pytest.raises(ValueError, match=f"{name}: expected statistics computed with a target"):
            getattr(stats, name)


def test_by_hand(backend):
    # Logits 2 * (x @ I) + bias = [2, 0, 1]: probabilities e^2, 1, e over their sum.
    stats = ncops.linear_stats(
        torch.tensor([[1.0, 0.0, 0.0]]), torch.eye(3), torch.tensor([0.0, 0.0, 1.0]), torch.tensor([2]), scale=2.0
    )
    total = math.e**2 + 1 + math.e
    expected = {
        "lse": math.log(total), "gap": math.log(total) - 2, "max": 2, "argmax": 0, "second": 1, "second_index": 2,
        "target_logit": 1, "target_rank": 1, "nll": math.log(total) - 1, "mean": 1, "var": 2 / 3, "margin": -1,
        "entropy": math.log(total) - (2 * math.e**2 + math.e) / total, "max_prob": math.e**2 / total, "sum": 3,
        "sumsq": 5, "correct": 0, "valid": 1,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(stats, name).item() == pytest.approx(value, rel=2e-6), name


@pytest.mark.parametrize("scale", [0.0, -1.5])
def test_scale_multiplies_products_not_bias(backend, scale):
    x, weight, bias, target = problem(9, 5, 33, torch.float64)
    stats = ncops.linear_stats(x, weight, bias, target, scale=scale)
    truth = naive(scale * (x @ weight.T) + bias, target)
    torch.testing.assert_close(stats.nll, truth["nll"])
    assert torch.equal(stats.argmax, truth["argmax"])


def test_collapsed_regime_keeps_its_digits(backend):
    x, weight, target = collapsed()
    stats = ncops.linear_stats(x, weight, None, target)
    z = weight.double().T
    others = z[~torch.eye(12, dtype=torch.bool)].view(12, 11)
    ratio = (others - 30).exp().sum(1)
    for name, truth in {
        "nll": ratio.log1p(),
        "gap": ratio.log1p(),
        "entropy": ratio.log1p() - ((others - 30).exp() * (others - 30)).sum(1) / (1 + ratio),
    }.items():
        relative = (getattr(stats, name).double() / truth - 1).abs().max()
        assert relative < 1e-5, (name, relative)
    assert (F.cross_entropy(z.float(), target, reduction="none") == 0).all()  # what the usual expression makes of it


@pytest.mark.parametrize("value", [math.nan, math.inf])
@dtypes
def test_a_bad_logit_poisons_its_row_alone(backend, value, dtype):
    x, weight, _, _ = problem(9, 5, 33, dtype)
    weight[:, 0] = weight[:, 0].abs() + 1
    target = torch.arange(9)
    clean = ncops.linear_stats(x, weight, None, target)
    x[3, 0] = value
    stats = ncops.linear_stats(x, weight, None, target)
    rest = torch.arange(9) != 3
    for name in (*FLOATS, "margin", "max_prob"):
        assert getattr(stats, name)[3].isnan(), name
        torch.testing.assert_close(getattr(stats, name)[rest], getattr(clean, name)[rest])
    for name in ("argmax", "second_index", "target_rank"):
        assert getattr(stats, name)[3] == -1
        assert torch.equal(getattr(stats, name)[rest], getattr(clean, name)[rest])
    assert stats.valid[3] and not stats.correct[3]


def test_minus_infinity_masks_a_class(backend):
    x, weight, bias, target = problem(9, 5, 33, torch.float64)
    masked = torch.tensor([0, 7, 32])
    target = torch.arange(9) + 10
    bias[masked] = -math.inf
    kept = torch.ones(33, dtype=torch.bool).index_fill(0, masked, False)
    stats = ncops.linear_stats(x, weight, bias, target)
    truth = naive(dense(x, weight, bias, 1)[:, kept], kept.cumsum(0)[target] - 1)
    for name in ("lse", "gap", "max", "second", "target_logit", "nll", "entropy"):
        torch.testing.assert_close(getattr(stats, name), truth[name])
    assert torch.equal(stats.target_rank, truth["target_rank"])
    assert (stats.mean == -math.inf).all() and stats.var.isnan().all()
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    stats = ncops.linear_stats(*inputs, target)
    g_x, g_weight, g_bias = torch.autograd.grad(stats.nll.sum() + stats.entropy.sum() + stats.second.sum(), inputs)
    assert g_x.isfinite().all() and (g_weight[masked] == 0).all() and (g_bias[masked] == 0).all()
    all_masked = ncops.linear_stats(x, weight, torch.full_like(bias, -math.inf), target)
    assert (all_masked.max == -math.inf).all() and (all_masked.lse == -math.inf).all()
    assert (all_masked.argmax == 0).all() and (all_masked.second_index == 1).all()
    assert all_masked.gap.isnan().all() and all_masked.nll.isnan().all() and all_masked.entropy.isnan().all()
    assert (all_masked.target_rank == 0).all() and (all_masked.mean == -math.inf).all() and all_masked.var.isnan().all()


def test_target_masked_by_minus_infinity(backend):
    bias = torch.tensor([0.0, -math.inf, 1.0])
    stats = ncops.linear_stats(torch.zeros(1, 2), torch.zeros(3, 2), bias, torch.tensor([1]))
    assert stats.nll == math.inf and stats.target_logit == -math.inf and stats.margin == -math.inf
    assert stats.target_rank == 2


def test_one_class(backend):
    x = randn(5, 3).requires_grad_()
    stats = ncops.linear_stats(x, randn(1, 3), None, torch.tensor([0, 0, IGNORE, 0, 0]))
    assert (stats.second == -math.inf).all() and (stats.second_index == -1).all()
    assert (stats.gap == 0).all() and (stats.nll == 0).all() and (stats.entropy == 0).all() and (stats.var == 0).all()
    assert stats.margin.tolist() == [math.inf, math.inf, 0, math.inf, math.inf]
    (grad,) = torch.autograd.grad(stats.nll.sum() + stats.second.sum(), x)
    assert (grad == 0).all()


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_target_out_of_range(backend, bad):
    x, weight, bias, target = problem(9, 5, 7, torch.float32)
    target[4], target[6] = bad, -3
    with pytest.raises(ValueError, match=rf"target: .*\[0, 7\).*got {bad} at row 4"):
        ncops.linear_stats(x, weight, bias, target)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.randn(7, 4)}, ValueError, r"weight: expected shape \(V, D\) = \(7, 5\), got \(7, 4\)"),
        ({"weight": torch.randn(0, 5)}, ValueError, "weight: expected at least one class"),
        ({"weight": torch.randn(7, 5).half()}, ValueError, "weight: expected the dtype of x"),
        ({"bias": torch.randn(7).double()}, ValueError, "bias: expected the dtype of x"),
        ({"bias": torch.randn(6)}, ValueError, r"bias: expected shape \(V,\) = \(7,\), got \(6,\)"),
        ({"target": torch.zeros(8, dtype=torch.int64)}, ValueError, r"target: expected shape x.shape\[:-1\]"),
        ({"target": torch.zeros(9)}, ValueError, "target: expected an integer dtype"),
        ({"x": torch.zeros(9, 5, dtype=torch.int64)}, ValueError, "x: expected float32"),
        ({"x": [[1.0]]}, TypeError, "x: expected a tensor, got list"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected shape"),
        ({"weight": torch.eye(5).to_sparse()}, ValueError, "weight: expected a dense tensor, got layout"),
        ({"ignore_index": None}, TypeError, "ignore_index: expected an integer, got None"),
        ({"ignore_index": -1.5}, ValueError, r"ignore_index: expected an integer, got -1\.5"),
        ({"scale": "2"}, TypeError, "scale: expected a number, got '2'"),
        ({"scale": torch.ones(7)}, ValueError, r"scale: expected a number, got shape \(7,\)"),
        (
            {"scale": torch.ones((), requires_grad=True)},
            ValueError,
            r"scale: .* requires a gradient: fold a learned temperature into x \(linear_stats\(x \* scale, ...\)\)",
        ),
    ],
)
def test_errors(change, error, message):
    arguments = {"x": torch.randn(9, 5), "weight": torch.randn(7, 5), "bias": torch.randn(7), "target": None}
    with pytest.raises(error, match=message):
        ncops.linear_stats(**(arguments | change))


@pytest.mark.parametrize("scale", [np.float32(0.5), torch.tensor(0.5), np.array(0.5)], ids=str)
def test_scale_is_any_number(scale):
    x, weight, bias, target = problem(9, 5, 7, torch.float32)
    found, expected = (ncops.linear_stats(x, weight, bias, target, scale=s).nll for s in (scale, 0.5))
    assert torch.equal(found, expected)


def test_meta_tensors_have_shapes():
    x, weight, bias, target = (t.to("meta") for t in problem(9, 5, 7, torch.bfloat16))
    stats = ncops.linear_stats(x, weight, bias, target)
    assert stats.nll.shape == (9,) and stats.nll.dtype == torch.float32 and stats.nll.is_meta


def test_sum_of_squares_with_a_masked_class(backend):
    x, weight, bias, target = problem(6, 5, 7, torch.float32)
    plain = ncops.linear_stats(x, weight, bias, target).sumsq
    expected = (x.double() @ weight.double().T + bias).square().sum(1)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)
    bias[2] = -math.inf
    x[4, 1] = math.nan
    x.requires_grad_()
    masked = ncops.linear_stats(x, weight, bias, target)
    rows = [0, 1, 2, 3, 5]
    assert (masked.sumsq[rows] == math.inf).all() and masked.sumsq[4].isnan()
    (gradient,) = torch.autograd.grad(masked.sumsq[rows].sum(), x)
    assert (gradient[rows] == 0).all()


def test_deterministic(backend):
    size = (40, 20, 70) if backend == "triton" else (300, 65, 1500)  # Triton's interpreter is slow
    x, weight, bias, target = problem(*size, torch.float32)
    weight.requires_grad_()

    def run():
        stats = ncops.linear_stats(x, weight, bias, target)
        return [*stats[:13], *torch.autograd.grad(stats.loss("nll"), weight)]

    assert_deterministic(run, "reference")
    assert_deterministic(lambda: ncops.linear_stats(x, weight, bias, target)[:13], backend)


def test_reference_blocks_agree(monkeypatch):
    x, weight, bias, target = problem(33, 5, 130, torch.bfloat16)
    with ncops.use_backend("reference"):
        whole = ncops.linear_stats(x, weight, bias, target)
        block_rows(monkeypatch, 8 * 130 * 4)
        torch.testing.assert_close(list(ncops.linear_stats(x, weight, bias, target)[:13]), list(whole[:13]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(backend, dtype):
    x, weight, bias, target = problem(9, 5, 7, dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.ncops.linear_stats.default, (*inputs, target, 1.0, 0.0, IGNORE, False))
    torch.library.opcheck(torch.ops.ncops.linear_stats.default, (x, weight, None, None, 0.5, 0.0, IGNORE, False))


def compiled_loss(x, weight, bias, target):
    stats = ncops.linear_stats(x, weight, bias, target)
    return stats.loss("nll") + stats.loss("margin"), stats.argmax, stats.correct


def test_compile(backend):
    assert_compiles(compiled_loss, *problem(9, 5, 7, torch.float32))


def test_compile_with_inductor():
    assert_compiles(compiled_loss, *problem(9, 5, 7, torch.float32), backend="inductor")
