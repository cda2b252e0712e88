"""Divergences and their gradients put together from shards of the classes, against all at once; in one process."""

from __future__ import annotations

import math

import pytest
import torch
from test_divergences import check_digits, columns, dense, gradients, naive, objective, problem
from testing import assert_accurate, block_rows, dtypes, exact, plain, randn

import ncops
from ncops import backends
from ncops.backends.dtypes import compute_dtype
from ncops.backends.planes import DIVERGENCE_PLANES, DIVERGENCES
from ncops.distributed.shard_divergences import finish, local_ratios, local_share, merge_shares, shard_gradients
from ncops.ops.divergences import result

CUTS = {"halves": (20,), "uneven": (1, 30), "empty": (0, 17, 17, 35), "one": ()}
HEADS = {"one": {}, "two": {"two": True}, "two no bias": {"two": True, "bias": False}}
OPTIONS = {"plain": {}, "capped": {"scale": 1.3, "softcap": 2.0, "beta": 0.7}}
cuts = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
heads = pytest.mark.parametrize("head", HEADS)
options = pytest.mark.parametrize("name", OPTIONS)


def cut(tensors, cuts):
    """(first class, tensors of the shard) of each."""
    x, weight, other, *others = tensors
    ends = (0, *cuts, len(weight))
    for start, end in zip(ends, ends[1:], strict=False):
        yield start, (x, weight[start:end], other, *(None if t is None else t[start:end] for t in others))


def as_options(scale=1.0, softcap=None, beta=0.5):
    return scale, softcap or 0.0, beta, False


def merged(tensors, cuts, **more):
    given = as_options(**more)
    shards = list(cut(tensors, cuts))
    found = merge_shares(torch.stack([local_share(shard, start, given) for start, shard in shards]))
    every = torch.stack([local_ratios(shard, found[0], given) for _, shard in shards])
    return finish(*found, every, given[2], compute_dtype(tensors[0].dtype))


def sharded(tensors, cuts, **more):
    return result(merged(tensors, cuts, **more), (len(tensors[0]),))


def sharded_gradients(tensors, cuts, **more):
    """Those of the objective, of the tensors that there are, in the order of ``tensors``."""
    floats, _ = merged(tensors, cuts, **more)
    leaf = floats.detach().requires_grad_()
    named = dict(zip(DIVERGENCE_PLANES, leaf.unbind(), strict=True))
    (grad,) = torch.autograd.grad(objective({name: named[name] for name in DIVERGENCES}), leaf)
    parts = [
        shard_gradients(grad, floats, shard, as_options(**more), [t is not None for t in tensors])
        for _, shard in cut(tensors, cuts)
    ]
    of_rows = {i: sum(p[i].double() for p in parts).to(tensors[0].dtype) for i in (0, 2)}
    return [
        of_rows[i] if i in of_rows else torch.cat([p[i] for p in parts]) for i, t in enumerate(tensors) if t is not None
    ]


@dtypes
@heads
@options
@cuts
def test_columns_and_gradients_against_float64(backend, monkeypatch, cuts, dtype, head, name):
    block_rows(monkeypatch)
    more = OPTIONS[name]
    tensors = problem(13, 7, 35, dtype, **HEADS[head])
    scale, rest = more.get("scale", 1.0), {k: v for k, v in more.items() if k != "scale"}
    truth, torchs = (gradients(lambda *t: naive(*dense(*t, scale), **rest), wide(*tensors)) for wide in (exact, plain))
    found = sharded(tensors, cuts, **more)
    size = max(1.0, *(truth[0][column].abs().max().item() for column in ("lse", "other_lse")))
    for column in DIVERGENCES:
        assert_accurate(getattr(found, column), torchs[0][column], truth[0][column], what=column, scale=size)
        assert column not in ("kl", "reverse_kl", "js") or (getattr(found, column) >= 0).all()
    assert torch.equal(found.agree, ncops.linear_divergence(*tensors, **more).agree)
    for i, (a, b, c) in enumerate(zip(sharded_gradients(tensors, cuts, **more), torchs[1], truth[1], strict=True)):
        eps = 8 if a.element_size() > 2 else 2  # the parts of a gradient of rows are rounded before they are added
        assert_accurate(a, b.to(a.dtype), c, what=f"gradient {i}", eps=eps, scale=4.0)


