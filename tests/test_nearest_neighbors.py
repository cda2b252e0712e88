"""nearest_neighbors: all distances in float64 and a stable sort of them."""

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
    interpreter_blocks,
    layouts,
    randn,
)

import ncops

INF = math.inf
BACKENDS = ("reference", "cpu")  # of sizes that are too large for Triton's interpreter
blocks = interpreter_blocks({})


def naive(x, rows=None, valid=None, metric="euclidean"):
    """Squared distances ``(N, M)`` in float64, infinite where there is no candidate."""
    x, itself = x.double(), rows is None
    rows = x if rows is None else rows.double()
    if metric == "cosine":
        x, rows = (t / t.norm(dim=1, keepdim=True) for t in (x, rows))
    d = torch.stack([(x - row).square().sum(1) for row in rows], 1)
    if valid is not None:
        d[:, ~valid] = INF
    return d.fill_diagonal_(INF) if itself else d


def check(x, rows=None, *, k, **more):
    """The distances are the least, and those of the indices; each index once, in order."""
    found = ncops.nearest_neighbors(x, rows, k=k, **more)
    d = naive(x, rows, **more)
    least = d.sort(dim=1)[0][:, :k]
    assert found.index.dtype == torch.int64 and found.sqdist.shape == found.index.shape == (len(x), k)
    own = d.gather(1, found.index)
    size = float(x.double().abs().max()) ** 2
    eps = torch.finfo(found.sqdist.dtype).eps
    torch.testing.assert_close(found.sqdist.double(), own, rtol=8 * eps, atol=eps * 1e-3)
    assert ((own - least).abs() <= 64 * eps * max(size, 1e-30) * x.shape[1]).all()
    assert (found.sqdist.diff(dim=1) >= 0).all() and found.index.sort(dim=1)[0].diff(dim=1).ne(0).all()
    return found


@dtypes
@pytest.mark.parametrize("k", [1, 5, 29])
def test_against_float64(backend, dtype, k):
    x, rows = randn(23, 7, dtype=dtype), randn(30, 7, dtype=dtype)
    check(x, rows, k=k)
    check(rows, k=k)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_metrics_and_candidates(backend, metric):
    x, rows, valid = randn(19, 6) + 0.5, randn(40, 6) + 0.5, torch.rand(40) < 0.6
    check(x, rows, k=4, metric=metric, valid=valid)
    check(rows, k=4, metric=metric, valid=valid)


