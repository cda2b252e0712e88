"""The CUDA kernels of linear_stats, run on the CPU: against float64, over shapes, layouts and cuts of the classes."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, collapsed, dense, naive, problem
from logit_runs import (
    COLUMNS,
    INDICES,
    TARGETS,
    assert_columns,
    linear_stats,
    linear_stats_share,
    linear_stats_targets,
    named,
    same_bits,
)
from testing import IGNORE, LAYOUTS, assert_accurate, dtypes, exact, layouts, plain, randn, random_labels

from ncops.reference.logit_share import LogitShare, finish, merge
from ncops.reference.logit_stats import row_columns
from ncops.reference.softcap import capped

OP = "linear_stats"


def integers(n, d, v, dtype):
    """Small integers: every product and sum is exact in every dtype, so logits, ties and ranks are too."""
    x, weight = torch.randint(-2, 3, (n, d)).to(dtype), torch.randint(-2, 3, (v, d)).to(dtype)
    return x, weight, torch.randint(-3, 4, (v,)).to(dtype), random_labels(n, v)


def assert_exact_logits(kernels, x, weight, bias, target, seed=0, blocks=512, softcap=0.0):
    """Against the specification on logits that are the same numbers, before the cap."""
    kernels.schedule(seed)
    ours = linear_stats(kernels, x, weight, bias, target, blocks=blocks, softcap=softcap)
    z = capped(dense(*exact(x, weight, bias), 1.0), softcap)
    size = z[z.isfinite()].abs().max().item() if z.isfinite().any() else 1
    expected = named(*row_columns(z, target, IGNORE))
    for name in COLUMNS:
        truth = expected[name]
        if name in FLOATS:
            scale = max(1, size**2 if name == "var" else size)
            assert_accurate(ours[name], truth.to(ours[name].dtype), truth, what=name, scale=scale, eps=4)
        else:
            assert torch.equal(ours[name], truth), name


def check(kernels, seed=0, dtype=torch.bfloat16):
    """One run that a test of planted defects repeats: several steps of depth, two tiles of classes in one block."""
    torch.manual_seed(5)
    assert_exact_logits(kernels, *integers(40, 264, 200, dtype), seed, blocks=1)


@dtypes
def test_check(kernels, dtype):
    for seed in range(2):
        check(kernels, seed, dtype)


SHAPES = [
    (1, 1, 1), (2, 3, 2), (5, 8, 7), (33, 64, 130), (17, 65, 65), (130, 16, 66), (3, 200, 400), (7, 0, 5), (0, 3, 4),
]  # fmt: skip


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_every_column(kernels, shape, dtype, bias):
    x, weight, bias, target = problem(*shape, dtype, bias)
    ours = linear_stats(kernels, x, weight, bias, target, scale=0.7)
    theirs, truth = dense(*plain(x, weight, bias), 0.7), dense(*exact(x, weight, bias), 0.7)
    assert_columns(ours, theirs, truth, target, indices=False)
    for name in ("argmax", "second_index"):  # right up to candidates that lie within the rounding of a logit
        if shape[2] > 1 and shape[0]:
            best = naive(truth)["max" if name == "argmax" else "second"]
            chosen = truth.gather(1, ours[name][:, None]).squeeze(1)
            slack = 8 * torch.finfo(ours["max"].dtype).eps * (1 + truth.abs().max())
            assert (chosen - best).abs().max() <= slack


@dtypes
@pytest.mark.parametrize("shape", [(2, 3, 2), (33, 64, 130), (17, 65, 65), (3, 200, 400)], ids=str)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap(kernels, shape, dtype, softcap):
    """Every column is of the capped logits; at 0.5 most are near the cap."""
    x, weight, bias, target = problem(*shape, dtype)
    for blocks in (1, 512):
        ours = linear_stats(kernels, x, weight, bias, target, scale=0.7, blocks=blocks, softcap=softcap)
        theirs, truth = (capped(dense(*by(x, weight, bias), 0.7), softcap) for by in (plain, exact))
        assert_columns(ours, theirs, truth, target, indices=False)
        assert ours["max"].max() <= softcap


@dtypes
def test_softcap_keeps_masks_and_ranks(kernels, dtype):
    x, weight, bias, target = integers(6, 16, 140, dtype)
    assert_exact_logits(kernels, x, weight, bias, target, softcap=50.0)
    bias[::2] = -math.inf
    assert_exact_logits(kernels, x, weight, bias, target, softcap=50.0)
    bias[:] = -math.inf
    assert_exact_logits(kernels, x, weight, bias, target, softcap=50.0)


@dtypes
def test_saturated_logits_are_ties(kernels, dtype):
    """All at the cap: the lowest class is the argmax, and nothing outranks any target."""
    x, weight = torch.ones(3, 8, dtype=dtype), torch.linspace(10, 20, 140).to(dtype)[:, None].expand(140, 8)
    ours = linear_stats(kernels, x, weight, None, torch.tensor([0, 70, 139]), softcap=2.0)
    assert (ours["max"] == 2).all() and (ours["target_logit"] == 2).all() and (ours["var"] == 0).all()
    assert [ours[name].tolist() for name in INDICES] == [[0] * 3, [1] * 3, [0] * 3]
    torch.testing.assert_close(ours["nll"], torch.full_like(ours["nll"], math.log(140)))


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_softcap_leaves_a_bad_row_bad(kernels, dtype, value):
    x, weight, bias, target = problem(5, 24, 150, dtype)
    weight = weight.abs() + 0.1
    x[3, 5] = value
    ours = linear_stats(kernels, x, weight, bias, target, softcap=30.0)
    assert ours["lse"].isnan().tolist() == [False, False, False, True, False]
    assert ours["argmax"][3] == -1


@dtypes
@pytest.mark.parametrize("shape", [(3, 8, 200), (70, 24, 129), (129, 72, 65)], ids=str)
def test_ties_and_ranks(kernels, shape, dtype):
    x, weight, bias, target = integers(*shape, dtype)
    assert_exact_logits(kernels, x, weight, bias, target)
    ours = linear_stats(kernels, x, weight, bias, target)
    again = linear_stats(kernels, x, weight, bias)
    for name in COLUMNS:
        if name not in TARGETS:
            assert torch.equal(again[name], ours[name]), name


@dtypes
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_target_logit_has_the_bits_of_its_rivals(kernels, dtype, softcap):
    """Where the target is the argmax its logit is the maximum, so nothing outranks it: whatever the place in a tile."""
    x, weight, bias, _ = problem(9, 300, 150, dtype)
    options = {"scale": 0.3, "softcap": softcap}
    best = linear_stats(kernels, x, weight, bias, torch.zeros(9, dtype=torch.int64), **options)
    for name, logit, rank in (("argmax", "max", 0), ("second_index", "second", 1)):
        ours = linear_stats(kernels, x, weight, bias, best[name], **options)
        assert (ours["target_rank"] == rank).all() and torch.equal(ours["target_logit"], best[logit])


@dtypes
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_shards_of_the_classes(kernels, dtype, softcap):
    """Targets by a launch of their own have the same bits; given to each shard, their rivals add up to the rank."""
    x, weight, bias, target = problem(70, 40, 150, dtype)
    options = {"scale": 0.3, "softcap": softcap}
    ours = linear_stats(kernels, x, weight, bias, target, **options)
    logits = linear_stats_targets(kernels, x, weight, bias, target, **options)
    valid = target != IGNORE
    assert torch.equal(logits[valid], ours["target_logit"][valid]) and (logits[~valid] == float("inf")).all()
    starts = (0, 31, 140, 150)
    shards = [
        linear_stats_share(kernels, x, weight[s:e], bias[s:e], logits, **options)
        for s, e in zip(starts, starts[1:], strict=False)
    ]
    assert torch.equal(sum(s.rank for s in shards)[valid], ours["target_rank"][valid])
    assert torch.equal(torch.stack([s.max for s in shards]).amax(0).to(ours["max"].dtype), ours["max"])
    shards = [
        s._replace(argmax=s.argmax + start, second_index=s.second_index + start)
        for s, start in zip(shards, starts, strict=False)
    ]
    shares = LogitShare(*(torch.stack(planes) for planes in zip(*shards, strict=True)))
    merged = named(*finish(merge(shares), target, IGNORE, logits, ours["lse"].dtype))
    for name in COLUMNS:
        torch.testing.assert_close(merged[name], ours[name], msg=name)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_layouts(kernels, layout, dtype):
    x, weight, bias, target = problem(9, 40, 70, dtype)
    for a, b in ((LAYOUTS[layout](x), weight), (x, LAYOUTS[layout](weight))):
        ours = linear_stats(kernels, a, b, bias, target)
        truth = linear_stats(kernels, a.contiguous(), b.contiguous(), bias, target)
        same_bits(ours, truth)


@dtypes
def test_classes_cut_into_many_splits(kernels, dtype):
    tile = 64 if dtype == torch.float64 else 128
    shape = (3, 8, 40 * tile + 3)
    assert kernels.splits(shape[0], shape[2], tile) == 41
    x, weight, bias, target = integers(*shape, dtype)
    bias[torch.randint(0, shape[2], (50,))] = -math.inf
    assert_exact_logits(kernels, x, weight, bias, target)


@dtypes
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_several_tiles_of_one_split(kernels, dtype, blocks):
    tile = 64 if dtype == torch.float64 else 128
    shape = (tile + 2, 24, 5 * tile - 1)
    x, weight, bias, target = integers(*shape, dtype)
    bias[:] = torch.linspace(-6, 6, shape[2]).round()  # the maximum rises with the tiles
    assert_exact_logits(kernels, x, weight, bias, target, blocks=blocks)


def test_moments_far_from_zero(kernels):
    x, weight, bias = torch.zeros(2, 1), torch.zeros(639, 1), 1000 + torch.randint(-8, 9, (639,)) / 4
    ours = linear_stats(kernels, x, weight, bias, blocks=1)
    torch.testing.assert_close(ours["var"].double(), bias.double().var(correction=0).expand(2), rtol=1e-6, atol=0)


def test_split_counts(kernels):
    for rows, classes in [(1, 1), (1, 128_000), (64, 2**31 + 5), (8192, 50_257), (10**7, 260_000)]:
        splits, blocks, tiles = kernels.splits(rows, classes, 128), -(-rows // 128), -(-classes // 128)
        assert 1 <= splits <= min(tiles, 512) and (splits == 1 or splits * blocks <= 512)


def test_chains_end_after_256_products(kernels):
    """Float32 holds sums of 256 of these numbers exactly, and not of 512."""
    x, weight = torch.ones(2, 4096), torch.full((3, 4096), 1 + 2**-15)
    assert (linear_stats(kernels, x, weight)["max"] == 4096.125).all()


def test_long_rows_are_summed_in_chains(kernels):
    x, weight = randn(2, 20_000, dtype=torch.float32, shift=1), randn(3, 20_000, dtype=torch.float32, shift=1)
    ours, truth = linear_stats(kernels, x, weight), x.double() @ weight.double().T
    one_chain = torch.zeros(2, 3)
    for k in range(20_000):
        one_chain += x[:, k, None] * weight[:, k]
    error = (ours["max"].double() - truth.amax(1)).abs().max()
    assert error <= (one_chain.double() - truth).abs().max() / 4
    assert error <= 2 * ((x @ weight.T).double() - truth).abs().max() + 8 * 2**-24 * truth.abs().max()


@dtypes
def test_collapsed_regime_keeps_its_digits(kernels, dtype):
    x, weight, target = collapsed(dtype)
    truth = naive(dense(*exact(x, weight, None), 1.0), target)["gap"]
    ours = linear_stats(kernels, x, weight, None, target)
    for name in ("gap", "nll"):
        assert ((ours[name].double() / truth - 1).abs() < 1e-5).all()


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_poisons_itself_alone(kernels, dtype, value):
    x, weight, bias, target = problem(20, 24, 150, dtype)
    clean = linear_stats(kernels, x, weight, bias, target)
    x[3, 5] = value
    ours, rest = linear_stats(kernels, x, weight, bias, target), torch.arange(20) != 3
    for name in COLUMNS:
        assert torch.equal(ours[name][rest], clean[name][rest]), name
    valid = target[3] != IGNORE
    for name in FLOATS:
        assert ours[name][3].isnan() or (not valid and name in TARGETS), name
    assert all(ours[name][3] == -1 for name in INDICES)


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_bad_class_poisons_its_rows_whatever_split_it_is_in(kernels, dtype, value, place):
    x, weight, bias, target = integers(3, 8, 650, dtype)
    bias[int(place * 649)] = value
    ours = linear_stats(kernels, x, weight, bias, target)
    for name in COLUMNS:
        poisoned = ours[name].isnan() if name in FLOATS else ours[name] == -1
        assert poisoned[target != IGNORE if name in TARGETS else slice(None)].all(), name


@dtypes
def test_masked_classes(kernels, dtype):
    x, weight, bias, target = integers(6, 16, 140, dtype)
    bias[::2] = -math.inf
    assert_exact_logits(kernels, x, weight, bias, target)
    bias[:] = -math.inf
    assert_exact_logits(kernels, x, weight, bias, target)
    bias[139] = 1
    assert_exact_logits(kernels, x, weight, bias, target)


def test_targets_out_of_range(kernels):
    x, weight, bias, _ = problem(5, 8, 5, torch.float32)
    ours = linear_stats(kernels, x, weight, bias, torch.tensor([0, -7, 5, IGNORE, 2**40]))
    assert ours["nll"].isnan().tolist() == [False, True, True, False, True]
    assert ours["target_rank"][1:].tolist() == [-1] * 4
    assert ours["nll"][3] == ours["target_logit"][3] == 0


def test_a_class_that_is_the_ignore_index(kernels):
    x, weight, bias, target = integers(9, 8, 300, torch.float32)
    for ignored in (0, 150, 299):
        target[[0, -1]] = ignored
        other = linear_stats(kernels, x, weight, bias, target, ignore_index=ignored)
        masked = target.masked_fill((target == ignored) | (target == IGNORE), IGNORE)
        same = linear_stats(kernels, x, weight, bias, masked)
        valid = target != IGNORE  # which is no class, and no longer ignored
        for name in COLUMNS:
            assert torch.equal(other[name][valid], same[name][valid]), name


@dtypes
def test_the_same_bits_whatever_the_schedule(kernels, dtype):
    x, weight, bias, target = problem(12, 40, 300, dtype)
    first = linear_stats(kernels, x, weight, bias, target)
    for seed in (1, 2, 3):
        kernels.schedule(seed)
        same_bits(linear_stats(kernels, x, weight, bias, target), first)