SIZES = [10.0**-k for k in range(11)]


@pytest.mark.parametrize("size", SIZES)
def test_one_head_keeps_the_digits_of_small_divergences(backend, size):
    x, weight = randn(60, 16, dtype=torch.float32), randn(300, 16, dtype=torch.float32, scale=0.25)
    other = x + randn(60, 16, dtype=torch.float32, scale=(2 * size) ** 0.5)
    tensors = [x, weight, other, None, randn(300, dtype=torch.float32), None]
    for cuts in ((100, 200), (1, 2, 299)):
        check_digits(sharded(tensors, cuts), *dense(*exact(*tensors)), size)


@pytest.mark.parametrize("size", SIZES)
def test_two_heads_keep_the_digits_of_the_difference(backend, size):
    """Products that float32 forms exactly, as in test_divergences.py."""
    grid = 2.0**-20
    x, weight = torch.eye(40)[:30], (randn(250, 40) / grid).round().mul(grid).clamp(-4, 4)
    other_weight = weight + (randn(250, 40, scale=(2 * size) ** 0.5) / grid).round().mul(grid).clamp(-3.5, 3.5)
    tensors = [x, weight.float(), x, other_weight.float(), None, None]
    z, y = x @ tensors[1].T, x @ tensors[3].T
    check_digits(sharded(tensors, (90, 180)), z.double(), y.double(), size)


def test_far_apart(backend):
    for two in (False, True):
        tensors = [None if t is None else 10 * t for t in problem(9, 12, 35, torch.float32, two=two, step=1.0)]
        assert_same(sharded(tensors, (11, 30)), ncops.linear_divergence(*tensors))


def assert_same(found, expected):
    size = max(1.0, *(c.nan_to_num(0, 0, 0).abs().max().item() for c in expected if c.is_floating_point()))
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        if a.dtype == torch.bool:
            assert torch.equal(a, b), name
        else:
            atol = 8 * torch.finfo(b.dtype).eps * size
            torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


MASKS = {
    "in both": ([5], [5]), "in one": ([5], []), "in the other": ([], [5]), "each its own": ([5], [14]),
    "a shard in one": (range(8, 20), []), "a shard in the other": ([], range(8, 20)),
    "a shard in both": (range(8, 20), range(8, 20)), "a shard each": (range(8, 20), range(20, 35)),
    "all of one": (range(35), []), "all but one class": (range(34), range(34)),
}  # fmt: skip


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_masked_classes(backend, masks):
    """Also where a shard has nothing but masked classes, of one side or of both."""
    tensors = problem(9, 6, 35, torch.float64, two=True)
    for bias, classes in zip(tensors[4:], masks, strict=True):
        bias[list(classes)] = -math.inf
    assert_same(sharded(tensors, (8, 20)), ncops.linear_divergence(*tensors))
    one = [*tensors[:2], tensors[0] + 0.1, None, tensors[4], None]
    assert_same(sharded(one, (8, 20)), ncops.linear_divergence(*one))
    for given in (tensors, one):
        mine = sharded_gradients(given, (8, 20))
        _, theirs = gradients(lambda *t: columns(ncops.linear_divergence(*t)), given)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-9, atol=1e-11)


