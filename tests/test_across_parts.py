"""Values where the work is cut: several chunks, splits, column blocks, tiles and folds, and what meets at the cuts.

Inputs are small integers, whose sums float32 holds exactly: results are compared for equality, so that a term that is
lost, added twice or taken from a neighbour shows.
"""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, dense, naive, objective, problem
from testing import dtypes, threads

import ncops

# Triton's interpreter takes minutes for such sizes: tests/gpu and tools/gpu_day run its kernels on them.
pytestmark = pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])


@pytest.fixture(autouse=True)
def forced(cpu_backend):
    with ncops.use_backend(cpu_backend):
        yield


def integers(*size: int, dtype: torch.dtype = torch.float32, most: int = 2) -> torch.Tensor:
    return torch.randint(-most, most + 1, size).to(dtype)


def uneven_labels(n: int, c: int) -> torch.Tensor:
    """Half of the rows in one class, which so lies in many chunks; the others anywhere, some ignored."""
    labels = torch.randint(0, c, (n,))
    labels[torch.rand(n) < 0.5] = c // 2
    labels[torch.rand(n) < 0.1] = -100
    return labels


# ---- logits
V = 70_001


def ramp(n: int, v: int = V) -> torch.Tensor:
    """Logits whose mean moves along the classes, so that a merge with wrong weights is far off."""
    return (integers(n, v, dtype=torch.float64) + (torch.arange(v) // 7000)).clamp(max=11)


TIES = ((17, 35_000, V - 1), (V - 2, V - 1), (0, V - 1), (6999, 7000), (20_000, 20_001, 60_000))


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("form", ["linear", "stored"])
def test_logits_in_several_splits(rows, form):
    z = ramp(rows)
    for row in range(rows):
        z[row, list(TIES[row % len(TIES)])] = 13
    target = torch.randint(0, V, (rows,))
    target[0] = V - 1
    if form == "linear":  # the identity picks the rows of the weight: the same logits, as products
        x, weight = torch.eye(rows), z.T.float().contiguous()
        stats = ncops.linear_stats(x, weight, None, target)
    else:
        stats = ncops.logit_stats(z.float(), target)
    truth = naive(z, target)
    for name in ("argmax", "second_index", "target_rank", "valid"):
        assert torch.equal(getattr(stats, name), truth[name]), name
    for name in ("max", "second", "target_logit"):
        assert torch.equal(getattr(stats, name).double(), truth[name]), name
    for name in FLOATS:
        torch.testing.assert_close(getattr(stats, name).double(), truth[name], rtol=2e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 6999, 35_000, V - 1])
def test_a_poisoned_logit_in_any_split(bad, column):
    z = ramp(5).float()
    clean = ncops.logit_stats(z)
    z[2, column] = bad
    stats = ncops.logit_stats(z)
    others = torch.tensor([0, 1, 3, 4])
    for name in FLOATS:
        value = getattr(stats, name)
        if value is not None:
            assert value[2].isnan(), name
            assert torch.equal(value[others], getattr(clean, name)[others]), name
    assert stats.argmax[2] == -1 and torch.equal(stats.argmax[others], clean.argmax[others])


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("column", [0, 6999, 35_000, V - 1])
def test_an_overflow_in_any_split(rows, column):
    x, weight = integers(rows, 6), integers(V, 6)
    x[:, 0] = weight[:, 0] = 0
    clean = ncops.linear_stats(x, weight)
    x[2, 0] = weight[column, 0] = 1e30  # of one logit
    stats = ncops.linear_stats(x, weight)
    others = torch.arange(rows) != 2
    assert stats.lse[2].isnan() and stats.mean[2].isnan() and stats.argmax[2] == -1
    assert torch.equal(stats.lse[others], clean.lse[others]) and torch.equal(stats.argmax[others], clean.argmax[others])


def test_gradients_of_logits_in_several_splits():
    z = ramp(4)
    z[:, [17, 40_000]] = 13
    target = torch.tensor([V - 1, 17, 3, -100])
    mine = z.float().requires_grad_()
    stats = ncops.logit_stats(mine, target)
    (stats.nll + 0.5 * stats.entropy + 0.1 * stats.var + 0.3 * stats.mean).sum().backward()
    exact = z.requires_grad_()
    truth = naive(exact, target)
    (truth["nll"] + 0.5 * truth["entropy"] + 0.1 * truth["var"] + 0.3 * truth["mean"]).sum().backward()
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-5, atol=1e-10)


