"""What only the Triton kernels of linear_stats can get wrong: splits, chunks, the target's own tile."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, objective, problem
from testing import HALF, IGNORE, assert_deterministic, randn

import ncops
from ncops.backends import planes

pytest.importorskip("triton")
from ncops.triton_kernels import _descriptor_splits as descriptors  # noqa: E402
from ncops.triton_kernels import linear_stats as forward  # noqa: E402
from ncops.triton_kernels import linear_stats_backward as backward  # noqa: E402
from ncops.triton_kernels._candidates import CHOSEN, candidate  # noqa: E402

pytestmark = pytest.mark.triton
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _triton():
    with ncops.use_backend("triton"):
        yield


def reference(*args, **options):
    with ncops.use_backend("reference"):
        return ncops.linear_stats(*args, **options)


@DTYPES
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_target_and_rivals_have_the_same_bits(dtype, softcap):
    """Every class in turn is the target: ranks counted in the tiles must be those of the logits from the diagonal."""
    x, weight, bias, _ = problem(3, 37, 40, dtype)
    weight[7], bias[7] = weight[23], bias[23]  # a tie in every row: strictly greater, or it would count itself
    options = {"scale": 0.3, "softcap": softcap}
    stats = ncops.linear_stats(x.repeat_interleave(40, 0), weight, bias, torch.arange(40).repeat(3), **options)
    own = stats.target_logit.view(3, 40)
    assert torch.equal(stats.target_rank.view(3, 40), (own[:, None, :] > own[:, :, None]).sum(2))
    assert torch.equal(own[:, 7], own[:, 23])
    assert torch.equal(stats.max.view(3, 40)[:, 0], own.amax(1))
    assert torch.equal(stats.second.view(3, 40)[:, 0], own.topk(2, 1).values[:, 1])


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_any_number_of_splits(monkeypatch, splits):
    x, weight, bias, target = problem(18, 9, 75, torch.float32)
    bias[:60] = -math.inf  # the first parts hold nothing but masked classes
    bias[3] = 1.0
    weight[74] = weight[70]
    monkeypatch.setattr(forward, "split_count", lambda there, programs, tiles: splits)
    target[5:9] = 3
    ours, truth = ncops.linear_stats(x, weight, bias, target), reference(x, weight, bias, target)
    for name in FLOATS:
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=1e-5, atol=1e-5, equal_nan=True)
    for name in ("argmax", "second_index", "target_rank", "valid"):
        assert torch.equal(getattr(ours, name), getattr(truth, name)), name


def test_rows_in_several_launches(monkeypatch):
    x, weight, bias, target = problem(45, 7, 70, torch.float32)
    whole = ncops.linear_stats(x, weight, bias, target)
    monkeypatch.setattr(forward, "ROWS_AT_ONCE", 32)  # a multiple of the block of rows, so the tiles are the same
    sizes, run = [], forward._run
    monkeypatch.setattr(forward, "_run", lambda *a: sizes.append(a[2].shape[0]) or run(*a))
    parts = ncops.linear_stats(x, weight, bias, target)
    assert sizes == [32, 13]
    bare = ncops.linear_stats(x, weight, bias)
    for a, b in zip(parts[:13], whole[:13], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert torch.equal(bare.argmax, whole.argmax) and bare.nll is None


def test_targets_outside_where_nothing_may_be_raised():
    """On a GPU the kernel alone sees them: NaN, rank -1, and no gradient."""
    x, weight, bias, target = problem(6, 5, 20, torch.float32)
    target[:] = torch.tensor([0, -1, 20, 2**40, IGNORE, 19])
    floats, indices = forward.linear_stats(x, weight, bias, target, 1.0, 0.0, IGNORE, False)
    own, nll = (floats[planes.FLOATS.index(name)] for name in ("target_logit", "nll"))
    rank = indices[planes.INDICES.index("target_rank")]
    assert nll.isnan().tolist() == own.isnan().tolist() == [False, True, True, True, False, False]
    assert rank[1:5].tolist() == [-1] * 4 and nll[4] == own[4] == 0
    gradients = torch.zeros(len(planes.FLOATS), 6)
    gradients[planes.FLOATS.index("nll")] = 1
    options = (1.0, 0.0, IGNORE, False, True, True, True)
    g_x, _, _ = backward.linear_stats_backward(gradients, floats, indices, x, weight, bias, target, *options)
    assert (g_x[1:5] == 0).all() and (g_x[[0, 5]] != 0).all()
    floats, indices = forward.linear_stats(x, weight, bias, None, 1.0, 0.0, IGNORE, False)  # as if all were ignored
    assert (floats[4:6] == 0).all() and (indices[2] == -1).all()


@pytest.mark.parametrize(("splits", "softcap"), [(1, 0.0), (3, 0.0), (3, 5.0)])
def test_the_share_of_all_classes_is_that_of_the_columns(monkeypatch, splits, softcap):
    """Also where there is a NaN, a mask or nothing but masks; with the targets' logits and without."""
    x, weight, bias, target = problem(20, 9, 75, torch.float32)
    target %= 75
    x[0, 0], x[1] = math.nan, math.inf
    monkeypatch.setattr(forward, "split_count", lambda there, programs, tiles: splits)
    monkeypatch.setattr(forward, "ROWS_AT_ONCE", 16)
    for mask in (0, 60, 75):
        bias[:mask] = -math.inf
        z = forward.linear_stats_targets(x, weight, bias, target, 0.7, softcap, IGNORE, False)
        floats, indices = forward.linear_stats(x, weight, bias, target, 0.7, softcap, IGNORE, False)
        columns = dict(zip(planes.FLOATS + planes.INDICES, (*floats, *indices), strict=True))
        for target_logit in (z, None):
            found = forward.linear_stats_share(x, weight, bias, target_logit, 0.7, softcap, False)
            names = planes.SHARE_FLOATS + planes.SHARE_INDICES
            share = dict(zip(names, (*found[0], *found[1]), strict=True))
            assert found[0].dtype == torch.float64 and (share["count"] == 75).all()
            poisoned = share["max"].isnan()
            assert torch.equal(poisoned, columns["max"].isnan()) and poisoned[:2].all() and not poisoned[2:].any()
            share, there = ({name: c[2:] for name, c in d.items()} for d in (share, columns))
            assert torch.equal(share["max"].float(), there["max"]) and torch.equal(share["argmax"], there["argmax"])
            assert torch.equal(share["second"].float(), there["second"])
            assert share["squares"].isfinite().all()
            if mask == 75:
                assert (share["rest"] == -1).all() and (share["weighted"] == 0).all()
                continue
            assert torch.equal(share["second_index"], there["second_index"])
            gap = share["rest"].log1p()
            entropy = gap - share["weighted"] / (1 + share["rest"])
            made = {"gap": gap, "entropy": entropy, "mean": share["mean"]}
            for name, c in made.items() if mask else (made | {"var": share["squares"] / 75}).items():
                torch.testing.assert_close(c.float(), there[name], rtol=1e-6, atol=0)
            assert torch.equal(share["rank"], there["target_rank"] if target_logit is z else 0 * target[2:])


