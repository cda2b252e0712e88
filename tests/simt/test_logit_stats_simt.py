"""The CUDA kernels of logit_stats, run on the CPU: against float64, at all alignments, layouts and splits of rows."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import FLOATS, collapsed, naive
from logit_runs import COLUMNS, INDICES, TARGETS, assert_columns, logit_stats, named, same_bits
from testing import IGNORE, dtypes, exact, layouts, plain, randn, random_labels
from testing import LAYOUTS as MEMORY

from ncops.reference.logit_stats import logit_stats as reference
from ncops.reference.softcap import capped

OP = "logit_stats"


def check(kernels, seed=0):
    """One run that a test of planted defects repeats: a block per row, three chunks a lane."""
    kernels.schedule(seed)
    torch.manual_seed(3)
    logits, target = randn(3, 12300, dtype=torch.float32, scale=3), torch.tensor([5, IGNORE, 12299])
    assert_columns(logit_stats(kernels, logits, target), logits, logits.double(), target)


def test_check(kernels):
    for seed in range(3):
        check(kernels, seed)


@dtypes
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 17), (33, 130), (3, 2047), (2, 2063), (2, 9001), (0, 4)], ids=str
)
def test_every_column(kernels, shape, dtype):
    logits, target = randn(*shape, dtype=dtype, scale=3), random_labels(*shape)
    ours = logit_stats(kernels, logits, target, scale=0.7)
    assert_columns(ours, 0.7 * plain(logits)[0], 0.7 * exact(logits)[0], target)


@dtypes
@pytest.mark.parametrize("shape", [(33, 130), (2, 2063), (2, 40_000)], ids=str)
@pytest.mark.parametrize("softcap", [5.0, 30.0])
def test_softcap(kernels, shape, dtype, softcap):
    """Every column is of the capped logits, most of which are far from what they were."""
    logits, target = randn(*shape, dtype=dtype, scale=9), random_labels(*shape)
    for view in (logits, MEMORY["column_stride"](logits)):
        ours = logit_stats(kernels, view, target, scale=0.7, softcap=softcap)
        theirs, truth = (capped(0.7 * by(logits)[0], softcap) for by in (plain, exact))
        assert_columns(ours, theirs, truth, target, indices=False)
        assert ours["max"].max() <= softcap


@dtypes
@pytest.mark.parametrize("classes", [67, 2100])
def test_softcap_keeps_masks_ties_and_ranks(kernels, dtype, classes):
    logits, target = torch.randint(-20, 21, (9, classes)).to(dtype), random_labels(9, classes)
    logits[:, ::3] = -math.inf
    target = torch.where(target % 3 == 0, target + 1, target)
    ours, truth = logit_stats(kernels, logits, target, softcap=30.0), naive(capped(logits.double(), 30.0), target)
    for name in INDICES:
        assert torch.equal(ours[name], truth[name]), name
    assert (ours["mean"] == -math.inf).all() and ours["var"].isnan().all()
    assert logit_stats(kernels, torch.full((1, classes), -math.inf), softcap=30.0)["max"] == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_softcap_leaves_a_bad_row_bad(kernels, value):
    logits = randn(3, 67, dtype=torch.float32)
    logits[1, 66] = value
    assert logit_stats(kernels, logits, softcap=30.0)["lse"].isnan().tolist() == [False, True, False]


@dtypes
def test_rows_split_over_blocks(kernels, dtype):
    classes = 40_000
    assert kernels.splits(2, classes) == 4
    logits, target = randn(2, classes, dtype=dtype, scale=3), torch.tensor([17, 39_999])
    logits[0, 39_998] = logits[0, 12] = logits[0].max() + 1  # a tie between the first block and the last
    logits[1, 39_000], logits[1, 39_998] = logits[1].max() + 1, logits[1].max() + 2  # both in the last
    ours = logit_stats(kernels, logits, target)
    assert_columns(ours, plain(logits)[0], exact(logits)[0], target)
    assert ours["argmax"].tolist() == [12, 39_998] and ours["second_index"].tolist() == [39_998, 39_000]


def test_split_lengths(kernels):
    shapes = [(1, 1), (1, 8191), (1, 10**5), (511, 2**17), (512, 2**20), (10**6, 2**20 + 1), (1, 2**31 + 7)]
    for rows, classes in shapes:
        splits = kernels.splits(rows, classes)
        assert 1 <= splits <= 65535 and splits >= classes / 2**20
        assert splits == 1 or rows < 512 or classes > 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
@pytest.mark.parametrize("classes", [5, 65, 2501])
def test_alignment(kernels, dtype, offset, classes):
    store = randn(offset + 2 * classes, dtype=dtype)
    logits, target = store[offset:].view(2, classes), torch.tensor([0, classes - 1])
    assert_columns(logit_stats(kernels, logits, target), plain(logits)[0], exact(logits)[0], target)


@layouts
@pytest.mark.parametrize("shape", [(9, 65), (2, 2100)], ids=str)
def test_layouts(kernels, layout, shape):
    logits, target = MEMORY[layout](randn(*shape, dtype=torch.float32)), random_labels(*shape)
    assert_columns(logit_stats(kernels, logits, target), logits, logits.double(), target)


def test_without_target(kernels):
    logits = randn(5, 33, dtype=torch.float32)
    without, with_target = logit_stats(kernels, logits), logit_stats(kernels, logits, torch.arange(5))
    for name in COLUMNS:
        if name not in TARGETS:
            assert torch.equal(without[name], with_target[name]), name


@dtypes
@pytest.mark.parametrize("classes", [67, 2100])
def test_ties_go_to_the_lowest(kernels, dtype, classes):
    logits, target = torch.randint(-3, 3, (9, classes)).to(dtype), random_labels(9, classes)
    ours, truth = logit_stats(kernels, logits, target), naive(logits.double(), target)
    assert (truth["max"] == truth["second"]).all()
    for name in INDICES:
        assert torch.equal(ours[name], truth[name]), name
    torch.testing.assert_close(ours["gap"].double(), truth["gap"], rtol=1e-6, atol=0)


def test_collapsed_regime_keeps_its_digits(kernels):
    _, weight, target = collapsed()
    logits = weight.T.contiguous()
    ours, truth = logit_stats(kernels, logits, target), naive(logits.double(), target)["gap"]
    for name in ("gap", "nll"):
        assert ((ours[name].double() / truth - 1).abs() < 1e-5).all()


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 5, 66, 2099])
def test_a_bad_logit_poisons_its_row_alone(kernels, dtype, value, column):
    logits, target = randn(9, 67 if column < 67 else 2100, dtype=dtype), torch.arange(9)
    clean = logit_stats(kernels, logits, target)
    logits[3, column] = value
    ours, rest = logit_stats(kernels, logits, target), torch.arange(9) != 3
    for name in COLUMNS:
        assert torch.equal(ours[name][rest], clean[name][rest]), name
    assert all(ours[name][3].isnan() for name in FLOATS)
    assert all(ours[name][3] == -1 for name in INDICES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 20_000, 39_999])
def test_a_bad_logit_in_any_of_the_blocks_of_a_row(kernels, value, column):
    logits, target = randn(2, 40_000, dtype=torch.float32), torch.tensor([0, 39_999])
    assert kernels.splits(*logits.shape) == 4
    clean = logit_stats(kernels, logits, target)
    logits[1, column] = value
    ours = logit_stats(kernels, logits, target)
    for name in COLUMNS:
        assert torch.equal(ours[name][0], clean[name][0]), name
        assert ours[name][1].isnan() if name in FLOATS else ours[name][1] == -1, name


@pytest.mark.parametrize("classes", [3, 2100])
def test_minus_infinity(kernels, classes):
    logits = torch.full((4, classes), -math.inf)
    logits[0, 0], logits[0, -1] = 0.0, 1.0
    logits[2, 1] = 2.0
    logits[3] = torch.linspace(-1, 1, classes)
    target = torch.tensor([0, 1, 1, 2])
    expected = named(*reference(logits, target, 1.0, 0.0, IGNORE))
    ours = logit_stats(kernels, logits, target)
    for name in COLUMNS:
        torch.testing.assert_close(ours[name], expected[name], equal_nan=True, rtol=1e-6, atol=1e-6, msg=name)
    assert ours["argmax"][:3].tolist() == [classes - 1, 0, 1] and ours["gap"][2] == 0


def test_masks_by_the_smallest_number(kernels):
    """finfo.min masks many a causal model's logits; their sum overflows, which makes no row bad."""
    logits = torch.full((2, 100), torch.finfo(torch.float32).min)
    logits[0, 7], logits[1, 50:52] = 1.0, 3.0
    ours = logit_stats(kernels, logits, torch.tensor([7, 51]))
    assert ours["argmax"].tolist() == [7, 50] and ours["second_index"][1] == 51
    torch.testing.assert_close(ours["nll"], torch.tensor([0.0, math.log(2)]))
    assert ours["target_rank"].tolist() == [0, 0] and ours["entropy"][0] == 0


def test_targets_out_of_range(kernels):
    target = torch.tensor([0, -7, 5, IGNORE, 2**40])
    ours = logit_stats(kernels, randn(5, 5, dtype=torch.float32), target)
    assert ours["nll"].isnan().tolist() == [False, True, True, False, True]
    assert ours["target_rank"][1:].tolist() == [-1] * 4
    assert ours["nll"][3] == ours["target_logit"][3] == 0
    other = logit_stats(kernels, randn(2, 5, dtype=torch.float32), torch.tensor([3, 1]), ignore_index=3)
    assert other["nll"][0] == 0 and other["nll"][1] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(17, 33), (3, 2500), (1, 20000)], ids=str)
def test_the_same_bits_whatever_the_schedule(kernels, shape, dtype):
    logits, target = randn(*shape, dtype=dtype), random_labels(*shape)
    first = logit_stats(kernels, logits, target)
    for seed in (1, 2, 3):
        kernels.schedule(seed)
        same_bits(logit_stats(kernels, logits, target), first)
