"""pair_stats against dense float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from testing import (
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
)

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.ops.pair_stats import KERNELS

FLOATS = ("mean", "var", "min", "max", "row_max")
POWER = 1.5
kernels = pytest.mark.parametrize("kernel", KERNELS)


def values(rows, kernel, variances, power=POWER):
    """The K x K kernel matrix from direct differences."""
    if kernel == "dot":
        return rows @ rows.T
    if kernel == "cosine":
        return (rows @ rows.T) / (rows.norm(dim=1)[:, None] * rows.norm(dim=1))
    k = rows.shape[0]
    if kernel == "angle":
        unit, eye = rows / rows.norm(dim=1, keepdim=True), torch.eye(k, dtype=rows.dtype)[..., None]
        apart, together = ((unit[:, None] + sign * unit + eye).norm(dim=2) for sign in (-1, 1))
        return 2 * torch.atan2(apart, together)
    # The diagonal never counts, but an infinite slope there would turn every gradient into NaN.
    difference = rows[:, None] - rows + torch.eye(k, dtype=rows.dtype)[..., None]
    d2 = difference.square().sum(2)
    return {
        "distance": d2.sqrt(),
        "log_distance": d2.sqrt().log(),
        "riesz": d2.sqrt() ** -power,
        "gaussian": (-power * d2).exp(),
        "cdnv": 0 if variances is None else (variances[:, None] + variances) / (2 * d2**power),
    }[kernel]


def naive(rows, kernel, variances=None, valid=None, power=POWER):
    k = rows.shape[0]
    valid = torch.ones(k, dtype=torch.bool) if valid is None else valid
    value = values(rows, kernel, variances, power)
    pair = valid[:, None] & valid & ~torch.eye(k, dtype=torch.bool)
    picked = value[pair.triu(1)]
    out = {"count": torch.tensor(picked.numel())}
    if picked.numel():
        mean = picked.mean()
        out |= {"mean": mean, "var": (picked - mean).square().mean(), "min": picked.amin(), "max": picked.amax()}
    else:
        out |= dict.fromkeys(("mean", "var", "min", "max"), rows.new_full((), math.nan))
    if k:
        best, index = value.masked_fill(~pair, -math.inf).max(1)
        out["row_max"], out["row_argmax"] = best.where(pair.any(1), math.nan), index.where(pair.any(1), -1)
    else:
        out["row_max"], out["row_argmax"] = rows.new_zeros(0), torch.zeros(0, dtype=torch.int64)
    return out


def problem(k, d, kernel, dtype=torch.float64):
    rows = randn(k, d, dtype=dtype, shift=0.3)
    return rows, torch.rand(k, dtype=compute_dtype(dtype)) + 0.1 if kernel == "cdnv" else None


def larger_blocks(backend, monkeypatch, size=64):
    """Triton's interpreter pays by the tile, not by the pair: fewer tiles where there are many rows."""
    if backend == "triton":
        monkeypatch.setattr("ncops.triton_kernels._launch.INTERPRETED_BLOCK", size)


