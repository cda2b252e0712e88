"""Every Triton kernel with blocks of 2 to 8, so that a few rows fill several of each in every dimension.

Inputs are small integers in strided memory, with ties, masks and NaN planted at and across the borders of blocks; what
comes is held against the reference in float64.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
import torch
from logit_columns import FLOATS, objective
from testing import IGNORE, nan_in_fresh_memory

import ncops
from ncops.backends.planes import DIVERGENCES
from ncops.reference import class_moments as moments_reference
from ncops.reference import class_scatter as scatter_reference
from ncops.reference import projected_sqnorms as projected_reference

launch = pytest.importorskip("ncops.triton_kernels._launch")
from ncops.triton_kernels import (  # noqa: E402
    _divergence_passes,
    _gradient_sums,
    _rows,
    _sorted_rows,
    class_moments,
    class_scatter,
    linear_divergence,
    linear_stats,
    linear_stats_backward,
    linear_topk,
    logit_stats,
    nearest_class_mean,
    pair_stats,
    projected_sqnorms,
)
from ncops.triton_kernels import _pair_backward as pair_backward  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not launch.interpreted(), reason="tests/gpu runs the compiled kernels"),
]
SMALL = {"CHUNK": 8, "FOLD": 8, "ROWS": 2, "PARTS": 2, "CLASSES": 2}


@pytest.fixture(autouse=True)
def _blocks(monkeypatch):
    monkeypatch.setattr(_sorted_rows, "_BLOCK", 8)
    monkeypatch.setattr(logit_stats, "INTERPRETED_BLOCKS", (4, 8))
    monkeypatch.setattr(linear_topk, "INTERPRETED_BLOCKS", (4, 16))
    monkeypatch.setattr(linear_topk, "GROUPS", (1, 2, 4))
    for module in (logit_stats, _divergence_passes):
        monkeypatch.setattr(module, "split_count", lambda *_, **__: 3)
    monkeypatch.setattr(pair_stats, "INTERPRETED_MULTIPROCESSORS", 1)  # two groups a side, of several tiles each
    with ExitStack() as stack:
        for kernel, rows in launch.TABLE.items():
            names = next(iter(rows.values())).blocks.keys() - {"HALVES"}
            stack.enter_context(launch.override(kernel, **{name: SMALL.get(name, 4) for name in names}))
        yield


def integers(*size: int, most: int = 2) -> torch.Tensor:
    """Every other column of memory twice as wide, a vector every other element."""
    return torch.randint(-most, most + 1, (*size[:-1], 2 * size[-1])).float()[..., ::2]


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


def labels_of(n: int, c: int, ignored: int = IGNORE) -> torch.Tensor:
    """Half of the rows in one class, some in one that is ignored, in strided memory."""
    labels = torch.randint(0, c, (n, 2))
    labels[torch.rand(n) < 0.5] = c // 2
    labels[torch.rand(n) < 0.2] = ignored
    return labels[:, 0]


def both(run, *inputs):
    """``run`` on Triton in float32 and on the reference in float64: results, and gradients of the floating inputs."""

    def values(backend, dtype):
        leaves = [t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in inputs]
        leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in leaves]
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        with ncops.use_backend(backend):
            found, loss = run(*leaves)
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if loss is not None else ()
        return {**found, **{f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}}

    return values("triton", torch.float32), values("reference", torch.float64)


def assert_same(ours, truth, rtol: float = 2e-5) -> None:
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        if value.is_floating_point():
            true = truth[name].double()
            size = true.nan_to_num(0, 0, 0).norm(math.inf).item()
            torch.testing.assert_close(value.double(), true, rtol=rtol, atol=rtol * size, equal_nan=True, msg=name)
        else:
            assert torch.equal(value, truth[name]), name


# ---- logits
COLUMNS = (*FLOATS, "argmax", "second_index", "target_rank", "valid")


def columns(stats):
    return {name: getattr(stats, name) for name in COLUMNS}


def every_column(stats):
    return objective(columns(stats), len(stats.lse))


LOSSES = {
    "all": every_column,
    "nll": lambda s: s.nll.sum(),
    "var": lambda s: (s.var * torch.arange(len(s.var))).sum(),
    "entropy": lambda s: s.entropy.sum(),
    "target": lambda s: (s.target_logit * 0.3 + s.second).sum(),
}


@pytest.mark.parametrize(("loss", "v"), [*((loss, 22) for loss in LOSSES), ("all", 24)])
def test_linear_stats_in_blocks(monkeypatch, loss, v):
    monkeypatch.setattr(linear_stats, "ROWS_OF_ONE_TILE", 8)
    monkeypatch.setattr(linear_stats_backward, "WORKSPACE_BYTES", 8 * 8 * 4)
    monkeypatch.setattr(linear_stats_backward, "LEAST_CLASSES", 8)
    x, weight, bias = transposed(integers(11, 7)), integers(v, 7, most=1), integers(v)
    equal = [2, 5, 9, v - 1]  # in and across splits
    weight[equal], bias[equal] = weight[2].clone(), 2 * bias.abs().max()
    if v == 24:  # a larger one beside 5; 2 is in the tile before
        weight[6], bias[6] = weight[2].clone(), bias[2] + 1
    target = labels_of(11, v)
    target[:4] = torch.tensor([v - 1, IGNORE, 5, 9])

    def run(x, weight, bias):
        stats = ncops.linear_stats(x, weight, bias, target, scale=0.5)
        return columns(stats), LOSSES[loss](stats)

    rows = 8 if loss == "target" else 4  # so that targets come from two tiles, or from one
    with launch.override("linear_stats_64_classes", BLOCK_N=rows):
        assert_same(*both(run, x, weight, bias))


def steps(n: int, v: int) -> torch.Tensor:
    """Logits whose mean moves along the classes, with equal maxima and runners-up in several splits of a row."""
    z = integers(n, v) + torch.arange(v) // 6
    z[0, [3, 20, v - 1]] = 12
    z[1, [v - 2, v - 1]] = 12
    z[2, [0, v - 1]], z[2, 9] = 11, 12
    z[3, [2, 3]], z[3, [17, 25]] = 12, 11
    z[4, [3, 12]], z[4, 13] = 11, 12
    return z


@pytest.mark.parametrize(("loss", "layout"), [*((loss, transposed) for loss in LOSSES), ("all", torch.clone)])
def test_logit_stats_in_blocks(monkeypatch, loss, layout):
    monkeypatch.setattr(logit_stats, "ROWS_AT_ONCE", 8)
    z, target = layout(steps(11, 43)), labels_of(11, 43)
    target[:5] = torch.tensor([3, 42, 5, 3, IGNORE])

    def run(z):
        stats = ncops.logit_stats(z, target, scale=0.5)
        return columns(stats), LOSSES[loss](stats)

    assert_same(*both(run, z))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("places", [[0], [42], list(range(8))], ids=str)
def test_a_logit_that_is_not_finite_in_any_block(value, places):
    z, target = steps(6, 43), torch.tensor([0, 17, 42, 1, IGNORE, 41])
    z[1:, places] = value
    z[5] = -math.inf  # nothing to choose from

    def run(z):
        stats = ncops.logit_stats(z, target)
        finite = stats.nll.isfinite()
        largest = stats.max.where(stats.max < math.inf, 0)  # without those of rows with a NaN
        return columns(stats), (stats.nll + 0.5 * stats.entropy).where(finite, 0).sum() + largest.sum()

    assert_same(*both(run, z))


def test_sum_squared_prob_near_collapse():
    """Its gradient at the argmax has the size of the other probabilities, and it is 1 in float32."""
    z = steps(6, 43)
    z[:, 7] = 35

    def run(z):
        stats = ncops.logit_stats(z)
        return {}, stats.sum_squared_prob.sum()

    ours, truth = (found["gradient 0"][:, 7].double() for found in both(run, z))
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=0)


# ---- divergences
def run_divergences(op, *inputs):
    """Columns, agreement and a loss of what is finite of them."""
    found = op(*inputs, scale=0.5, beta=0.3)
    columns = {name: getattr(found, name) for name in DIVERGENCES}
    finite = [c.where(c.isfinite(), 0) * torch.arange(1, 1 + len(c)) for c in columns.values()]
    weights = (0.7, -1.1, 1.3, 0.4, -0.6, 0.9, 0.5, -0.3)
    return columns | {"agree": found.agree}, sum(w * c.sum() for w, c in zip(weights, finite, strict=True))


@pytest.mark.parametrize("layout", [transposed, torch.clone])
def test_logit_divergence_in_blocks(monkeypatch, layout):
    """Masked in both, in either, in all classes; NaN, infinities; the same twice; maxima that tie across splits."""
    monkeypatch.setattr(_divergence_passes, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(_divergence_passes, "SHARES_PER_PROGRAM", 8)
    z = steps(11, 43)
    y = z + integers(11, 43, most=1)
    y[0, 3], y[1], y[2] = 14, z[1], z[2].flip(0)
    z[3, [5, 30]] = y[3, [5, 30]] = y[4, 42] = z[5, 0] = -math.inf
    z[6, 9], y[7, 40], y[8] = math.nan, math.inf, -math.inf
    ours, truth = both(lambda *t: run_divergences(ncops.logit_divergence, *t), layout(z), y)
    assert_same(ours, truth)
    assert ours["agree"][:2].all() and ours["kl"][6:9].isnan().all()
    assert ours["kl"][4] == ours["reverse_kl"][5] == math.inf


@pytest.mark.parametrize("two", [False, True])
def test_linear_divergence_in_blocks(monkeypatch, two):
    """Blocks of four rows; a row that is NaN and has no gradient; a class that the bias masks."""
    monkeypatch.setattr(linear_divergence, "WORKSPACE_BYTES", 4 * 2 * 22 * 4)
    monkeypatch.setattr(_gradient_sums, "CLASSES", 8)
    x, weight, bias = transposed(integers(11, 7)), integers(22, 7, most=1), integers(22)
    other, biases = (integers(11, 5), [integers(22)]) if two else (x + integers(11, 7, most=1), [])
    weights = [integers(22, 5, most=1)] if two else []
    x[5, 3] = math.nan
    for b in (bias, *biases):
        b[20] = -math.inf

    def run(x, weight, other, bias, *rest):
        other_weight, other_bias = rest or (None, None)
        return run_divergences(ncops.linear_divergence, x, weight, other, other_weight, bias, other_bias)

    assert_same(*both(run, x, weight, other, bias, *weights, *biases))


# ---- the largest logits
def run_topk(k, **options):
    def run(x, weight, bias):
        found = ncops.linear_topk(x, weight, bias, k=k, **options)
        columns = {name: getattr(found, name) for name in ("values", "lse", "logprob", "indices")}
        return columns, found.lse.nan_to_num(0, 0, 0).sum()

    return run


@pytest.mark.parametrize(
    ("v", "k", "options"),
    [
        (59, 1, {}), (59, 3, {"scale": 0.5}), (64, 3, {"softcap": 4.0}), (59, 8, {}), (64, 30, {}), (59, 59, {}),
        (5, 3, {"scale": -1.5, "softcap": 4.0}), (1, 1, {}),
    ],
    ids=str,
)  # fmt: skip
def test_linear_topk_in_blocks(monkeypatch, v, k, options):
    """Groups of four, two and one; ties in and across groups and tiles, masked classes, two rows that are poisoned."""
    monkeypatch.setattr(linear_topk, "WORKSPACE_BYTES", 1 << 11)  # of 4 rows and more
    monkeypatch.setattr(linear_topk, "PRODUCT_ROWS", 2)
    monkeypatch.setattr(linear_topk, "SHARES_PER_PROGRAM", 16)
    x, weight, bias = transposed(integers(11, 7)), integers(v, 7, most=1), integers(v)
    if v > 5:
        equal = [0, 2, 9, 30, v - 1]
        weight[equal], bias[equal] = weight[2].clone(), 3.0
        bias[10:25] = -math.inf
    x[4], x[8] = math.nan, 0
    x[9, 3], weight[:, 3] = math.inf, weight[:, 3].abs() + 1  # in all classes
    with nan_in_fresh_memory():
        assert_same(*both(run_topk(k, **options), x, weight, bias))


def test_linear_topk_of_masked_classes():
    """Fewer than k that are not, none at all."""
    for there in ([], [3], [40, 3, 17]):
        bias = torch.full((59,), -math.inf)
        bias[there] = torch.tensor([0.0, 2.0, 1.0])[: len(there)]
        assert_same(*both(run_topk(5), torch.zeros(5, 2), torch.zeros(59, 2), bias))


def test_zeros_of_both_signs_are_equal():
    with ncops.use_backend("triton"):
        found = ncops.linear_topk(torch.ones(1, 1), torch.tensor([[-1e-20], [1e-20], [1e-20]]), k=2, scale=1e-30)
    assert found.indices.tolist() == [[0, 1]] and found.values.tolist() == [[0, 0]]


def test_groups_are_more_than_k():
    for v in (1, 2, 15, 16, 17, 1000, 128256):
        for k in {1, 2, v // 100, v // 5, v // 2, v - 1, v} - {0}:
            group = linear_topk.group_size(v, k) if k <= v else 1
            assert group == 1 or -(-v // group) > k and k * group < v


# ---- classes
@pytest.mark.parametrize(("d", "ignored"), [(7, IGNORE), (12, 0), (7, 3)])
def test_class_moments_in_blocks(d, ignored):
    x, labels, center = transposed(integers(61, d)), labels_of(61, 5, ignored), integers(5, d)
    g_sums, g_sqnorms = integers(5, d), integers(5)

    def run(x):
        moments = ncops.class_moments(x, labels, 5, center=center.to(x.dtype), ignore_index=ignored)
        loss = (moments.sums * g_sums.to(x.dtype)).sum() + (moments.sqnorms * g_sqnorms.to(moments.sqnorms.dtype)).sum()
        return dict(zip(("sums", "sqnorms", "counts", "invalid"), moments[:4], strict=True)), loss

    assert_same(*both(run, x), rtol=0)


def test_accumulated_in_blocks():
    """Three calls: classes that are new, known, both and absent; class 1 is ignored."""
    ours, theirs = (
        tuple(torch.zeros(size, dtype=dtype) for size, dtype in (
            (8, torch.int64), ((8, 7), center), ((8, 7), torch.float64), (8, torch.float64), ((), torch.int64)
        ))
        for center in (torch.float32, torch.float64)
    )  # fmt: skip
    for n, c in ((30, 4), (25, 7), (40, 7)):
        x, labels = transposed(integers(n, 7)), labels_of(n, c)
        class_moments.accumulate_class_moments_(*ours, x, labels, 1)
        moments_reference.accumulate_class_moments_(*theirs, x.double(), labels, 1)
    names = ("counts", "center", "sums", "sqnorms", "invalid")
    assert_same(*(dict(zip(names, state, strict=True)) for state in (ours, theirs)), rtol=1e-6)


@pytest.mark.parametrize(("centred", "ignored"), [(False, IGNORE), (True, IGNORE), (True, 0), (True, 3)])
def test_class_scatter_in_blocks(centred, ignored):
    x, labels, center = transposed(integers(53, 11)), labels_of(53, 5, ignored), integers(5, 11)
    weight = integers(11, 11)

    def run(x, center=None):
        found = ncops.class_scatter(x, None if center is None else labels, center, ignore_index=ignored)
        return {"scatter": found}, (found * weight.to(x.dtype)).sum()

    with launch.override("class_scatter", BLOCK_N=2, FOLD=4):  # two folds a split
        assert_same(*both(run, x, *([center] if centred else [])), rtol=0)


@pytest.mark.parametrize(("d", "r", "ignored"), [(11, 9, IGNORE), (12, 8, 3)])
def test_projected_sqnorms_in_blocks(monkeypatch, d, r, ignored):
    monkeypatch.setattr(projected_sqnorms, "BLOCK_BYTES", 6 * 4 * r)  # six rows or classes at a time
    x, labels, center = transposed(integers(22, d, most=1)), labels_of(22, 8, ignored), integers(8, d, most=1)
    basis, g = transposed(integers(r, d, most=1)), integers(22)
    g[1] = 0  # of the first block alone

    def run(x, basis, center):
        found = ncops.projected_sqnorms(x, basis, labels, center, ignore_index=ignored)
        return {"sqnorms": found}, found.sum() if ignored == 3 else (found * g.to(x.dtype)).sum()

    assert_same(*both(run, x, basis, center), rtol=0)


def test_rows_without_a_gradient_may_hold_anything():
    x, labels, center, basis = integers(21, 7), labels_of(21, 5), integers(5, 7), integers(6, 7)
    labels[::3], x[::3] = 2, math.nan

    def run(x, basis, center):
        found = ncops.projected_sqnorms(x, basis, labels, center)
        return {"sqnorms": found}, found.nan_to_num(0).sum()

    ours, truth = both(run, x, basis, center)
    assert all(ours[f"gradient {i}"].isfinite().all() for i in range(3))
    assert_same(ours, truth, rtol=0)


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_labels_outside_where_nothing_may_be_raised(bad):
    """As on a GPU, where the kernels alone see them: such rows count nowhere, though there is a centre to be read."""
    x, all_centers = integers(21, 7), integers(7, 7)
    center, labels = all_centers[1:6], labels_of(21, 5)  # other centres on both sides
    skipped = labels.clone()
    labels[[0, 8, -1]], skipped[[0, 8, -1]] = bad, IGNORE
    exact = (x.double(), center.double())
    found = class_scatter.class_scatter(x, labels, center, IGNORE, False)
    assert torch.equal(found.double(), scatter_reference.class_scatter(exact[0], skipped, exact[1], IGNORE, False))
    basis = integers(6, 7)
    found = projected_sqnorms.projected_sqnorms(x, basis, labels, center, IGNORE, False)
    truth = projected_reference.projected_sqnorms(exact[0], basis.double(), skipped, exact[1], IGNORE, False)
    assert torch.equal(found.double(), truth)
    g_sums, g_sqnorms = integers(5, 7), integers(5)
    found = class_moments.class_moments_backward(g_sums, g_sqnorms, x, labels, 5, center, IGNORE)
    truth = moments_reference.class_moments_backward(
        g_sums.double(), g_sqnorms.double(), exact[0], skipped, 5, exact[1], IGNORE
    )
    assert torch.equal(found.double(), truth)


# ---- rows
@pytest.mark.parametrize("masked", [False, True])
def test_column_means_in_blocks(masked):
    rows, valid, scale = transposed(integers(61, 7)), torch.rand(61, 2)[:, 0] < 0.6 if masked else None, torch.rand(61)
    kept = torch.ones(61, dtype=torch.bool) if valid is None else valid
    for factor in (None, scale):
        mean, count = _rows.column_mean(rows, valid, factor)
        exact = rows.double() if factor is None else rows.double() * factor.double()[:, None]
        assert count == kept.sum()
        torch.testing.assert_close(mean, exact[kept].mean(0), rtol=1e-12, atol=1e-12)


def test_nearest_class_mean_in_blocks():
    n, c = 11, 51
    means = transposed(integers(c, 7, most=9))
    copies = torch.tensor([[2, 9, c - 1], [17, 40, 45], [c - 2, 0, c - 3]])
    means[copies] = means[copies[:, :1]].clone() + 20
    x = integers(n, 7, most=9)
    x[:3] = means[copies[:, 0]]
    valid = torch.rand(c) < 0.7
    valid[copies] = True
    valid[[0, 17]] = False
    means[17] = math.nan  # of no class that counts
    for mask in (valid, valid & (torch.arange(c) != 40) & (torch.arange(c) < c - 3)):
        found = nearest_class_mean.nearest_class_mean(x, means, mask, False)
        distances = (x.double()[:, None] - means.double()).square().sum(2).where(mask, math.inf)
        assert torch.equal(found[1], distances.argmin(1)) and torch.equal(found[0].double(), distances.amin(1))
    x[1, 3] = math.nan
    sqdist, index = nearest_class_mean.nearest_class_mean(x, means, valid, False)
    assert (index == -1).tolist() == sqdist.isnan().tolist() == [i == 1 for i in range(n)]


# ---- pairs
KERNELS = ("dot", "cosine", "distance", "log_distance", "riesz", "gaussian", "cdnv")
RESULTS = ("mean", "var", "min", "max", "row_max", "count", "row_argmax")


def pair_problem(k: int, kernel: str):
    rows, valid = transposed(integers(k, 7)), torch.rand(k, 2)[:, 0] < 0.8
    valid[[0, 4, 13, k - 1]] = True
    return rows, valid, torch.arange(k).float() / k + 0.1 if kernel == "cdnv" else None


@pytest.mark.parametrize(
    ("kernel", "masked"), [*((kernel, True) for kernel in KERNELS), ("dot", False), ("cdnv", False)]
)
def test_pair_stats_in_blocks(monkeypatch, kernel, masked):
    monkeypatch.setattr(pair_backward, "STRIP_BYTES", 1)  # strips of one tile, and so two splits of the others
    rows, valid, variances = pair_problem(18, kernel)
    if kernel == "dot":  # exact, with ties: no product of row 0 is larger than these, in both groups
        rows[[4, 13, 17]] = torch.where(rows[0] < 0, -2.0, 2.0)
    else:
        rows += torch.rand(rows.shape) / 8
    g = integers(18)

    def run(rows, variances=None):
        power, mask = 0.5 if kernel == "gaussian" else 2.0, valid if masked else None
        stats = ncops.pair_stats(rows, kernel, variances=variances, power=power, valid=mask)
        found = {name: getattr(stats, name) for name in RESULTS}
        return found, stats.mean * 3 + (stats.row_max.nan_to_num(0) * g.to(rows.dtype)).sum()

    assert_same(*both(run, rows, *([] if variances is None else [variances])))


def test_pair_stats_in_blocks_of_a_close_pair():
    """A hundredth of the rows' size apart, where products have lost half of their digits."""
    rows = 50 * torch.rand(18, 7)
    rows[9] = rows[0] * (1 + 2**-7)
    least = pair_stats.pair_stats(rows, "distance", None, 1.0, None, None, -100, False)[2]
    torch.testing.assert_close(least.double(), torch.dist(*rows[[0, 9]].double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wide", [False, True])
def test_rows_that_coincide(wide):
    """In one tile and in several, and in the second word of a wide tile's bits."""
    rows = transposed(integers(70, 5, most=9)) + torch.rand(70, 5) / 8
    rows[[1, 66]], rows[[55, 69]] = rows[0].clone(), rows[67].clone()
    rows[68] = rows[5] + 2**-12
    rows = rows if wide else rows[52:]

    def run(rows):
        stats = ncops.pair_stats(rows, "distance")
        return {name: getattr(stats, name) for name in ("mean", "min", "max")}, stats.mean

    with ExitStack() as stack:
        for kernel in ("pair_distances", "pair_factors") if wide else ():
            stack.enter_context(launch.override(kernel, BLOCK=128))
        assert_same(*both(run, rows))


@pytest.mark.parametrize("kernel", ["dot", "distance"])
@pytest.mark.parametrize("row", [0, 9, 17])
def test_a_nan_in_one_tile_of_several(kernel, row):
    rows = pair_problem(18, kernel)[0]
    rows[row, 5] = math.nan
    found = pair_stats.pair_stats(rows, kernel, None, 1.0, None, None, -100, False)
    mean, var, low, high, row_max, count, row_argmax = found
    assert mean.isnan() and var.isnan() and low.isnan() and high.isnan() and count == 153
