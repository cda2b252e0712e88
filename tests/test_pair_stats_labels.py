"""pair_stats by class, and the angle near 0 and pi, against float64 NumPy over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testing import (
    LAYOUTS,
    assert_compiles,
    assert_deterministic,
    block_rows,
    dtypes,
    interpreter_blocks,
    layouts,
    randn,
)

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.ops.pair_stats import KERNELS

POWER, IGNORE = 1.5, -100
SCALARS = ("mean", "var", "min", "max", "count")
kernels = pytest.mark.parametrize("kernel", KERNELS)
small_tiles = interpreter_blocks(
    {
        name: {"BLOCK": 16}
        for name in ("pair_products", "pair_distances", "pair_distances_labels", "pair_distances_power", "pair_factors")
    }
)


@pytest.fixture
def native():
    with ncops.use_backend("cpu"):
        yield


def all_pairs(rows, kernel, variances=None, power=POWER):
    """The kernel of every pair of rows, (K, K), from the formula."""
    x = rows.detach().double().numpy()
    k = len(x)
    size = np.linalg.norm(x, axis=1)
    difference = x[:, None] - x
    squares = (difference**2).sum(2) + np.eye(k)  # a pair of a row with itself never counts
    if kernel == "dot":
        return x @ x.T
    unit = x / size[:, None]
    if kernel == "cosine":
        return unit @ unit.T
    if kernel == "angle":
        apart, together = (np.linalg.norm(unit[:, None] + sign * unit, axis=2) for sign in (-1, 1))
        return 2 * np.arctan2(apart, together)
    if kernel == "cdnv":
        v = variances.detach().double().numpy()
        return (v[:, None] + v) / (2 * squares**power)
    of = {
        "distance": np.sqrt, "log_distance": lambda s: 0.5 * np.log(s), "riesz": lambda s: s ** (-power / 2),
        "gaussian": lambda s: np.exp(-power * s),
    }  # fmt: skip
    return of[kernel](squares)


def by_side(values, labels, counted):
    """Statistics of the pairs of one class and of the others, by a loop over pairs."""
    labels, counted = labels.numpy(), counted.numpy()
    sides = []
    for same in (True, False):
        found, best, where = [], np.full(len(labels), math.nan), np.full(len(labels), -1)
        for i in range(len(labels)):
            for j in range(len(labels)):
                if i == j or not (counted[i] and counted[j]) or (labels[i] == labels[j]) != same:
                    continue
                if i < j:
                    found.append(values[i, j])
                if where[i] < 0 or values[i, j] > best[i]:
                    best[i], where[i] = values[i, j], j
        found = np.array(found)
        scalars = (found.mean(), found.var(), found.min(), found.max()) if len(found) else (math.nan,) * 4
        sides.append(dict(zip(SCALARS, (*scalars, len(found)), strict=True)) | {"row_max": best, "row_argmax": where})
    return sides


def problem(k, d, kernel, dtype=torch.float64, classes=4):
    rows = randn(k, d, shift=0.3)
    rows[3] = rows[2] * (1 + 2**-5) + 0.01 * randn(d)  # a close pair, and an opposite one
    rows[5] = -2 * rows[4] + 0.01 * randn(d)
    labels = torch.randint(0, classes, (k,))
    labels[::6] = IGNORE
    variances = torch.rand(k, dtype=compute_dtype(dtype)) + 0.1 if kernel == "cdnv" else None
    return rows.to(dtype), labels, variances, torch.rand(k) < 0.9


def check(stats, expected, values, tolerance):
    for side in (0, 1):
        for name in SCALARS:
            mine = getattr(stats, name)
            assert mine.shape == (2,)
            size = 1 + np.nan_to_num(abs(expected[side][name]))
            assert mine[side].item() == pytest.approx(
                expected[side][name], rel=tolerance, abs=tolerance * size, nan_ok=True
            ), (name, side)
        best = stats.row_max[side].double().numpy()
        np.testing.assert_allclose(best, expected[side]["row_max"], rtol=tolerance, atol=tolerance)
        index = stats.row_argmax[side].numpy()
        assert ((index < 0) == (expected[side]["row_argmax"] < 0)).all()
        found = np.flatnonzero(index >= 0)
        np.testing.assert_allclose(values[found, index[found]], best[found], rtol=tolerance, atol=tolerance)


@dtypes
@kernels
@pytest.mark.parametrize("shape", [(7, 3), (37, 65), (130, 20)], ids=str)
def test_matches_a_loop_over_pairs(backend, monkeypatch, shape, kernel, dtype):
    block_rows(monkeypatch, 8 * 13 * shape[0])
    rows, labels, variances, valid = problem(*shape, kernel, dtype)
    stats = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid, labels=labels)
    values = all_pairs(rows, kernel, variances)
    expected = by_side(values, labels, valid & (labels != IGNORE))
    assert stats.mean.dtype == stats.row_max.dtype == compute_dtype(dtype)
    size = max(1, np.abs(values).max()) if kernel in ("dot", "distance") else 1
    check(stats, expected, values, (3e-5 if dtype != torch.float64 else 1e-10) * size)


def test_by_hand(backend):
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0], [3.0, 0.0]])
    stats = ncops.pair_stats(rows, "distance", labels=torch.tensor([7, 7, 3, 0]), ignore_index=3)
    within, between = stats.mean.tolist()
    assert stats.count.tolist() == [1, 2] and within == pytest.approx(5) and between == pytest.approx(3.5)
    assert stats.row_argmax.tolist() == [[1, 0, -1, -1], [3, 3, -1, 1]]
    assert stats.row_max[1, [0, 1, 3]].tolist() == pytest.approx([3, 4, 4]) and stats.row_max[0, 2:].isnan().all()


@kernels
def test_one_class_and_a_class_for_each_row(backend, kernel):
    """One side has every pair, as without labels, and the other none."""
    rows, _, variances, valid = problem(9, 4, kernel)
    whole = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid)
    for side, labels in enumerate((torch.full((9,), 2**40), torch.arange(9))):
        stats = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid, labels=labels)
        for name in stats._fields:
            torch.testing.assert_close(getattr(stats, name)[side], getattr(whole, name), equal_nan=True)
        assert stats.count[1 - side] == 0 and (stats.row_argmax[1 - side] == -1).all()
        for name in ("mean", "var", "min", "max", "row_max"):
            assert getattr(stats, name)[1 - side].isnan().all()


@kernels
def test_no_rows_and_none_that_count(backend, kernel):
    for k in (0, 1, 4):
        rows, variances = randn(k, 3), torch.ones(k).double() if kernel == "cdnv" else None
        rows.requires_grad_()
        stats = ncops.pair_stats(rows, kernel, variances=variances, labels=torch.full((k,), IGNORE))
        assert stats.count.tolist() == [0, 0] and stats.row_max.shape == stats.row_argmax.shape == (2, k)
        assert torch.stack(stats[:4]).isnan().all() and (stats.row_argmax == -1).all()
        (stats.mean.sum() + stats.row_max.nan_to_num(0).sum()).backward()
        assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_ties_go_to_the_lowest(backend, monkeypatch):
    block_rows(monkeypatch, 8 * 5 * 40)
    rows, labels = torch.randint(-1, 2, (40, 3)).float(), torch.randint(0, 3, (40,))
    stats = ncops.pair_stats(rows, "dot", labels=labels)
    expected = by_side(all_pairs(rows, "dot"), labels, torch.ones(40, dtype=torch.bool))
    for side in (0, 1):  # products are exact, so that ties are ties; the loop keeps the first
        assert stats.row_argmax[side].tolist() == expected[side]["row_argmax"].tolist()


@pytest.mark.parametrize("kernel", ["dot", "cosine", "angle", "distance"])
def test_a_nan_stays_on_its_side(backend, kernel):
    """Row 4 is the only one of its class: pairs of one class have no NaN."""
    rows, labels = randn(20, 5).float(), torch.arange(20) % 3
    rows[4, 2], labels[4] = math.nan, 3
    stats = ncops.pair_stats(rows, kernel, labels=labels)
    assert stats.mean[1].isnan() and stats.max[1].isnan() and (stats.row_argmax[1] == -1).all()
    if kernel == "distance":  # the mean row, about which distances are formed, has a NaN
        return
    assert stats.mean[0].isfinite() and stats.row_max[0][labels < 3].isfinite().all()


def test_coincident_rows_count_on_their_side(backend):
    rows, labels = randn(12, 3).float(), torch.arange(12) % 2
    rows[4] = rows[2]
    stats = ncops.pair_stats(rows, "riesz", labels=labels)
    assert stats.mean[0] == stats.max[0] == math.inf and stats.mean[1].isfinite()
    assert stats.row_argmax[0, [2, 4]].tolist() == [4, 2]


@kernels
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_rows_that_are_left_out_touch_nothing(backend, kernel, bad):
    rows, labels, variances, _ = problem(20, 5, kernel, torch.float32)
    counted = labels != IGNORE
    rows[~counted] = bad

    def run(rows, labels, variances):
        leaf = rows.clone().requires_grad_()
        stats = ncops.pair_stats(leaf, kernel, variances=variances, power=POWER, labels=labels)
        (grad,) = torch.autograd.grad(stats.mean.sum() + stats.row_max.nan_to_num(0).sum(), leaf)
        return stats, grad

    (stats, grad), (alone, true) = (
        run(rows[use], labels[use], None if variances is None else variances[use]) for use in (slice(None), counted)
    )
    torch.testing.assert_close(list(stats[:5]), list(alone[:5]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.row_max[:, counted], alone.row_max, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(grad[counted], true, rtol=1e-4, atol=1e-5)
    assert (grad[~counted] == 0).all()


@layouts
def test_layouts(backend, layout):
    rows, labels = LAYOUTS[layout](randn(33, 17, dtype=torch.float32)), torch.arange(66)[::2] % 3
    ours, same = (ncops.pair_stats(r, "angle", labels=labels) for r in (rows, rows.contiguous()))
    torch.testing.assert_close(list(ours), list(same), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_dtype(backend, dtype):
    rows, labels = randn(12, 3), torch.arange(12) % 5
    ours, same = (ncops.pair_stats(rows, "dot", labels=y) for y in (labels.to(dtype), labels))
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_near_0_and_pi_keep_their_digits(backend, apart, dtype):
    """Of rows of any length; the arccos of a float32 cosine is 0 or 3.5e-4 at least."""
    base = randn(12, 24)
    rows = torch.cat([base, 3 * (base + apart * randn(12, 24)), -0.7 * (base + apart * randn(12, 24))]).to(dtype)
    labels = torch.arange(12).repeat(3)
    stats = ncops.pair_stats(rows, "angle", labels=labels)
    values = all_pairs(rows, "angle")
    eps = torch.finfo(dtype).eps
    pair = np.arange(12)
    truth = values[pair, pair + 12]  # from unit rows in float64, whose rounding is 1e-16 of the row
    assert stats.min[0].item() == pytest.approx(truth.min(), rel=16 * eps, abs=4e-16)
    opposite = np.concatenate([values[pair, pair + 24], values[pair + 12, pair + 24]])
    assert math.pi - stats.max[0].item() == pytest.approx(math.pi - opposite.max(), abs=2 * eps * math.pi)
    expected = by_side(values, labels, torch.ones(36, dtype=torch.bool))
    check(stats, expected, values, 8 * eps)


def test_angles_of_parallel_and_opposite_rows(backend):
    rows = torch.tensor([[1.0, 2, -2], [2, 4, -4], [-4, -8, 8], [0, 1, 1]])
    stats = ncops.pair_stats(rows, "angle")
    assert stats.min == 0 and stats.max.item() == pytest.approx(math.pi, abs=3e-7)
    assert stats.row_argmax.tolist() == [2, 2, 0, 0]
    rows.requires_grad_()
    ncops.pair_stats(rows, "angle").mean.backward()
    assert rows.grad.isfinite().all()  # from the fourth row alone
    rows = torch.cat([rows.detach(), torch.zeros(1, 3)])
    zero = ncops.pair_stats(rows, "angle", labels=torch.tensor([0, 0, 0, 0, 1]))
    assert zero.mean[0].isfinite() and zero.mean[1].isnan()


def dense(rows, kernel, variances, labels, counted):
    """mean (2,) and row_max (2, K) in torch, to be differentiated."""
    k = len(rows)
    eye = torch.eye(k, dtype=rows.dtype)[..., None]
    unit = rows / rows.norm(dim=1, keepdim=True)
    squares = (rows[:, None] - rows + eye).square().sum(2)
    value = {
        "dot": lambda: rows @ rows.T,
        "cosine": lambda: unit @ unit.T,
        "angle": lambda: 2 * torch.atan2(*((unit[:, None] + sign * unit + eye).norm(dim=2) for sign in (-1, 1))),
        "distance": lambda: squares.sqrt(),
        "log_distance": lambda: squares.sqrt().log(),
        "riesz": lambda: squares ** (-POWER / 2),
        "gaussian": lambda: (-POWER * squares).exp(),
        "cdnv": lambda: (variances[:, None] + variances) / (2 * squares**POWER),
    }[kernel]()
    pair = counted[:, None] & counted & ~torch.eye(k, dtype=torch.bool)
    same = labels[:, None] == labels
    means, best = [], []
    for wanted in (pair & same, pair & ~same):
        means.append(value[wanted.triu(1)].mean())
        best.append(value.masked_fill(~wanted, -math.inf).amax(1))
    return torch.stack(means), torch.stack(best)


@kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients(backend, monkeypatch, kernel, dtype):
    block_rows(monkeypatch, 8 * 5 * 21)
    if backend == "triton":
        monkeypatch.setattr("ncops.triton_kernels._pair_backward.STRIP_BYTES", 1)  # strips of one row of tiles
        monkeypatch.setattr("ncops.triton_kernels._pair_backward.SUM_BYTES", 1)  # sums of a block of columns
    rows, labels, variances, valid = problem(21, 70 if kernel == "cosine" else 6, kernel, dtype)
    counted = valid & (labels != IGNORE)
    weight = randn(2, 21)

    def loss(mean, row_max):
        row_max = row_max.double()
        row_max = torch.where(row_max.isfinite(), row_max, 0)
        return (mean.double() * torch.tensor([3.0, -2.0]).double()).sum() + (row_max * weight).sum()

    mine = [t.clone().requires_grad_() for t in (rows, variances) if t is not None]
    stats = ncops.pair_stats(mine[0], kernel, variances=mine[1] if variances is not None else None, power=POWER,
                             valid=valid, labels=labels)  # fmt: skip
    found = torch.autograd.grad(loss(stats.mean, stats.row_max), mine)
    true = [t.detach().double().requires_grad_() for t in mine]
    truth = torch.autograd.grad(
        loss(*dense(true[0], kernel, true[1] if variances is not None else None, labels, counted)), true
    )
    # Triton's interpreter cuts bfloat16 off, by up to 2^-7 of a value.
    eps = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-7}[dtype]
    for a, b in zip(found, truth, strict=True):
        assert (a.double() - b).abs().max() <= eps * b.abs().max()
    assert (found[0][~counted] == 0).all()


@pytest.mark.parametrize("kernel", ["cosine", "angle", "cdnv"])
def test_gradcheck(backend, kernel):
    rows, labels, variances, valid = problem(9, 4, kernel, classes=2)
    rows[[3, 5]] += randn(2, 4)  # near pairs bend too much for finite differences
    counted = valid & (labels != IGNORE)
    inputs = [t.requires_grad_() for t in (rows, variances) if t is not None]

    def run(rows, variances=None):
        stats = ncops.pair_stats(rows, kernel, variances=variances, power=POWER, valid=valid, labels=labels)
        return stats.mean.nan_to_num(0), stats.row_max.nan_to_num(0)[:, counted]

    assert torch.autograd.gradcheck(run, inputs, fast_mode=backend == "triton")


def test_gradients_of_angles_near_0_and_pi(backend):
    """Pairs near 0 of one class and near pi of two, as a binary classifier collapses, in the same tiles."""
    axis = torch.nn.functional.normalize(randn(8), dim=0)
    labels = torch.arange(24) % 2
    rows = ((1 - 2.0 * labels)[:, None] * axis + 1e-3 * randn(24, 8)).float()

    def gradient(mean, row_max, leaf):
        return torch.autograd.grad(3 * mean[0] + mean[1] + 0.1 * row_max.sum(), leaf)[0].double()

    leaf, exact = rows.clone().requires_grad_(), rows.double().requires_grad_()
    ours = ncops.pair_stats(leaf, "angle", labels=labels)
    mine = gradient(ours.mean, ours.row_max, leaf)
    truth = gradient(*dense(exact, "angle", None, labels, torch.ones(24, dtype=torch.bool)), exact)
    # Triton's interpreter has no fused multiply-add, which keeps the differences of rows to their own digits.
    assert (mine - truth).abs().max() <= (2e-4 if backend != "cpu" else 2e-6) * truth.abs().max()


def test_opposite_rows_pull_by_their_small_sum(backend):
    """Their difference has no digit of it."""
    rows = torch.tensor([[3.0, 4, 0], [-3, -4, 1e-3]], requires_grad=True)
    ncops.pair_stats(rows, "angle").row_max.sum().backward()
    torch.testing.assert_close(rows.grad[1], torch.tensor([-4.8e-5, -6.4e-5, -0.4]), rtol=1e-5, atol=0)


def test_sums_of_classes_in_several_parts(native):
    """More classes than the sums of which have room: 32 MB of them at a time."""
    rows, labels = randn(2500, 2048).float(), torch.arange(2500) // 2
    weights = torch.tensor([2.0, -1.0])
    leaf = rows.clone().requires_grad_()
    (ncops.pair_stats(leaf, "dot", labels=labels).mean * weights).sum().backward()
    exact, pairs = rows.double(), 2500 * 2499 / 2
    own = exact[torch.arange(2500) ^ 1]
    rest = exact.sum(0) - exact - own
    truth = 2.0 / 1250 * own - rest / (pairs - 1250)
    torch.testing.assert_close(leaf.grad.double(), truth, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kernel", ["cosine", "angle"])
def test_deterministic(backend, kernel):
    k = 700 if backend != "triton" else 60
    rows, labels = randn(k, 65, dtype=torch.float32), torch.arange(k) % 7

    def run():
        leaf = rows.clone().requires_grad_()
        stats = ncops.pair_stats(leaf, kernel, labels=labels)
        return *stats, *torch.autograd.grad(stats.mean.sum() + stats.row_max.sum(), leaf)

    assert_deterministic(run, backend)


@pytest.mark.parametrize("kernel", ["angle", "cdnv"])
def test_opcheck(backend, kernel):
    rows, _, variances, _ = problem(9, 5, kernel, torch.float32)
    inputs = (rows.requires_grad_(), None if variances is None else variances.requires_grad_())
    labels = torch.arange(9) % 3  # every row has partners on both sides: opcheck takes NaN for a difference
    torch.library.opcheck(
        torch.ops.ncops.pair_stats.default, (inputs[0], kernel, inputs[1], 1.0, None, labels, IGNORE, False)
    )


def test_compile(backend):
    labels = torch.arange(9) % 3
    assert_compiles(lambda r: ncops.pair_stats(r, "angle", labels=labels), randn(9, 5))


def test_many_rows_need_no_square(native):
    """20 000 rows, whose pairs would take 1.6 GB. On three points every value is known."""
    points, labels = torch.tensor([[0.0, 0, 0, 1], [0, 0, 2, 0], [0, 3, 0, 0]]), torch.arange(20_000) % 3
    stats = ncops.pair_stats(points[labels], "cosine", labels=labels)
    sizes = torch.bincount(labels)
    within = int((sizes * (sizes - 1) // 2).sum())
    assert stats.count.tolist() == [within, 20_000 * 19_999 // 2 - within]
    assert stats.mean[0].item() == pytest.approx(1, rel=1e-6) and stats.mean[1] == 0
    assert stats.var.tolist() == pytest.approx([0, 0], abs=1e-12)