@layouts
def test_layouts(backend, layout):
    x, rows = randn(11, 6, dtype=torch.float32), randn(17, 6, dtype=torch.float32)
    check(x, LAYOUTS[layout](rows) if layout != "expanded" else rows, k=3)
    check(LAYOUTS[layout](x), rows, k=3)


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "dtype"),
    [
        (70, 9_001, 5, 20, torch.float32),  # splits
        (2_500, 700, 3, 300, torch.float32),  # most of the rows
        (40, 1_100, 1_700, 6, torch.float32),  # steps of the product
        (40, 3_000, 5, 50, torch.float64),
        (3, 3_000, 5, 5, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("cpu_backend", BACKENDS)
def test_across_blocks_and_splits(cpu_backend, n, m, d, k, dtype):
    with ncops.use_backend(cpu_backend):
        check(randn(n, d, dtype=dtype), randn(m, d, dtype=dtype), k=k)


def test_several_ranges_of_points():
    """64 MB of candidates are 1024 points of these, which lie on a line before the rows."""
    x, rows = -torch.arange(1_100.0)[:, None], torch.randperm(4_200)[:, None].float()
    with ncops.use_backend("cpu"):
        found = ncops.nearest_neighbors(x, rows, k=4_100)
    order = rows[:, 0].argsort()[:4_100]
    assert torch.equal(found.index, order.expand(1_100, -1)) and torch.equal(found.sqdist, (rows[order, 0] - x) ** 2)


@pytest.mark.parametrize("m", [30, 2_000])
def test_points_among_themselves(backend, m):
    """No point is its own neighbour, wherever it lies in a tile; its copy is, at distance 0."""
    m = m if backend != "triton" else min(m, 100)
    x = randn(m, 4, dtype=torch.float32)
    x[m - 1] = x[3]
    found = check(x, k=3)
    assert (found.index != torch.arange(m)[:, None]).all()
    assert found.index[3, 0] == m - 1 and found.index[m - 1, 0] == 3
    assert found.sqdist[3, 0] == 0 and found.sqdist[m - 1, 0] == 0


@pytest.mark.parametrize("cpu_backend", BACKENDS)
def test_ties_go_to_the_lowest(cpu_backend):
    """Points of a grid, of which many are equally far; the last ones are copies of the first."""
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    rows = torch.cat([grid, grid.flip(0), grid])
    with ncops.use_backend(cpu_backend):
        for k in (1, 4, 12):
            found = ncops.nearest_neighbors(grid, rows, k=k)
            distances, order = naive(grid, rows).sort(dim=1, stable=True)
            assert torch.equal(found.sqdist.double(), distances[:, :k])
            assert torch.equal(found.index, order[:, :k])


def test_ties_of_distances_whose_scores_round_apart(backend):
    """Rows at one distance exactly, on a sphere far from their mean, about which products are formed."""
    steps = [[3, 4, 0], [-3, 4, 0], [0, 3, -4], [4, 0, 3], [0, -5, 0], [5, 0, 0], [0, 0, 5], [-4, 0, -3]]
    x = torch.tensor([[1.0, 2, 3], [1000, -900, 77], [-31, 8, 0.5]])
    rows = torch.cat([(x[:, None] + torch.tensor(steps)).flatten(0, 1), 1000 * torch.randn(40, 3)])
    for k in (3, 8):  # of equal ones more are looked at than are asked for
        found = ncops.nearest_neighbors(x, rows, k=k)
        assert (found.sqdist == 25).all()
        assert torch.equal(found.index, torch.arange(24).view(3, 8)[:, :k])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_common_offset_changes_nothing(backend, offset):
    x = (randn(60, 5) + offset).float()
    rows = (randn(90, 5) + offset).float()
    found = ncops.nearest_neighbors(x, rows, k=6)
    distances, order = naive(x, rows).sort(dim=1)
    assert torch.equal(found.index, order[:, :6])
    torch.testing.assert_close(found.sqdist.double(), distances[:, :6], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_rows_that_are_not_finite(backend, bad):
    x, rows = randn(9, 4, dtype=torch.float32), randn(40, 4, dtype=torch.float32)
    x[2, 1] = rows[0, 3] = rows[7, 0] = bad
    found = ncops.nearest_neighbors(x, rows, k=3)
    assert found.sqdist[2].isnan().all() and (found.index[2] == -1).all()
    kept = torch.ones(40, dtype=torch.bool)
    kept[[0, 7]] = False
    clean = ncops.nearest_neighbors(x, rows.where(kept[:, None], 0), k=3, valid=kept)
    assert torch.equal(found.index, clean.index) and found.index.unique().tolist()[0] == -1
    alone = ncops.nearest_neighbors(rows, k=3)
    assert (alone.index[[0, 7]] == -1).all() and not ((alone.index == 0) | (alone.index == 7)).any()


def test_fewer_candidates_than_asked_for(backend):
    x, rows, valid = randn(5, 3), randn(8, 3), torch.zeros(8, dtype=torch.bool)
    valid[[2, 6]] = True
    found = ncops.nearest_neighbors(x, rows, k=4, valid=valid)
    assert (found.index[:, 2:] == -1).all() and found.sqdist[:, 2:].isnan().all()
    assert (found.index[:, :2].sort(dim=1)[0] == torch.tensor([2, 6])).all()
    none = ncops.nearest_neighbors(x, rows, k=2, valid=torch.zeros(8, dtype=torch.bool))
    assert (none.index == -1).all() and none.sqdist.isnan().all()


@dtypes
def test_gradients(backend, dtype):
    x, rows = randn(13, 6, dtype=dtype).requires_grad_(), randn(20, 6, dtype=dtype)
    weight = randn(13, 4).abs() + 0.1
    for candidates in (rows, None):
        found = ncops.nearest_neighbors(x, candidates, k=4)
        (mine,) = torch.autograd.grad((found.sqdist * weight).sum(), x)
        near = (x.detach() if candidates is None else candidates).double()[found.index]
        wide, plain = x.detach().double().requires_grad_(), x.detach().to(found.sqdist.dtype).requires_grad_()
        (truth,) = torch.autograd.grad(((wide[:, None] - near).square().sum(2) * weight).sum(), wide)
        lean = near.to(plain.dtype)
        (torchs,) = torch.autograd.grad(((plain[:, None] - lean).square().sum(2) * weight).sum(), plain)
        assert_accurate(mine, torchs.to(mine.dtype), truth, eps=8 if mine.element_size() > 2 else 1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gradcheck(metric):
    x, rows = randn(6, 4).requires_grad_(), randn(12, 4)
    assert torch.autograd.gradcheck(lambda x: ncops.nearest_neighbors(x, rows, k=3, metric=metric).sqdist, x)


def test_rows_get_no_gradient():
    x, rows = randn(6, 4), randn(12, 4).requires_grad_()
    assert not ncops.nearest_neighbors(x, rows, k=3).sqdist.requires_grad
    assert not ncops.nearest_neighbors(x.requires_grad_(), k=3).index.requires_grad


def test_local_intrinsic_dimension_trains(backend):
    """What LDReg does: distances to detached candidates, and a loss of them."""
    x = randn(50, 5, dtype=torch.float32).requires_grad_()
    r = ncops.nearest_neighbors(x, k=20).sqdist.sqrt()
    loss = -ncops.metrics.lid_moments(r).log().abs().mean()
    loss.backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_rows_without_gradient_spoil_nothing(backend):
    x = randn(6, 3, dtype=torch.float32)
    x[2] = math.nan
    x.requires_grad_()
    found = ncops.nearest_neighbors(x, torch.randn(9, 3), k=2)
    kept = torch.arange(6) != 2
    found.sqdist[kept].sum().backward()
    assert x.grad.isfinite().all() and (x.grad[2] == 0).all()
    found = ncops.nearest_neighbors(x, torch.randn(9, 3), k=2)
    (grad,) = torch.autograd.grad(found.sqdist.sum(), x)
    assert grad[2].isnan().all() and grad[kept].isfinite().all()


def test_over_blocks(monkeypatch):
    block_rows(monkeypatch)
    with ncops.use_backend("reference"):
        check(randn(23, 5), randn(30, 5), k=4)
        check(randn(23, 5), k=4)
        x, rows = randn(23, 5).requires_grad_(), randn(30, 5)
        assert torch.autograd.gradcheck(lambda x: ncops.nearest_neighbors(x, rows, k=3).sqdist, x)


def test_determinism(backend):
    m = 2_000 if backend != "triton" else 70
    x, rows = randn(m // 10, 6, dtype=torch.float32), randn(m, 6, dtype=torch.float32)
    assert_deterministic(lambda: ncops.nearest_neighbors(x, rows, k=30), backend)


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (1, 4, 1)])
def test_sizes_of_nothing(backend, shape):
    n, d, m = shape
    found = ncops.nearest_neighbors(torch.randn(n, d), torch.randn(m, d), k=1)
    assert found.sqdist.shape == (n, 1)
    if n and not d:
        assert (found.sqdist == 0).all() and (found.index == 0).all()


def test_shapes_of_points():
    x, rows = torch.randn(2, 3, 4), torch.randn(9, 4)
    found, flat = ncops.nearest_neighbors(x, rows, k=2), ncops.nearest_neighbors(x.view(6, 4), rows, k=2)
    assert found.sqdist.shape == found.index.shape == (2, 3, 2) and torch.equal(found.index.view(6, 2), flat.index)
    one = ncops.nearest_neighbors(x[0, 0], rows, k=2)
    assert one.index.shape == (2,) and torch.equal(one.index, found.index[0, 0])


def test_compiles():
    rows = torch.randn(9, 4)
    assert_compiles(lambda x: tuple(ncops.nearest_neighbors(x, rows, k=3)), torch.randn(6, 4))


def test_opcheck():
    x, rows = torch.randn(6, 4).requires_grad_(), torch.randn(9, 4)
    torch.library.opcheck(torch.ops.ncops.nearest_neighbors, (x, rows, 3, None, False))
    torch.library.opcheck(torch.ops.ncops.nearest_neighbors, (x, None, 3, torch.rand(6) < 0.9, False))


def test_refusals():
    x, rows = torch.randn(5, 4), torch.randn(9, 4)
    with pytest.raises(ValueError, match="k: expected at most 9"):
        ncops.nearest_neighbors(x, rows, k=10)
    with pytest.raises(ValueError, match="k: expected at most 4"):
        ncops.nearest_neighbors(x, k=5)
    with pytest.raises(ValueError, match="metric: expected one of euclidean, cosine, got 'dot'"):
        ncops.nearest_neighbors(x, rows, k=1, metric="dot")
    with pytest.raises(ValueError, match="rows: expected the dtype of x"):
        ncops.nearest_neighbors(x, rows.double(), k=1)
    with pytest.raises(ValueError, match=r"rows: expected shape \(M, D\)"):
        ncops.nearest_neighbors(x, rows[:, :3], k=1)
    with pytest.raises(ValueError, match=r"valid: expected shape \(M,\)"):
        ncops.nearest_neighbors(x, rows, k=1, valid=torch.ones(5, dtype=torch.bool))
