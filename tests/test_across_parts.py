"""Values where the work is cut: several chunks, splits, column blocks, tiles and folds, and what meets at the cuts.

Inputs are small integers, whose sums float32 holds exactly: results are compared for equality, so that a term that is
lost, added twice or taken from a neighbour shows. Triton's kernels have tiny blocks in its interpreter and meet as many
borders in small sizes: two blocks and more of rows, classes, features and splits.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import torch
from logit_columns import FLOATS, naive
from test_divergences import naive as naive_divergences
from testing import dtypes

import ncops
from ncops.backends.planes import DIVERGENCES

pytestmark = pytest.mark.parametrize(
    "cpu_backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)]
)
# Under the interpreter a block has 16 of everything else: more than a block in a fold, more than a row of blocks.
BLOCKS = {
    "linear_stats_16": {"BLOCK_N": 4},
    "linear_stats_16_classes": {"BLOCK_V": 2},
    "linear_stats_backward": {"BLOCK_N": 4},
    "linear_stats_backward_16_classes": {"BLOCK_V": 2},
    "class_moments.merge": {"PARTS": 2},
    "class_scatter": {"BLOCK_N": 8, "FOLD": 16},
    "projected_sqnorms.basis": {"BLOCK_N": 8, "FOLD": 16},
    "pair_products": {"BLOCK": 64},
    "pair_distances": {"BLOCK": 64},
    "pair_gradient": {"FOLD": 32},
}
CONSTANTS = {
    "_divergence_passes.SHARES_PER_PROGRAM": 16,
    "_logit_columns.SHARES_PER_PROGRAM": 32,
    "_logit_gradient.BLOCK": 4,
    "linear_topk.GROUPS": (1, 4),
    "linear_topk.INTERPRETED_BLOCKS": (4, 16),
    "linear_topk.WORKSPACE_BYTES": 1 << 12,
    "logit_stats.INTERPRETED_BLOCKS": (4, 16),
    "_sorted_rows._BLOCK": 16,
    "pair_stats.INTERPRETED_MULTIPROCESSORS": 1,  # two groups of tiles a side
    "_pair_backward.STRIP_BYTES": 1,  # a row of tiles a strip
}


@pytest.fixture(autouse=True)
def forced(cpu_backend, monkeypatch):
    with ExitStack() as stack:
        stack.enter_context(ncops.use_backend(cpu_backend))
        if cpu_backend == "triton":
            from ncops.triton_kernels import _launch

            for name, value in CONSTANTS.items():
                monkeypatch.setattr(f"ncops.triton_kernels.{name}", value)
            for kernel, sizes in BLOCKS.items():
                stack.enter_context(_launch.override(kernel, **sizes))
        yield


@pytest.fixture
def cut(cpu_backend):
    """The second where the backend is Triton's: sizes that are cut there."""
    return lambda native, triton: triton if cpu_backend == "triton" else native


def integers(*size: int, dtype: torch.dtype = torch.float32, most: int = 2) -> torch.Tensor:
    return torch.randint(-most, most + 1, size).to(dtype)


def uneven_labels(n: int, c: int) -> torch.Tensor:
    """Half of the rows in one class, which so lies in many chunks; the others anywhere, some ignored."""
    labels = torch.randint(0, c, (n,))
    labels[torch.rand(n) < 0.5] = c // 2
    labels[torch.rand(n) < 0.1] = -100
    return labels


# ---- logits
@pytest.fixture
def v(cut):
    return cut(70_001, 161)