@dtypes
@kernels
@pytest.mark.parametrize("shape", [(2, 1), (3, 17), (33, 65), (65, 33), (130, 8)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_matches_dense_float64(backend, monkeypatch, shape, kernel, dtype, masked):
    if backend == "triton" and shape[0] > 3:
        if masked == KERNELS.index(kernel) % 2 or (dtype != torch.float32 and shape[0] == 130):
            pytest.skip("half of the grid: the interpreter takes 10 ms a tile")
    block_rows(monkeypatch, 8 * 13 * shape[0])
    if shape[0] > 40:
        larger_blocks(backend, monkeypatch, 32)
    rows, variances = problem(*shape, kernel, dtype)
    if shape[1] == 1:
        rows = torch.tensor([[1.0], [-2.5]], dtype=dtype)
    valid = torch.rand(shape[0]) < 0.7 if masked else None
    ours = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid)
    theirs, truth = (naive(a, kernel, b, valid) for a, b in (plain(rows, variances), exact(rows, variances)))
    assert ours.count == truth["count"]
    square = rows.double().square().sum(1).max().item()
    size = values(*exact(rows), kernel, *exact(variances)).fill_diagonal_(0).nan_to_num(0).abs().max().item()
    # A squared distance from the product carries roundings of the squared norms: the design allows 1 % as the least
    # share, so up to 100 roundings in the kernel's argument, fewer the further apart the rows are.
    eps = 8 if kernel in ("dot", "cosine") else 100
    for name in FLOATS:
        got = getattr(ours, name)
        assert got.dtype == compute_dtype(dtype)
        scale = max(size, square) if kernel == "dot" else max(size, 1) if kernel == "log_distance" else size
        scale = scale**2 if name == "var" else scale
        assert_accurate(got, theirs[name], truth[name], what=name, scale=scale, eps=eps)
    index = ours.row_argmax
    assert torch.equal(index < 0, truth["row_argmax"] < 0)
    value = values(*exact(rows), kernel, *exact(variances))
    found = index >= 0
    picked = value[torch.arange(shape[0])[found], index[found]]
    near = 2 * eps * torch.finfo(ours.mean.dtype).eps * max(size, square if kernel == "dot" else 1)
    assert (picked >= truth["row_max"][found] - near).all() and (index != torch.arange(shape[0])).all()
    if masked:
        assert valid[index[found]].all()


def test_by_hand(backend):
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])  # distances 5, 3, 4
    stats = ncops.pair_stats(rows, "distance")
    assert stats.count == 3
    assert [stats.mean.item(), stats.min.item(), stats.max.item()] == pytest.approx([4, 3, 5], rel=1e-6)
    assert stats.var.item() == pytest.approx(2 / 3)
    assert stats.row_max.tolist() == pytest.approx([5, 5, 4], rel=1e-6) and stats.row_argmax.tolist() == [1, 0, 1]
    assert ncops.pair_stats(rows, "dot").mean.item() == 3
    assert ncops.pair_stats(rows[1:], "cosine").mean.item() == pytest.approx(0.6)
    assert ncops.pair_stats(rows[1:], "angle").mean.item() == pytest.approx(math.atan2(4, 3))
    assert ncops.pair_stats(rows[1:], "log_distance").mean.item() == pytest.approx(math.log(4))
    assert ncops.pair_stats(rows[1:], "riesz", power=2).mean.item() == pytest.approx(1 / 16)
    assert ncops.pair_stats(rows[1:], "gaussian", power=0.1).mean.item() == pytest.approx(math.exp(-1.6))
    variances = torch.tensor([1.0, 2.0, 6.0])
    assert ncops.pair_stats(rows[1:], "cdnv", variances=variances[1:]).mean.item() == pytest.approx(8 / 32)


@layouts
@pytest.mark.parametrize("kernel", ["cosine", "gaussian"])
def test_layouts(backend, layout, kernel):
    rows = LAYOUTS[layout](randn(33, 17, dtype=torch.float32))
    ours, same = (ncops.pair_stats(r, kernel, power=0.05) for r in (rows, rows.contiguous()))
    torch.testing.assert_close(list(ours), list(same), equal_nan=True)
    truth = naive(rows.double(), kernel, power=0.05)
    torch.testing.assert_close(ours.row_max.double(), truth["row_max"], rtol=1e-5, atol=1e-5)


@kernels
def test_none_and_one(backend, kernel):
    for k in (0, 1, 4):
        rows, variances = problem(k, 3, kernel)
        valid = torch.zeros(k, dtype=torch.bool)
        valid[:1] = True
        stats = ncops.pair_stats(rows, kernel, variances=variances, valid=valid)
        assert stats.count == 0 and stats.row_max.shape == stats.row_argmax.shape == (k,)
        assert all(getattr(stats, name).isnan().all() for name in FLOATS) and (stats.row_argmax == -1).all()