# Groups of rows that share the classes; chunks of rows against several splits of the classes.
@pytest.mark.parametrize(("n", "d", "v"), [(700, 20, 70), (1_100, 8, 2_000)])
def test_gradients_of_products_in_several_groups_and_chunks(n, d, v):
    *inputs, target = problem(n, d, v, torch.float32)

    def gradients(columns, inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(objective(columns(*inputs), n), inputs)

    mine = gradients(lambda x, w, b: ncops.linear_stats(x, w, b, target, scale=0.3)._asdict(), inputs)
    truth = gradients(lambda x, w, b: naive(dense(x, w, b, 0.3), target), [t.double() for t in inputs])
    for name, a, b in zip(("x", "weight", "bias"), mine, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-6 * float(b.abs().max()), msg=name)


# ---- classes
@dtypes
@pytest.mark.parametrize(("n", "d", "c"), [(30_000, 300, 7), (9_000, 17, 4_000), (2_500, 1_100, 3)])
def test_moments_of_classes_cut_by_chunks(n, d, c, dtype):
    x, labels, center = integers(n, d, dtype=dtype), uneven_labels(n, c), integers(c, d)
    center = center.to(torch.float64 if dtype == torch.float64 else torch.float32)
    leaf = x.clone().requires_grad_()
    moments = ncops.class_moments(leaf, labels, c, center=center)
    kept = labels >= 0
    r = x.double()[kept] - center.double()[labels[kept]]
    sums = torch.zeros(c, d, dtype=torch.float64).index_add_(0, labels[kept], r)
    sqnorms = torch.zeros(c, dtype=torch.float64).index_add_(0, labels[kept], r.square().sum(1))
    assert torch.equal(moments.sums.double(), sums)
    assert torch.equal(moments.sqnorms.double(), sqnorms)
    assert torch.equal(moments.counts, torch.bincount(labels[kept], minlength=c))
    g_sums, g_sqnorms = integers(c, d).to(moments.sums.dtype), integers(c).to(moments.sqnorms.dtype)
    ((moments.sums * g_sums).sum() + (moments.sqnorms * g_sqnorms).sum()).backward()
    expected = torch.zeros(n, d, dtype=torch.float64)
    expected[kept] = g_sums.double()[labels[kept]] + 2 * g_sqnorms.double()[labels[kept]][:, None] * r
    assert torch.equal(leaf.grad.double(), expected)


def test_squares_of_a_large_class_keep_their_digits():
    """All terms of one sign, half of the rows in one class: a float32 sum over them would lose three digits more."""
    x, labels = torch.rand(200_000, 24) + 1, torch.zeros(200_000, dtype=torch.int64)
    labels[::2] = 1
    moments = ncops.class_moments(x, labels, 2)
    for c in (0, 1):
        rows = x[labels == c].double()
        assert abs(moments.sqnorms[c] / rows.square().sum() - 1) <= 2e-8
        torch.testing.assert_close(moments.sums[c].double(), rows.sum(0), rtol=2e-7, atol=0)


@pytest.mark.parametrize("value", [1.23, 1.7, 1.9])
def test_equal_squares_round_alike(value):
    """So that their errors add up: a float32 chain over 512 rows would have 3e-6."""
    x = torch.full((2_000, 80), value)
    sqnorms = ncops.class_moments(x, torch.zeros(2_000, dtype=torch.int64), 1).sqnorms
    assert abs(float(sqnorms[0] / x.double().square().sum()) - 1) <= 1e-6


@pytest.mark.parametrize("d", [130, 300])
def test_accumulated_in_calls_that_cut_classes(d):
    n, c = 12_000, 9
    x, labels = integers(n, d), uneven_labels(n, c)
    stats = ncops.ClassStatistics(c, d, scatter=True)
    for part in torch.arange(n).split(5_000):
        stats.update(x[part], labels[part])
    kept = labels >= 0
    geometry = stats.compute()
    means = torch.stack([x[labels == k].double().mean(0) for k in range(c)])
    torch.testing.assert_close(geometry.means.double(), means, rtol=1e-6, atol=3e-6)
    assert torch.equal(stats.counts, torch.bincount(labels[kept], minlength=c))
    r = x[kept].double() - means[labels[kept]]
    torch.testing.assert_close(geometry.within_cov.double(), r.T @ r / len(r), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(geometry.within_trace, r.square().sum() / len(r), rtol=1e-6, atol=0)


@dtypes
@pytest.mark.parametrize(("n", "d", "c"), [(5_000, 130, 6), (700, 300, 300), (20_000, 20, 2)])
def test_scatter_in_several_folds_and_tiles(n, d, c, dtype):
    x, labels, center = integers(n, d, dtype=dtype), uneven_labels(n, c), integers(c, d)
    center = center.to(torch.float64 if dtype == torch.float64 else torch.float32)
    kept = labels >= 0
    r = x.double()[kept] - center.double()[labels[kept]]
    assert torch.equal(ncops.class_scatter(x, labels, center).double(), r.T @ r)
    assert torch.equal(ncops.class_scatter(x).double(), x.double().T @ x.double())


# One thread computes one column of tiles after the other, in place.
@pytest.mark.parametrize(("n", "d", "c"), [(300, 1_100, 7), (900, 70, 37)])
def test_gradient_by_centres_in_several_tiles_and_ranges(n, d, c):
    x, labels, center = integers(n, d, most=1), uneven_labels(n, c), integers(c, d, most=1).requires_grad_()
    g, kept = integers(d, d, most=1), labels >= 0
    with threads(1):
        (ncops.class_scatter(x, labels, center) * g).sum().backward()
    r = x[kept].double() - center.detach().double()[labels[kept]]
    sums = torch.zeros(c, d, dtype=torch.float64).index_add_(0, labels[kept], r)
    assert torch.equal(center.grad.double(), -sums @ (g + g.T).double())


def test_gradient_by_the_centre_of_many_rows():
    """Their sum is formed in double: rows of one sign, and float32 would lose four digits."""
    x, center = torch.rand(100_000, 3) + 0.1, torch.zeros(3, requires_grad=True)
    ncops.class_scatter(x, None, center).diagonal().sum().backward()
    torch.testing.assert_close(center.grad.double(), -2 * x.double().sum(0), rtol=2e-7, atol=0)


@pytest.mark.parametrize(("n", "d", "r"), [(3_000, 130, 70), (257, 700, 300), (5, 33, 1_100)])
def test_projections_in_several_tiles(n, d, r):
    x, basis, labels = integers(n, d, most=1), integers(r, d, most=1), uneven_labels(n, 7)
    center = integers(7, d, most=1)
    kept = labels >= 0
    deviations = (x - center[labels.clamp(min=0)]).double() * kept[:, None]
    expected = (deviations @ basis.double().T).square().sum(1)
    found = ncops.projected_sqnorms(x, basis, labels, center).double()
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_nearest_of_equal_means_is_the_lowest_whatever_tile_it_is_in(rows):
    c, d = 9_001, 16
    means = integers(c, d).double() + 40 * torch.eye(d).double()[torch.arange(c) % d]
    for copies in ((5, 4_000, c - 1), (6, 7, 8_999), (c - 3, c - 2)):
        means[list(copies)] = means[copies[0]].clone()
    wanted = torch.tensor([5, 6, c - 3]).repeat(rows)[:rows]
    found = ncops.nearest_class_mean(means[wanted].float(), means)
    assert torch.equal(found.index, wanted) and torch.equal(found.sqdist, torch.zeros(rows))
    valid = torch.ones(c, dtype=torch.bool)
    valid[[5, 6, c - 3]] = False
    found = ncops.nearest_class_mean(means[wanted].float(), means, valid=valid)
    assert torch.equal(found.index, torch.tensor([4_000, 7, c - 2]).repeat(rows)[:rows])


@pytest.mark.parametrize("bad", [10, 4_000, 9_000])
def test_a_nan_mean_counts_where_it_is_valid_whatever_tile_it_is_in(bad):
    means = integers(9_001, 16)
    x, valid = means[[3, 5_000]] + 0.25, torch.arange(9_001) != bad
    clean = ncops.nearest_class_mean(x, means, valid=valid)
    means[bad, 5] = math.nan
    assert (ncops.nearest_class_mean(x, means).index == -1).all()
    found = ncops.nearest_class_mean(x, means, valid=valid)
    assert torch.equal(found.index, clean.index) and torch.equal(found.sqdist, clean.sqdist)


@pytest.mark.parametrize("bad", [10, 4_000, 9_000])
def test_a_product_that_overflows_in_one_tile_spoils_its_row(bad):
    means = integers(9_001, 16)
    x = means[[3, 5_000]] + 0.25
    clean = ncops.nearest_class_mean(x, means)
    x[0, 5], means[bad, 5] = 1e25, 1e15
    found = ncops.nearest_class_mean(x, means)
    assert found.index.tolist() == [-1, clean.index[1]] and found.sqdist[0].isnan()


# ---- pairs
@pytest.mark.parametrize(("kernel", "k"), [("dot", 700), ("distance", 700), ("dot", 3300)])
def test_pairs_in_several_tiles(kernel, k):
    d = 40
    rows = integers(k, d)
    rows[650] = rows[3]  # a pair at distance 0, in tiles far apart
    stats = ncops.pair_stats(rows, kernel)
    exact = rows.double()
    values = exact @ exact.T if kernel == "dot" else (exact[:, None] - exact).square().sum(2).sqrt()
    pairs = values[torch.ones(k, k).triu(1).bool()]
    assert int(stats.count) == pairs.numel()
    torch.testing.assert_close(stats.mean.double(), pairs.mean(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(stats.var.double(), pairs.var(correction=0), rtol=2e-6, atol=0)
    for name, value in (("min", pairs.min()), ("max", pairs.max())):
        torch.testing.assert_close(getattr(stats, name).double(), value, rtol=3e-7, atol=0)
    best = values.fill_diagonal_(-math.inf).max(1).values
    torch.testing.assert_close(stats.row_max.double(), best, rtol=3e-7, atol=0)
    assert torch.equal(values[torch.arange(k), stats.row_argmax], best)
    if kernel == "dot":  # exact, so that ties are ties
        assert torch.equal(stats.row_argmax, (values == best[:, None]).double().argmax(1))


@pytest.mark.parametrize("row", [0, 300, 310, 699])
def test_a_nan_in_one_tile_of_several(row):
    rows = integers(700, 40)
    rows[row, 5] = math.nan
    stats = ncops.pair_stats(rows, "dot")
    assert stats.mean.isnan() and stats.var.isnan() and stats.min.isnan() and stats.max.isnan()
    assert stats.row_max.isnan().all() and (stats.row_argmax == -1).all()


@pytest.mark.parametrize("kernel", ["distance", "log_distance", "riesz", "gaussian"])
def test_gradient_at_rows_that_coincide(kernel):
    rows = integers(400, 12).requires_grad_()
    with torch.no_grad():
        rows[390] = rows[2]
    ncops.pair_stats(rows, kernel).mean.backward()
    mine, rows.grad = rows.grad, None
    with ncops.use_backend("reference"):
        exact = rows.detach().double().requires_grad_()
        ncops.pair_stats(exact, kernel).mean.backward()
    torch.testing.assert_close(mine.double(), exact.grad, rtol=1e-4, atol=1e-8, equal_nan=True)


def test_gradient_of_a_best_pair_that_coincides():
    rows = integers(400, 12)
    rows[390] = rows[2]
    best = ncops.pair_stats(rows.requires_grad_(), "riesz").row_max
    assert best[2] == best[390] == math.inf
    best[[2, 390]].sum().backward()
    assert not rows.grad.any()  # NaN would be


def test_gradients_of_cdnv_in_several_tiles():
    k, d = 300, 12
    rows, variances = torch.randn(k, d, requires_grad=True), torch.rand(k, requires_grad=True)
    ncops.pair_stats(rows, "cdnv", variances=variances).mean.backward()
    exact, spread = (t.detach().double().requires_grad_() for t in (rows, variances))
    i, j = torch.triu_indices(k, k, 1)
    ((spread[i] + spread[j]) / (2 * (exact[i] - exact[j]).square().sum(1))).mean().backward()
    for mine, truth in ((rows.grad, exact.grad), (variances.grad, spread.grad)):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-4, atol=1e-6 * float(truth.abs().max()))


def test_far_pairs_keep_their_order():
    """Their values are subnormal."""
    rows = torch.tensor([[0.0], [9.8], [9.5], [-9.6]])
    stats = ncops.pair_stats(rows, "gaussian")
    assert stats.row_argmax.tolist() == [2, 2, 1, 0]


# ---- labels
def with_labels(c: int):
    """Results of every op that takes labels, by (x, labels, weight, center, basis, ignore_index)."""

    def moments(x, y, weight, center, basis, ignore):
        found = ncops.class_moments(x, y, c, center=center, ignore_index=ignore)
        return found.sums * 0.3 + found.sqnorms[:, None]

    return {
        "linear_stats": lambda x, y, w, center, basis, i: ncops.linear_stats(x, w, None, y, ignore_index=i).nll,
        "logit_stats": lambda x, y, w, center, basis, i: ncops.logit_stats(x @ w.T, y, ignore_index=i).nll,
        "class_moments": moments,
        "class_scatter": lambda x, y, w, center, basis, i: ncops.class_scatter(x, y, center, ignore_index=i),
        "projected_sqnorms": lambda x, y, w, center, basis, i: ncops.projected_sqnorms(
            x, basis, y, center, ignore_index=i
        ),
    }


OPS = with_labels(5)


def label_problem(n: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.randint(0, 5, (n,)), [torch.randn(rows, 12, dtype=torch.float64) for rows in (n, 5, 5, 3)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_a_class_that_is_the_ignore_index_counts_nowhere(op, ignored):
    y, data = label_problem(500)
    y[[0, -1]] = ignored
    results = []
    for labels, ignore in ((y, ignored), (y.masked_fill(y == ignored, -100), -100)):
        x, *others = (t.clone().requires_grad_() for t in data)
        value = OPS[op](x, labels, *others, ignore)
        loss = (value + 1).square().sum()  # whose gradient is not 0 where a value is
        gradients = torch.autograd.grad(loss, [x, *others], allow_unused=True)
        results.append([value, *gradients])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert results[0][1][y != ignored].any() and not results[0][1][y == ignored].any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bad", [5, -1, 2**40, -(2**40)])
def test_the_first_label_outside_is_named_on_either_end(op, bad):
    y, (x, *others) = label_problem(1000)
    for place in (0, 511, 999):
        wrong = y.clone()
        wrong[place:] = bad
        with pytest.raises(ValueError, match=rf"(labels|target): expected .*, got {bad} at row {place} of 1000$"):
            OPS[op](x, wrong, *others, -100)
    OPS[op](x, y, *others, -100)