@DTYPES
@pytest.mark.parametrize(("bias", "softcap"), [(True, None), (False, None), (True, 3.0)])
def test_gradients_over_many_chunks(monkeypatch, dtype, bias, softcap):
    x, weight, bias, target = problem(20, 9, 40, dtype, bias)
    given, options = [t for t in (x, weight, bias) if t is not None], {"scale": 0.7, "softcap": softcap}

    def gradients(run):
        inputs = [t.detach().requires_grad_() for t in given]
        return torch.autograd.grad(objective(run(*inputs, target=target, **options)._asdict(), 20), inputs)

    truth = gradients(reference)
    itemsize = dtype.itemsize
    monkeypatch.setattr(backward, "WORKSPACE_BYTES", 16 * 16 * itemsize)
    monkeypatch.setattr(backward, "LEAST_CLASSES", 16)
    assert backward.chunk_shape(20, 40, itemsize, 16) == (16, 16)
    for a, b in zip(gradients(ncops.linear_stats), truth, strict=True):
        eps = torch.finfo(dtype).eps  # half precision rounds the logits' gradient, the result and the truth, once each
        assert (a.double() - b.double()).abs().max() <= (16 if dtype == torch.float32 else 1.5) * eps * b.abs().max()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_small_gradients_are_kept_and_rows_without_one_left_out(dtype):
    """Classes 16..31 are 6 below the first ones, classes 32..47 are 14 below; rows 16..31 are ignored."""
    x, weight = randn(48, 8, dtype=dtype, scale=0.1), randn(48, 8, dtype=dtype, scale=0.1)
    bias = torch.zeros(48, dtype=dtype)
    bias[16:32], bias[32:] = -6, -14
    target = torch.arange(48) % 16
    target[16:32] = IGNORE
    x[20] = math.nan  # in a row without gradient, beside rows with one in none of its tiles
    x[3, 0], target[3] = math.nan, IGNORE  # and beside rows with one in all of them
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    ours, truth = (torch.autograd.grad(f(*inputs, target).loss("nll"), inputs) for f in (ncops.linear_stats, reference))
    for a, b in zip(ours, truth, strict=True):
        assert a.isfinite().all()
        for classes in (slice(0, 16), slice(16, 32), slice(32, 48)):  # the small ones by their own size
            part, whole = (a, b) if a is ours[0] else (a[classes], b[classes])
            tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert (part.double() - whole.double()).abs().max() <= torch.finfo(dtype).eps * whole.abs().max() + tiny
    kept = slice(16, 48 if dtype == torch.bfloat16 else 32)  # the last ones are below what float16 can hold
    assert (ours[0][16:32] == 0).all() and (ours[1][kept] != 0).any(1).all()


