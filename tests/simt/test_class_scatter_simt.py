"""The CUDA kernels of class_scatter, run on the CPU: against float64, every dtype, kind of centre, layout and path."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from testing import IGNORE, LAYOUTS, assert_accurate, bits, dtypes, exact, layouts, plain, randn, random_labels

from ncops.backends.dtypes import compute_dtype

OP = "class_scatter"
MODES = ("uncentred", "one_centre", "classes")
# (N, D, C): one of each; a stage and a chain of rows from below and above; D in vectors and not; nothing.
SHAPES = [(1, 1, 1), (1, 17, 2), (2, 8, 3), (65, 33, 4), (33, 130, 40), (300, 16, 5), (257, 8, 1), (0, 5, 2)]


def class_scatter(kernels, x, labels=None, center=None, ignore_index=IGNORE):
    out = torch.full((x.shape[1], x.shape[1]), math.nan, dtype=compute_dtype(x.dtype))
    kernels.class_scatter(x, labels, center, ignore_index, out)
    return out


class Plan(NamedTuple):
    tile: int
    tiles: int
    chunks: int
    chunk_rows: int
    workspace: int


def plan_of(kernels, element_bytes, rows, dim):
    out = torch.zeros(5, dtype=torch.int64)
    kernels.plan(element_bytes, rows, dim, out)
    return Plan(*out.tolist())


def naive(x, labels=None, center=None):
    if labels is None:
        r = x if center is None else x - center
    else:
        keep = (labels >= 0) & (labels < center.shape[0])
        r = x[keep] - center[labels[keep]]
    return r.T @ r


def problem(n, d, c, dtype, mode, shift=0.5):
    x = randn(n, d, dtype=dtype, shift=shift)
    center = {"uncentred": None, "one_centre": randn(d), "classes": randn(c, d)}[mode]
    center = None if center is None else center.to(compute_dtype(dtype))
    return x, random_labels(n, c) if mode == "classes" else None, center


def assert_scatter(ours, x, labels, center):
    assert torch.equal(ours.nan_to_num(7), ours.T.nan_to_num(7))
    torchs, truth = (naive(a, labels, b) for a, b in (plain(x, center), exact(x, center)))
    assert_accurate(ours, torchs, truth, scale=truth.diagonal().max().item() if x.shape[1] else 0)


def check(kernels, seed=0):
    """One run per kernel that a test of planted defects repeats; rows end inside a stage."""
    kernels.schedule(seed)
    torch.manual_seed(3)
    for dtype, mode in ((torch.float32, "classes"), (torch.bfloat16, "uncentred"), (torch.bfloat16, "classes")):
        x, labels, center = problem(149, 72, 4, dtype, mode)
        assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)


def test_check(kernels):
    for seed in range(3):
        check(kernels, seed)


@dtypes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(kernels, shape, dtype, mode):
    x, labels, center = problem(*shape, dtype, mode)
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)


@pytest.mark.parametrize("d", [264, 301])
@pytest.mark.parametrize("mode", ["uncentred", "classes"])
def test_wide_float32_tiles(kernels, d, mode):
    assert plan_of(kernels, 4, 40, d).tile == 128
    x, labels, center = problem(40, d, 4, torch.float32, mode)
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)


@dtypes
def test_many_chunks(kernels, simt_mode, dtype):
    n, d = (1300 if simt_mode == "plain" else 520), 40
    assert plan_of(kernels, dtype.itemsize, n, d).chunks == math.ceil(n / 256)
    x, labels, center = problem(n, d, 4, dtype, "classes")
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)
    assert_scatter(class_scatter(kernels, x), x, None, None)


def test_several_chains_in_a_chunk(kernels, simt_mode):
    if simt_mode != "plain":
        pytest.skip("too large for a sanitizer; test_matches_float64 has two chains")
    n, d = 256 * 66 + 3, 264  # so many tiles that workspace leaves fewer chunks than chains
    rows = plan_of(kernels, 4, n, d).chunk_rows
    assert rows > 256
    rows += 300
    x, labels, center = problem(n, d, 4, torch.float32, "classes")
    labels[rows:] = IGNORE  # two chunks of values, and what is ignored must not be seen
    x[rows:] = math.nan
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)


@dtypes
@layouts
def test_layouts(kernels, layout, dtype):
    change = LAYOUTS[layout]
    for d in (33, 40):
        x, labels, center = problem(35, d, 4, dtype, "classes")
        x = change(x)
        assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)
        assert_scatter(class_scatter(kernels, x), x, None, None)
    shifted = torch.cat([center.new_zeros(1), center.flatten()])[1:].view(center.shape)  # x in vectors, centres not
    assert torch.equal(class_scatter(kernels, x, labels, shifted), class_scatter(kernels, x, labels, center))


@layouts
def test_layouts_of_several_chunks(kernels, layout):
    assert plan_of(kernels, 4, 300, 16).chunks == 2
    x, labels, center = problem(300, 16, 4, torch.float32, "classes")
    x = LAYOUTS[layout](x)
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)


@dtypes
def test_nan_spreads_to_its_row_and_column_only(kernels, dtype):
    x = randn(40, 9, dtype=dtype)
    center = torch.zeros(1, 9, dtype=compute_dtype(dtype))
    for labels, centers in ((None, None), (torch.zeros(40, dtype=torch.int64), center)):
        clean = class_scatter(kernels, x, labels, centers)
        bad = x.clone()
        bad[3, 2] = math.nan
        ours = class_scatter(kernels, bad, labels, centers)
        rest = torch.arange(9) != 2
        assert ours[2].isnan().all() and ours[:, 2].isnan().all()
        assert torch.equal(ours[rest][:, rest], clean[rest][:, rest])
    labels = labels.index_fill(0, torch.tensor(3), IGNORE)
    assert class_scatter(kernels, bad, labels, center).isfinite().all()


@dtypes
@pytest.mark.parametrize(("row", "column"), [(0, 129), (300, 0), (519, 70)])
def test_nan_in_one_chunk_and_tile_of_several(kernels, dtype, row, column):
    x = torch.randint(-2, 3, (520, 130)).to(dtype)
    plan, expected = plan_of(kernels, dtype.itemsize, *x.shape), naive(x.double())
    assert plan.chunks == 3 and plan.tiles > 1
    x[row, column], expected[column], expected[:, column] = math.nan, math.nan, math.nan
    ours = class_scatter(kernels, x)
    assert torch.equal(ours.double().nan_to_num(0.5), expected.nan_to_num(0.5))


@dtypes
def test_invalid_labels_are_skipped(kernels, dtype):
    x, _, center = problem(40, 16, 3, dtype, "classes")
    labels = torch.tensor([0, -1, 3, 2**40, -(2**40), IGNORE, 2, 1, 2**32, 2]).repeat(4)
    assert_scatter(class_scatter(kernels, x, labels, center), x, labels, center)
    other = class_scatter(kernels, x, labels, center, ignore_index=2)
    assert torch.equal(other, class_scatter(kernels, x, labels.masked_fill(labels == 2, IGNORE), center))


@dtypes
def test_nothing_counts(kernels, dtype):
    x, center = randn(35, 8, dtype=dtype), randn(2, 8, dtype=compute_dtype(dtype))
    labels = torch.full((35,), IGNORE)
    assert (class_scatter(kernels, x, labels, center) == 0).all()
    assert (class_scatter(kernels, x, labels, center[:0]) == 0).all()
    assert class_scatter(kernels, x[:, :0]).shape == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_collapsed_regime(kernels, dtype):
    # Class means of norm 100 and features a rounding of their dtype apart: the deviations are exact in float32.
    means = torch.nn.functional.normalize(randn(8, 24), dim=1) * 100
    labels = torch.arange(8).repeat(25)
    x = (means[labels] + {2: 0.05, 4: 1e-3}[dtype.itemsize] * randn(200, 24)).to(dtype)
    center = torch.stack([x[labels == c].float().mean(0) for c in range(8)])
    ours, truth = class_scatter(kernels, x, labels, center).double(), naive(x.double(), labels, center.double())
    assert ((ours - truth).abs().max() / truth.diagonal().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deviations_of_halves_keep_float32(kernels, dtype):
    # One row: nothing averages out. Two bfloat16 parts per deviation would be off by up to 2^-16.
    x, center = randn(1, 128, dtype=dtype), randn(128).float()
    ours, truth = class_scatter(kernels, x, None, center).double(), naive(x.double(), None, center.double())
    assert ((ours - truth).abs() <= 2**-22 * truth.abs()).all()
    near = x[0].float() * (1 + 2**-20)  # deviations of 2^-20: float16 could not hold their parts
    ours, truth = class_scatter(kernels, x, None, near).double(), naive(x.double(), None, near.double())
    assert ((ours - truth).abs() <= 2**-22 * truth.abs()).all() and truth.count_nonzero() > 100


@dtypes
def test_bits_do_not_depend_on_the_schedule(kernels, dtype):
    x, labels, center = problem(300, 24, 3, dtype, "classes")
    results = []
    for seed in range(3):
        kernels.schedule(seed)
        results.append(bits([class_scatter(kernels, x, labels, center), class_scatter(kernels, x)]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_plans(kernels):
    for size in (2, 4, 8):
        for d in (1, 63, 64, 65, 256, 257, 576, 1024, 4096, 16384):
            for n in (0, 1, 255, 257, 10**4, 10**6, 10**9, 5 * 10**9):
                tile, tiles, chunks, chunk_rows, workspace = plan_of(kernels, size, n, d)
                side = math.ceil(d / tile)
                assert tiles == side * (side + 1) // 2
                assert chunks * chunk_rows >= n > (chunks - 1) * chunk_rows - (n == 0)
                assert chunk_rows % 256 == 0 and 1 <= chunks <= 65535 and chunk_rows < 2**31
                assert n > 10**9 or workspace <= max(8 * d * d * 4, 4 << 20)