def test_a_shard_without_mass_has_its_part_in_what_is_infinite(backend):
    tensors = problem(9, 6, 35, torch.float64, two=True)
    tensors[4][8:20] -= 2000  # e^-2000 is 0
    tensors[5][10] = -math.inf
    found = sharded(tensors, (8, 20))
    assert (found.kl == math.inf).all()
    assert_same(found, ncops.linear_divergence(*tensors))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_poisoned_rows(backend, bad):
    tensors = problem(8, 5, 20, torch.float32, two=True)
    tensors[0][2, 1], tensors[2][5, 0], tensors[3][11, 0] = bad, bad, 0.0
    assert_same(sharded(tensors, (7, 15)), ncops.linear_divergence(*tensors))
    tensors[4][7:15] = -math.inf  # a masked shard in which the row is poisoned all the same
    assert_same(sharded(tensors, (7, 15)), ncops.linear_divergence(*tensors))
    tensors = problem(8, 5, 20, torch.float32)
    tensors[1][9, 2] = bad  # a class of one shard, NaN or infinite of either sign
    expected = ncops.linear_divergence(*tensors)
    assert expected.kl.isnan().any()
    assert_same(sharded(tensors, (7, 15)), expected)
    floats, _ = torch.ops.ncops.linear_divergence_share(*tensors, 1.0, 0.0, False)
    assert torch.equal(floats.isnan().all(0), expected.kl.isnan()) and not floats[:, ~expected.kl.isnan()].isnan().any()


def test_agree_takes_the_lowest_index_of_all_shards(backend):
    z = torch.tensor([[1.0, 2, 2], [3, 1, 3], [0, 0, 0]])
    y = torch.tensor([[0.0, 5, 5], [1, 1, 3], [0, 0, 1]])
    tensors = [torch.eye(3), z.T.contiguous(), torch.eye(3), y.T.contiguous(), None, None]
    for cuts in ((1,), (2,), (1, 2)):
        assert sharded(tensors, cuts).agree.tolist() == [True, False, False]


def test_the_same_twice_is_exactly_nothing(backend):
    x, weight, _, _, bias, _ = problem(9, 5, 30, torch.float32)
    found = sharded([x, weight, x, None, bias, None], (8, 20))
    assert (found.kl == 0).all() and (found.reverse_kl == 0).all() and (found.js == 0).all() and found.agree.all()


def test_few_rows(backend):
    for rows in (0, 1):
        tensors = problem(rows, 5, 20, torch.float32, two=True)
        assert_same(sharded(tensors, (7, 15)), ncops.linear_divergence(*tensors)) if rows else None
        assert sharded(tensors, (7, 15)).kl.shape == (rows,)


@pytest.mark.parametrize("shape", [(530, 5, 2001), (600, 12, 1003)], ids=str)
def test_blocks_splits_and_groups(shape):
    """Blocks of rows, splits of the classes, groups of rows; the last class of all is a shard."""
    with ncops.use_backend("cpu"):
        tensors = problem(*shape, torch.float32, two=True)
        tensors[1], tensors[3] = (t * shape[1] ** -0.5 for t in (tensors[1], tensors[3]))
        assert_same(sharded(tensors, (900, shape[2] - 1)), ncops.linear_divergence(*tensors))


@pytest.mark.triton
def test_triton_takes_some_rows_at_a_time(monkeypatch):
    passes = pytest.importorskip("ncops.triton_kernels._divergence_passes")
    tensors = problem(13, 5, 20, torch.float32, two=True)
    with ncops.use_backend("triton"):
        whole = sharded(tensors, (7,))
        monkeypatch.setattr(passes, "ROWS_AT_ONCE", 8)
        for a, b in zip(columns(sharded(tensors, (7,))).values(), columns(whole).values(), strict=True):
            assert torch.equal(a, b)


def test_opcheck(backend):
    tensors = problem(6, 5, 9, torch.float32, two=True)
    whole = torch.stack([torch.full((6,), 9.0), torch.full((6,), 8.0), torch.zeros(6)]).double()
    tests = ("test_schema", "test_faketensor")
    for op, arguments in (
        (torch.ops.ncops.linear_divergence_share, (*tensors, 0.7, 0.0, False)),
        (torch.ops.ncops.linear_divergence_ratios, (*tensors, whole, 0.7, 0.0, 0.5, False)),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=tests)


@pytest.mark.parametrize("form", ["share", "ratios"])
def test_who_runs_them(form):
    assert backends.choose(f"linear_divergence_{form}", "cpu") == "cpu"
    assert backends.choose(f"linear_divergence_{form}", "cuda") == "triton"