def test_a_poisoned_row_poisons_the_weight():
    x, weight, bias, target = problem(18, 6, 20, torch.bfloat16)
    target[:] = 1
    x[17, 2] = math.nan
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    g_x, g_weight, g_bias = torch.autograd.grad(ncops.linear_stats(*inputs, target).loss("nll"), inputs)
    assert g_x[17].isnan().all() and g_x[:17].isfinite().all() and g_weight.isnan().all() and g_bias.isnan().all()


def test_small_mean_gradients_survive_float16():
    """p / N below float16's smallest number: the sum over rows is not."""
    x = torch.ones(64, 4, dtype=torch.float16)
    weight, bias = torch.zeros(40, 4, dtype=torch.float16), torch.zeros(40, dtype=torch.float16)
    bias[1:] = -10.5  # p = 2.7e-5, over 64 rows: 4.3e-7 each, 2.7e-5 together
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    stats = ncops.linear_stats(*inputs, torch.zeros(64, dtype=torch.int64))
    g_weight = torch.autograd.grad(stats.loss("nll"), inputs)[1]
    truth = math.exp(-10.5) / (1 + 39 * math.exp(-10.5))
    assert ((g_weight[1:].double() / truth - 1).abs() < 3e-3).all()  # 2.7e-5 in float16 is good to 0.1 %


@pytest.mark.parametrize("mask", [-6e4, -math.inf])
def test_float16_gradients_of_unlike_sizes(mask):
    """Upstream gradients from 1e-4 to 1e4, and logits far below the mean: no row takes another's digits."""
    x, weight, bias, target = problem(40, 9, 90, torch.float16)
    bias[5], target[:] = mask, 7
    size = 10.0 ** torch.linspace(-4, 4, 40)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def run(function):
        stats = function(*inputs, target)
        spread = stats.var if mask > -math.inf else stats.entropy
        return torch.autograd.grad((stats.nll * size).sum() + 1e-5 * spread[20:].sum(), inputs)

    ours, truth = run(ncops.linear_stats), run(reference)
    eps = torch.finfo(torch.float16).eps
    for a, b in zip(ours[0].double(), truth[0].double(), strict=True):  # row by row
        assert (a - b).abs().max() <= 2 * eps * b.abs().max() + 1e-7
    assert (ours[1].double() - truth[1].double()).abs().max() <= 2 * eps * truth[1].double().abs().max()