def test_ties_go_to_the_lowest(backend, monkeypatch):
    block_rows(monkeypatch, 8 * 5 * 40)
    rows = torch.randint(-1, 2, (40, 3)).float()  # exact products, ties everywhere
    stats, truth = ncops.pair_stats(rows, "dot"), naive(rows.double(), "dot")
    value = values(rows, "dot", None).fill_diagonal_(-99)
    lowest = (value == value.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(stats.row_argmax, lowest) and torch.equal(stats.row_max.double(), truth["row_max"])


@pytest.mark.parametrize("kernel", ["distance", "log_distance", "riesz", "cdnv"])
@pytest.mark.parametrize(("offset", "apart"), [(0.0, 1e-3), (0.0, 0.05), (1000.0, 1e-3)])
def test_close_pairs_keep_their_digits(backend, kernel, offset, apart):
    # Close pairs of rows of norm 5 (and a common offset): the product alone has few digits of their distance, or none.
    base = randn(20, 16) + offset
    rows = torch.cat([base, base + apart * randn(20, 16)]).float()
    variances = torch.rand(40) if kernel == "cdnv" else None
    ours = ncops.pair_stats(rows, kernel, variances=variances)
    truth = naive(rows.double(), kernel, None if variances is None else variances.double(), power=1)
    for name in ("mean", "min", "max", "row_max"):
        torch.testing.assert_close(getattr(ours, name).double(), truth[name], rtol=2e-5, atol=1e-6)
    if kernel in ("riesz", "cdnv"):
        assert torch.equal(ours.row_argmax, truth["row_argmax"])


def test_coincident_rows(backend):
    rows = randn(5, 3, dtype=torch.float32)
    rows[3] = rows[1]
    assert ncops.pair_stats(rows, "distance").min == 0
    assert ncops.pair_stats(rows, "log_distance").min == -math.inf
    riesz = ncops.pair_stats(rows, "riesz")
    assert riesz.max == riesz.mean == math.inf and riesz.row_argmax[[1, 3]].tolist() == [3, 1]
    assert ncops.pair_stats(rows, "gaussian").max == 1
    assert ncops.pair_stats(rows, "cdnv", variances=torch.ones(5)).max == math.inf
    same = ncops.pair_stats(rows[[1, 3]], "log_distance")
    assert same.row_max.tolist() == [-math.inf] * 2 and same.row_argmax.tolist() == [1, 0]
    rows.requires_grad_()
    (grad,) = torch.autograd.grad(ncops.pair_stats(rows, "distance").mean, rows)
    others = [0, 2, 4]
    expected = sum(torch.nn.functional.normalize(rows[1] - rows[j], dim=0) for j in others) / 10
    torch.testing.assert_close(grad[1], expected)


def test_a_zero_or_nan_row(backend):
    rows = randn(6, 3, dtype=torch.float32)
    rows[2] = 0
    stats = ncops.pair_stats(rows, "cosine")
    assert stats.mean.isnan() and stats.row_max.isnan().all() and (stats.row_argmax == -1).all()
    valid = torch.arange(6) != 2
    for bad in (0, math.nan, math.inf):
        rows[2] = bad
        for kernel in ("cosine", "distance"):
            ours = ncops.pair_stats(rows, kernel, valid=valid)
            torch.testing.assert_close(ours.mean.double(), naive(rows[valid].double(), kernel)["mean"])
            assert ours.row_max[valid].isfinite().all() and ours.row_max[2].isnan()


@kernels
def test_products_that_overflow_float32_are_not_taken_for_numbers(backend, kernel):
    """Rows of length 1e20 among others: what is finite is right, without them everything is."""
    rows = torch.tensor([[1, 1, 0], [1, -1, 0], [1 + 1e-6, 1, 0], [-1, 0, 0]]) * 1e20
    rows = torch.cat([rows, torch.tensor([[1.0, 2, 3], [0, 0, -1]])])
    variances = torch.ones(6) if kernel == "cdnv" else None
    ours = ncops.pair_stats(rows, kernel, variances=variances, power=POWER)
    truth = naive(*exact(rows), kernel, *exact(variances))
    least = 1e-6 if kernel == "cosine" else 1e-19
    assert ours.count == 15
    if kernel in ("dot", "distance", "log_distance"):
        assert not ours.mean.isfinite() and not ours.var.isfinite()
    for name in ("mean", "min", "max", "row_max"):
        found, expected = getattr(ours, name), truth[name].float()
        finite = found.isfinite()
        torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=least)
    small = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=torch.arange(6) > 3)
    assert small.row_max[4:].isfinite().all() and small.mean.isfinite()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_rows_without_a_dimension_are_zero_rows(backend, dtype):
    rows = torch.zeros(4, 0, dtype=dtype, requires_grad=True)
    stats = ncops.pair_stats(rows, "cosine")
    assert torch.stack(stats[:4]).isnan().all() and stats.row_max.isnan().all() and (stats.row_argmax == -1).all()
    assert stats.count == 6
    (stats.mean + stats.row_max.sum()).backward()
    assert rows.grad.shape == (4, 0)
    flat = ncops.pair_stats(rows, "dot")
    assert torch.stack(flat[:4]).tolist() == [0] * 4 and flat.row_argmax.tolist() == [1, 0, 0, 0]


@kernels
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(backend, monkeypatch, kernel, masked):
    block_rows(monkeypatch, 8 * 3 * 9)
    rows, variances = problem(9, 4, kernel)
    valid = torch.arange(9) != 3 if masked else None
    inputs = [t.requires_grad_() for t in (rows, variances) if t is not None]
    weight = randn(9).where(torch.ones(9, dtype=torch.bool) if valid is None else valid, 0)

    def objective(out):
        row_max = out["row_max"].where(weight != 0, 0)
        return out["mean"] * 3 + (row_max * weight).sum()

    def ours(rows, variances=None):
        return objective(ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid)._asdict())

    def dense(rows, variances=None):
        return objective(naive(rows, kernel, variances, valid))

    assert torch.autograd.gradcheck(ours, inputs, fast_mode=backend == "triton")
    mine, truth = (torch.autograd.grad(f(*inputs), inputs) for f in (ours, dense))
    torch.testing.assert_close(mine, truth)


