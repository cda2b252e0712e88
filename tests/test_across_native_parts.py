"""Values where native kernels cut work, at sizes of theirs; test_across_parts.py has what every backend runs."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import dense, naive, objective, problem
from test_across_parts import integers, uneven_labels
from testing import threads

import ncops

V = 70_001
pytestmark = pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])


@pytest.fixture(autouse=True)
def forced(cpu_backend):
    with ncops.use_backend(cpu_backend):
        yield


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


def test_stored_logits_tied_at_the_maximum_of_a_block_are_both_counted_as_one():
    z = torch.full((1, 1_000), -50.0)
    z[0, [70, 400]] = 3
    assert ncops.logit_stats(z).gap[0] == torch.tensor(math.log(2))


@pytest.mark.parametrize(("dtype", "below"), [(torch.float32, 120), (torch.float64, 820)], ids=["float32", "float64"])
def test_a_stored_logit_far_below_its_block_adds_nothing(dtype, below):
    """Where all are near, exponentials are not kept from leaving the range of their exponents."""
    z = torch.rand(1, 1_000, dtype=dtype)
    z[0, 400], z[0, 3] = 2, -below
    stats = ncops.logit_stats(z)
    torch.testing.assert_close(stats.lse, z.logsumexp(1))
    torch.testing.assert_close(stats.entropy, naive(z)["entropy"])


# Classes packed as a whole, in several tiles; few rows, classes where they lie; pairs beyond 24 KB of a panel;
# 16 MB of packed rows, and then others.
SIZES = {"whole": (40, 8, 1_100), "few": (40, 600, 700), "bfloat16": (40, 600, 700), "many": (1_030, 4_096, 1_024)}


@pytest.mark.parametrize("form", SIZES)
def test_a_feature_of_any_chain_makes_its_logits(form):
    (n, d, v), dtype = SIZES[form], torch.bfloat16 if form == "bfloat16" else torch.float32
    weight, features, target = torch.randn(v, d).to(dtype), torch.randint(d, (n, 1)), torch.randint(v, (n, 1))
    stats = ncops.linear_stats(torch.zeros(n, d, dtype=dtype).scatter(1, features, 1), weight, None, target[:, 0])
    logits = weight.T[features[:, 0]].float()
    for found, index in ((stats.max, stats.argmax[:, None]), (stats.target_logit, target)):
        assert torch.equal(found, logits.gather(1, index)[:, 0])
    assert torch.equal(stats.max, logits.amax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("v", range(1, 16))  # as many as panels are not packed for, and then one more
def test_few_classes_of_any_number(v, dtype):
    """Rows of a last block and panel that is not full, and steps that end within a vector, a chain later."""
    weight, features = torch.randn(v, 1_100).to(dtype), torch.arange(0, 1_100, 2)[:, None]
    x = torch.zeros(550, 1_100, dtype=dtype).scatter(1, features, 1)
    target = torch.arange(550) % v
    logits = weight.T[features[:, 0]].to(torch.float64 if dtype == torch.float64 else torch.float32)
    target_logit = logits.gather(1, target[:, None])
    for rows in (x, x.T.contiguous().T):
        stats = ncops.linear_stats(rows, weight, None, target)
        assert torch.equal(stats.max, logits.amax(1))
        assert torch.equal(stats.target_logit, target_logit[:, 0])
        assert torch.equal(stats.target_rank, (logits > target_logit).sum(1))


def test_the_origin_is_taken_off_every_column():
    """Of blocks of 64 columns and what is left of a vector: with another origin there the product has no digit."""
    offset = 1e5 * torch.randn(70)
    means, noise = torch.randn(30, 70) + offset, 0.1 * torch.randn(500, 70)
    labels = torch.arange(500) % 30
    assert torch.equal(ncops.nearest_class_mean(means[labels] + noise, means).index, labels)


# Groups of rows that share the classes, and that have some each; chunks of rows against several splits of the classes.
@pytest.mark.parametrize(("n", "d", "v"), [(700, 20, 70), (1_100, 8, 2_000), (600, 8, 4_200)])
def test_gradients_of_products_in_several_groups_and_chunks(n, d, v):
    *inputs, target = problem(n, d, v, torch.float32)

    def gradients(columns, inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(objective(columns(*inputs), n), inputs)

    mine = gradients(lambda x, w, b: ncops.linear_stats(x, w, b, target, scale=0.3)._asdict(), inputs)
    truth = gradients(lambda x, w, b: naive(dense(x, w, b, 0.3), target), [t.double() for t in inputs])
    for name, a, b in zip(("x", "weight", "bias"), mine, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-6 * float(b.abs().max()), msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_panel_of_rows_without_gradient_among_others_counts_for_nothing(dtype):
    x, weight, _, target = problem(160, 40, 700, dtype)
    rows = torch.arange(160)
    counts = (rows < 64) | (rows >= 128)

    def gradient(x, target, counts):
        head = weight.detach().requires_grad_()
        nll = ncops.linear_stats(x, head, None, target).nll
        return torch.autograd.grad(nll[counts].sum(), head)[0]

    # What is left over counts where x is large, and not where it is zero.
    seen, unseen = (gradient(torch.where(counts[:, None], x, there), target, counts) for there in (1e4, 0.0))
    alone = gradient(x[counts], target[counts], counts[counts])  # in other chains of rows
    assert torch.equal(seen, unseen)
    torch.testing.assert_close(seen, alone)


@pytest.mark.parametrize("value", [1.23, 1.7, 1.9])
def test_equal_squares_round_alike(value):
    """So that their errors add up: a float32 chain over 512 rows would have 3e-6."""
    x = torch.full((2_000, 80), value)
    sqnorms = ncops.class_moments(x, torch.zeros(2_000, dtype=torch.int64), 1).sqnorms
    assert abs(float(sqnorms[0] / x.double().square().sum()) - 1) <= 2e-6


@pytest.mark.parametrize("n", [700, 20_000])  # rows in few chunks and in many: who clears the others' classes differs
def test_classes_without_rows_before_between_and_after(n):
    labels = torch.randint(1_000, 3_000, (n,)) * 2
    x = integers(n, 4)
    with threads(2):
        torch.full((7_000, 4), math.nan)  # what the result is likely to find in its memory
        moments = ncops.class_moments(x, labels, 7_000)
    assert torch.equal(moments.sums, torch.zeros(7_000, 4).index_add_(0, labels, x))
    assert torch.equal(moments.sqnorms, torch.zeros(7_000).index_add_(0, labels, x.square().sum(1)).double())
    assert torch.equal(moments.counts, torch.bincount(labels, minlength=7_000))


# The gradient is formed where the sums of the rows lie.
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


def test_gradient_of_a_best_pair_that_coincides():
    rows = integers(400, 12)
    rows[390] = rows[2]
    best = ncops.pair_stats(rows.requires_grad_(), "riesz").row_max
    assert best[2] == best[390] == math.inf
    best[[2, 390]].sum().backward()
    assert not rows.grad.any()  # NaN would be