def ramp(n: int, v: int) -> torch.Tensor:
    """Logits whose mean moves along the classes, so that a merge with wrong weights is far off."""
    return (integers(n, v, dtype=torch.float64) + torch.arange(v) // (v // 10)).clamp(max=11)


def ties(v: int) -> list[list[int]]:
    tenth = v // 10
    return [[17, v // 2, v - 1], [v - 2, v - 1], [0, v - 1], [tenth - 1, tenth], [3 * tenth, 3 * tenth + 1, 9 * tenth]]


def as_product(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(x, weight)`` with these logits: each row of x picks one feature of the classes."""
    x = torch.eye(40)[torch.randperm(40)[: len(z)]]
    return x, z.T.float() @ x


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("form", ["linear", "stored"])
def test_logits_in_several_splits(rows, form, v):
    z = ramp(rows, v)
    for row in range(rows):
        z[row, ties(v)[row % 5]] = 13
    target = torch.randint(0, v, (rows,))
    target[0] = v - 1
    if form == "linear":
        x, weight = as_product(z)
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


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(("native", "triton"), [(1, 1), (300, 7), (40_000, 60)], ids=["one", "few", "many"])
def test_largest_logits_of_several_splits(rows, native, triton, v, cut):
    """Of a dozen values in steps along the classes, so that there are ties at every border."""
    z, k = ramp(rows, v), cut(native, triton)
    x, weight = as_product(z)
    found = ncops.linear_topk(x, weight, k=k)
    values, indices = z.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.values.double(), values[:, :k]) and torch.equal(found.indices, indices[:, :k])
    torch.testing.assert_close(found.lse.double(), z.logsumexp(1), rtol=2e-6, atol=0)
    torch.testing.assert_close(found.logprob.double(), z.log_softmax(1).gather(1, indices[:, :k]), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 0.1, 0.5, 1])
def test_a_poisoned_logit_in_any_split(bad, place, v):
    z = ramp(5, v).float()
    clean = ncops.logit_stats(z)
    z[2, int(place * (v - 1))] = bad
    stats = ncops.logit_stats(z)
    others = torch.tensor([0, 1, 3, 4])
    for name in FLOATS:
        value = getattr(stats, name)
        if value is not None:
            assert value[2].isnan(), name
            assert torch.equal(value[others], getattr(clean, name)[others]), name
    assert stats.argmax[2] == -1 and torch.equal(stats.argmax[others], clean.argmax[others])


@pytest.mark.parametrize("form", ["linear", "stored"])
def test_gradients_of_logits_in_several_splits(form, v):
    z = ramp(9, v)
    z[:, [17, 4 * v // 7]] = 13
    target = torch.tensor([v - 1, 17, 3, -100, 0, 4 * v // 7, v - 1, v // 2, -100])
    if form == "linear":
        x, mine = as_product(z)
        stats = ncops.linear_stats(x, mine.requires_grad_(), None, target)
    else:
        mine = z.float().requires_grad_()
        stats = ncops.logit_stats(mine, target)
    (stats.nll + 0.5 * stats.entropy + 0.1 * stats.var + 0.3 * stats.mean).sum().backward()
    exact = z.requires_grad_()
    truth = naive(exact, target)
    (truth["nll"] + 0.5 * truth["entropy"] + 0.1 * truth["var"] + 0.3 * truth["mean"]).sum().backward()
    expected = exact.grad.T @ x.double() if form == "linear" else exact.grad
    torch.testing.assert_close(mine.grad.double(), expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("form", ["linear", "stored"])
def test_divergences_in_several_splits(form, v):
    z, y = ramp(9, v), ramp(9, v)
    z[:, 17] = y[:, 4 * v // 7] = 13
    y[0], y[1:, v - 1] = z[0], 12
    if form == "linear":
        (x, weight), (other, other_weight) = as_product(z), as_product(y)
        mine = [weight.requires_grad_(), other_weight.requires_grad_()]
        found = ncops.linear_divergence(x, weight, other, other_weight)
    else:
        mine = [z.float().requires_grad_(), y.float().requires_grad_()]
        found = ncops.logit_divergence(*mine)
    exact = [z.requires_grad_(), y.requires_grad_()]
    truth = naive_divergences(*exact)
    for name in DIVERGENCES:
        torch.testing.assert_close(getattr(found, name).double(), truth[name], rtol=2e-6, atol=1e-9, msg=name)
    names = ("kl", "reverse_kl", "js", "entropy", "other_lse")
    sum(getattr(found, name).sum() for name in names).backward()
    sum(truth[name].sum() for name in names).backward()
    expected = [t.grad for t in exact]
    if form == "linear":
        expected = [g.T @ rows.double() for g, rows in zip(expected, (x, other), strict=True)]
    for g, true in zip(mine, expected, strict=True):
        torch.testing.assert_close(g.grad.double(), true, rtol=1e-5, atol=1e-7)


# ---- classes
@dtypes
@pytest.mark.parametrize(
    ("native", "triton"),
    [
        ((30_000, 300, 7), (90, 35, 7)),
        ((9_000, 17, 4_000), (70, 17, 50)),
        ((2_500, 1_100, 3), (40, 70, 3)),
    ],
    ids=["rows", "classes", "features"],
)
def test_moments_of_classes_cut_by_chunks(native, triton, dtype, cut):
    n, d, c = cut(native, triton)
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


def test_squares_of_a_large_class_keep_their_digits(cut):
    """All terms of one sign, half of the rows in one class: a float32 sum over them would lose three digits more."""
    n = cut(200_000, 300)
    x, labels = torch.rand(n, 24) + 1, torch.zeros(n, dtype=torch.int64)
    labels[::2] = 1
    moments = ncops.class_moments(x, labels, 2)
    for c in (0, 1):
        rows = x[labels == c].double()
        assert abs(moments.sqnorms[c] / rows.square().sum() - 1) <= 2e-8
        torch.testing.assert_close(moments.sums[c].double(), rows.sum(0), rtol=2e-7, atol=0)


def test_accumulated_in_calls_that_cut_classes(cut):
    n, d, c = cut((12_000, 300, 9), (96, 20, 9))
    x, labels = integers(n, d), uneven_labels(n, c)
    stats = ncops.ClassStatistics(c, d, scatter=True)
    for part in torch.arange(n).split(5 * n // 12):
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
@pytest.mark.parametrize(
    ("native", "triton"),
    [
        ((5_000, 130, 6), (70, 20, 6)),
        ((700, 300, 300), (30, 40, 20)),
        ((20_000, 20, 2), (90, 5, 2)),
    ],
    ids=["both", "tiles", "folds"],
)
def test_scatter_in_several_folds_and_tiles(native, triton, dtype, cut):
    n, d, c = cut(native, triton)
    x, labels, center = integers(n, d, dtype=dtype), uneven_labels(n, c), integers(c, d)
    center = center.to(torch.float64 if dtype == torch.float64 else torch.float32)
    kept = labels >= 0
    r = x.double()[kept] - center.double()[labels[kept]]
    assert torch.equal(ncops.class_scatter(x, labels, center).double(), r.T @ r)
    assert torch.equal(ncops.class_scatter(x).double(), x.double().T @ x.double())


@pytest.mark.parametrize(
    ("native", "triton"),
    [
        ((3_000, 130, 70), (40, 35, 20)),
        ((257, 700, 300), (20, 70, 35)),
        ((5, 33, 1_100), (5, 33, 150)),
    ],
    ids=["rows", "features", "basis"],
)
def test_projections_in_several_tiles(native, triton, cut):
    n, d, r = cut(native, triton)
    x, basis, labels = integers(n, d, most=1), integers(r, d, most=1), uneven_labels(n, 7)
    center = integers(7, d, most=1)
    kept = labels >= 0
    deviations = (x - center[labels.clamp(min=0)]).double() * kept[:, None]
    expected = (deviations @ basis.double().T).square().sum(1)
    found = ncops.projected_sqnorms(x, basis, labels, center).double()
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("native", "triton"), [(1, 1), (7, 7), (300, 20)], ids=["one", "few", "many"])
def test_nearest_of_equal_means_is_the_lowest_whatever_tile_it_is_in(native, triton, cut):
    rows, (c, d) = cut(native, triton), cut((9_001, 16), (145, 20))
    means = integers(c, d).double() + 40 * torch.eye(d).double()[torch.arange(c) % d]
    for copies in ((5, c // 2, c - 1), (15, 16), (c - 3, c - 2)):
        means[list(copies)] = means[copies[0]].clone()
    wanted = torch.tensor([5, 15, c - 3]).repeat(rows)[:rows]
    found = ncops.nearest_class_mean(means[wanted].float(), means)
    assert torch.equal(found.index, wanted) and torch.equal(found.sqdist, torch.zeros(rows))
    valid = torch.ones(c, dtype=torch.bool)
    valid[[5, 15, c - 3]] = False
    found = ncops.nearest_class_mean(means[wanted].float(), means, valid=valid)
    assert torch.equal(found.index, torch.tensor([c // 2, 16, c - 2]).repeat(rows)[:rows])


# ---- pairs
@pytest.mark.parametrize(("kernel", "size"), [("dot", 700), ("distance", 700), ("dot", 3300)])
def test_pairs_in_several_tiles(kernel, size, cut):
    k, d = cut((size, 40), (300, 20))
    rows = integers(k, d)
    rows[k - 2] = rows[3]  # a pair at distance 0, in tiles far apart
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


@pytest.mark.parametrize("place", [0, 0.4, 0.444, 1])
def test_a_nan_in_one_tile_of_several(place, cut):
    k, d = cut((700, 40), (300, 20))
    rows = integers(k, d)
    rows[int(place * (k - 1)), 5] = math.nan
    stats = ncops.pair_stats(rows, "dot")
    assert stats.mean.isnan() and stats.var.isnan() and stats.min.isnan() and stats.max.isnan()
    assert stats.row_max.isnan().all() and (stats.row_argmax == -1).all()


@pytest.mark.parametrize("kernel", ["distance", "log_distance", "riesz", "gaussian"])
def test_gradient_at_rows_that_coincide(kernel, cut):
    k, d = cut((400, 12), (70, 20))
    rows = integers(k, d).requires_grad_()
    with torch.no_grad():
        rows[k - 2] = rows[2]
    ncops.pair_stats(rows, kernel).mean.backward()
    mine, rows.grad = rows.grad, None
    with ncops.use_backend("reference"):
        exact = rows.detach().double().requires_grad_()
        ncops.pair_stats(exact, kernel).mean.backward()
    torch.testing.assert_close(mine.double(), exact.grad, rtol=1e-4, atol=1e-8, equal_nan=True)


# ---- labels
def with_labels(c: int):
    """Results of every op that takes labels, by (x, labels, weight, center, basis, ignore_index)."""

    def moments(x, y, weight, center, basis, ignore):
        found = ncops.class_moments(x, y, c, center=center, ignore_index=ignore)
        return found.sums * 0.3 + found.sqnorms[:, None]

    return {
        "linear_stats": lambda x, y, w, center, basis, i: ncops.linear_stats(x, w, None, y, ignore_index=i).nll,
        "linear_loss": lambda x, y, w, center, basis, i: ncops.linear_loss(
            x, w, None, y, reduction="sum", ignore_index=i
        ).loss,
        "logit_stats": lambda x, y, w, center, basis, i: ncops.logit_stats(x @ w.T, y, ignore_index=i).nll,
        "class_moments": moments,
        "class_scatter": lambda x, y, w, center, basis, i: ncops.class_scatter(x, y, center, ignore_index=i),
        "projected_sqnorms": lambda x, y, w, center, basis, i: ncops.projected_sqnorms(
            x, basis, y, center, ignore_index=i
        ),
    }


OPS = with_labels(5)


def label_problem(n: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.randint(0, 5, (n,)), [torch.randn(rows, 20, dtype=torch.float64) for rows in (n, 5, 5, 20)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_a_class_that_is_the_ignore_index_counts_nowhere(op, ignored, cut):
    y, data = label_problem(cut(500, 36))
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
def test_the_first_label_outside_is_named_on_either_end(op, bad, cut):
    n = cut(1000, 20)
    y, (x, *others) = label_problem(n)
    for place in (0, n // 2, n - 1):
        wrong = y.clone()
        wrong[place:] = bad
        with pytest.raises(ValueError, match=rf"(labels|target): expected .*, got {bad} at row {place} of {n}$"):
            OPS[op](x, wrong, *others, -100)
    OPS[op](x, y, *others, -100)