def test_chunks_count_the_padding_of_few_classes(monkeypatch):
    monkeypatch.setattr(backward, "WORKSPACE_BYTES", 64 << 10)
    for classes in (1, 10, 60, 100):
        rows, wide = backward.chunk_shape(10_000, classes, 4, 16)
        assert wide == classes and rows * -(-classes // 16) * 16 * 4 <= 64 << 10


@DTYPES
def test_gradients_are_deterministic(dtype):
    x, weight, bias, target = problem(40, 9, 50, dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert_deterministic(
        lambda: torch.autograd.grad(ncops.linear_stats(*inputs, target).loss("nll"), inputs), "triton"
    )


def test_no_rows_and_no_features():
    weight, bias = randn(5, 4, dtype=torch.bfloat16).requires_grad_(), randn(5, dtype=torch.bfloat16).requires_grad_()
    stats = ncops.linear_stats(torch.zeros(0, 4, dtype=torch.bfloat16), weight, bias)
    grads = torch.autograd.grad(stats.lse.sum(), (weight, bias))
    assert stats.lse.shape == (0,) and all((g == 0).all() for g in grads)
    stats = ncops.linear_stats(torch.zeros(3, 0), torch.zeros(5, 0), bias.detach().float(), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(stats.lse, bias.detach().float().logsumexp(0).expand(3))


@DTYPES
@pytest.mark.parametrize("classes", [1, 7, 16])
@pytest.mark.parametrize("rows", [5, 40])
def test_one_tile_that_holds_all_classes(dtype, classes, rows):
    """No kernel forms the targets beforehand; ranks, ties and targets outside are as with one that does."""
    x, weight, bias, target = problem(rows, 21, classes, dtype)
    if classes > 2:
        weight[2], bias[2] = weight[0], bias[0]
    target[1], target[2] = IGNORE, 0
    ours = ncops.linear_stats(x, weight, bias, target)
    truth = reference(*(t.double() for t in (x, weight, bias)), target)
    for name in ("lse", "max", "target_logit", "nll", "entropy", "var"):
        error = (getattr(ours, name).double() - getattr(truth, name)).abs().max()
        assert error <= 1e-5 * max(1.0, float(getattr(truth, name).abs().max())), name
    assert torch.equal(ours.target_rank, truth.target_rank) and torch.equal(ours.argmax, truth.argmax)
    bare = ncops.linear_stats(x, weight, bias)
    assert torch.equal(bare.lse, ours.lse) and bare.nll is None


def test_many_rows_of_few_classes_go_in_one_launch(monkeypatch):
    monkeypatch.setattr(forward, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(forward, "ROWS_OF_ONE_TILE", 32)
    x, weight, bias, target = problem(70, 9, 12, torch.float32)
    sizes = []
    run = forward._run
    monkeypatch.setattr(forward, "_run", lambda *a: sizes.append(a[2].shape[0]) or run(*a))
    ours = ncops.linear_stats(x, weight, bias, target)
    assert sizes == [32, 32, 6]
    torch.testing.assert_close(ours.nll, reference(x, weight, bias, target).nll)


def test_a_wide_tile_that_holds_all_classes_goes_in_halves():
    from ncops.triton_kernels._launch import override

    x, weight, bias, target = problem(9, 21, 50, torch.float32)
    with override("linear_stats_64_classes", BLOCK_V=64, HALVES=1):
        ours = ncops.linear_stats(x, weight, bias, target)
    truth = reference(*(t.double() for t in (x, weight, bias)), target)
    torch.testing.assert_close(ours.nll.double(), truth.nll, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.var.double(), truth.var, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.target_rank, truth.target_rank) and torch.equal(ours.argmax, truth.argmax)


def _both(x, weight, target, **options):
    """Columns of the kernel that reads through descriptors, which must have run, and of the other."""
    runs, run = [], descriptors.descriptor_splits
    with candidate("descriptors"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(descriptors, "descriptor_splits", lambda *a: runs.append(1) or run(*a))
        ours = ncops.linear_stats(x, weight, None, target, **options)
    assert runs and not CHOSEN
    return ours, ncops.linear_stats(x, weight, None, target, **options)


def _alike(ours, other):
    for name in ("max", "second", "target_logit", "argmax", "second_index", "target_rank"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
    for name in FLOATS:
        a, b = getattr(ours, name), getattr(other, name)
        torch.testing.assert_close(a, b, rtol=3e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float16, None), (torch.bfloat16, 3.0)])
def test_splits_through_descriptors(dtype, softcap):
    """Features that end within a block, classes within a tile, rows within a block; ties in every row."""
    x, weight, _, target = problem(70, 24, 75, dtype, False)
    weight[60], weight[74] = weight[7], weight[7]
    options = {"scale": 0.3, "softcap": softcap}
    ours, other = _both(x, weight, target, **options)
    _alike(ours, other)
    truth = reference(x, weight, None, target, **options)
    for name in FLOATS:
        torch.testing.assert_close(getattr(ours, name), getattr(truth, name), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("splits", [1, 5])
def test_lanes_without_classes_masks_and_poison(monkeypatch, splits):
    """The last tile has three classes, so that two of its four lanes have none; in a split of its own, too."""
    x, weight, _, target = problem(70, 16, 67, torch.bfloat16, False)
    x[:, 0] = 1
    x[0, 0], x[1, 1], x[2, 1:] = math.nan, math.inf, 0  # poisoned rows, and one of ties
    weight[:, 0], weight[:40, 0], weight[64, 0] = 0, -math.inf, -math.inf  # masks
    monkeypatch.setattr(descriptors, "split_count", lambda *_: splits)
    ours, other = _both(x, weight, target)
    _alike(ours, other)
    assert ours.lse[:2].isnan().all() and ours.lse[2:].isfinite().all() and ours.argmax[2] == 40
    weight[:, 0] = -math.inf
    _alike(*_both(x, weight, target))


def test_shares_through_descriptors():
    x, weight, _, target = problem(70, 16, 75, torch.bfloat16, False)
    z = forward.linear_stats_targets(x, weight, None, target % 75, 1.0, 0.0, IGNORE, False)
    other = forward.linear_stats_share(x, weight, None, z, 1.0, 0.0, False)
    with candidate("descriptors"):
        ours = forward.linear_stats_share(x, weight, None, z, 1.0, 0.0, False)
    torch.testing.assert_close(ours[0], other[0], rtol=3e-6, atol=1e-6)
    assert torch.equal(ours[1], other[1]) and not torch.equal(ours[0], other[0])


def test_what_descriptors_cannot_read():
    x, weight = randn(70, 32, dtype=torch.float16), randn(40, 32, dtype=torch.float16)
    assert descriptors.fits(x, weight, None) and descriptors.fits(x[:, 8:], weight[:, :24], None)
    assert not descriptors.fits(x, weight, weight[:, 0])
    for bad in (x.float(), x[:, 1:], x[:, ::2], x.T.contiguous().T, randn(70, 9, dtype=torch.float16), x[:, :0]):
        assert not descriptors.fits(bad, bad, None)
    x, weight, _, target = problem(70, 9, 40, torch.float16, False)
    with candidate("descriptors"):
        ours = ncops.linear_stats(x, weight, None, target)
    assert torch.equal(ours.lse, ncops.linear_stats(x, weight, None, target).lse)


def test_bits_through_descriptors():
    x, weight, _, target = problem(70, 16, 40, torch.bfloat16, False)
    with candidate("descriptors"):
        assert_deterministic(lambda: ncops.linear_stats(x, weight, None, target).var, "triton")


@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize("row_blocks", [1, 3, 16, 64, 256])
@pytest.mark.parametrize("tiles", [1, 2, 385, 1002])
def test_rounds_of_programs_are_full(capability, row_blocks, tiles):
    splits = descriptors.split_count(capability, row_blocks, tiles)
    per_split = -(-tiles // splits)
    slots = 2 * {90: 132, 100: 148}[capability]
    assert 1 <= splits <= tiles and (splits - 1) * per_split < tiles
    rounds = -(-row_blocks * splits // slots)
    if row_blocks * tiles >= 16 * slots:
        assert rounds * per_split * slots <= 1.12 * row_blocks * tiles