@pytest.mark.parametrize("kernel", ["distance", "riesz", "cdnv"])
def test_gradients_of_close_pairs(backend, kernel):
    base = randn(6, 8)
    rows = torch.cat([base, base + 1e-3 * randn(6, 8)]).float()
    variances = torch.rand(12) + 0.1 if kernel == "cdnv" else None

    def gradient(function, rows, variances):
        rows = rows.detach().requires_grad_()
        return torch.autograd.grad(function(rows, variances), rows)[0]

    mine = gradient(lambda r, v: ncops.pair_stats(r, kernel, variances=v).mean, rows, variances)
    truth = gradient(lambda r, v: naive(r, kernel, v, power=1)["mean"], *exact(rows, variances))
    assert (mine - truth).abs().max() < 1e-5 * truth.abs().max()


def test_only_mean_and_row_max_carry_gradients(backend):
    rows = randn(5, 3).requires_grad_()
    stats = ncops.pair_stats(rows, "dot")
    needs = {name for name in stats._fields if getattr(stats, name).requires_grad}
    assert needs == {"mean", "row_max"}
    (grad,) = torch.autograd.grad(stats.mean, rows, create_graph=True)
    with pytest.raises(NotImplementedError, match="pair_stats: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": "l2"}, ValueError, "kernel: expected one of dot, cosine, .*cdnv, got 'l2'"),
        ({"kernel": "cdnv"}, ValueError, r"variances: expected shape \(K,\) for kernel 'cdnv', got None"),
        ({"variances": torch.ones(4)}, ValueError, "variances: expected None for kernel 'dot'"),
        ({"kernel": "cdnv", "variances": torch.ones(3)}, ValueError, r"variances: expected shape \(K,\) = \(4,\)"),
        ({"valid": torch.ones(4)}, ValueError, "valid: expected torch.bool, got torch.float32"),
        ({"valid": torch.arange(4)}, ValueError, "valid: expected torch.bool, got torch.int64"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, ValueError, r"valid: expected shape \(K,\) = \(4,\), got \(3,\)"),
        ({"valid": [True] * 4}, TypeError, "valid: expected a tensor, got list"),
        ({"rows": torch.ones(4)}, ValueError, "rows: expected 2 dimensions"),
        ({"labels": torch.ones(4)}, ValueError, "labels: expected an integer dtype, got torch.float32"),
        ({"labels": torch.arange(3)}, ValueError, r"labels: expected shape rows.shape\[:-1\] = \(4,\), got \(3,\)"),
        ({"labels": [0] * 4}, TypeError, "labels: expected a tensor, got list"),
        (
            {"labels": torch.tensor([0, -100, -1, -2])},
            ValueError,
            "labels: expected values of 0 or more or ignore_index=-100, got -1 at row 2 of 4",
        ),
        ({"labels": torch.arange(4), "ignore_index": None}, TypeError, "ignore_index: expected an integer, got None"),
        ({"power": torch.ones((), requires_grad=True)}, ValueError, "power: expected a number, got a tensor that"),
        ({"power": None}, TypeError, "power: expected a number, got None"),
    ],
)
def test_errors(change, error, message):
    arguments = {"rows": torch.randn(4, 3), "kernel": "dot"} | change
    with pytest.raises(error, match=message):
        ncops.pair_stats(arguments.pop("rows"), arguments.pop("kernel"), **arguments)


@pytest.mark.parametrize("kernel", ["dot", "distance"])
def test_deterministic(backend, kernel, monkeypatch):
    larger_blocks(backend, monkeypatch)
    rows = randn(700 if backend != "triton" else 200, 65, dtype=torch.float32)
    assert_deterministic(lambda: ncops.pair_stats(rows, kernel), backend)


@pytest.mark.parametrize("kernel", ["cosine", "cdnv"])
def test_opcheck(backend, kernel):
    rows, variances = problem(9, 5, kernel, torch.float32)
    inputs = (rows.requires_grad_(), None if variances is None else variances.requires_grad_())
    valid = torch.ones(9, dtype=torch.bool)  # opcheck takes NaN for a difference
    arguments = (inputs[0], kernel, inputs[1], 1.0, valid, None, -100, False)
    torch.library.opcheck(torch.ops.ncops.pair_stats.default, arguments)


def test_compile(backend):
    assert_compiles(lambda r, v: ncops.pair_stats(r, "cdnv", variances=v), randn(9, 5), torch.rand(9).double())
