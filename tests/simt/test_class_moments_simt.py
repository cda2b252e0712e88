"""The CUDA kernels of class_moments and accumulate_class_moments_, run on the CPU, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from testing import IGNORE, LAYOUTS, assert_accurate, bits, dtypes, exact, layouts, plain, randn, random_labels

from ncops.backends.dtypes import compute_dtype
from ncops.reference.class_moments import accumulate_class_moments_ as reference

OP = "class_moments"
# (N, D, C): one of each; more classes than rows; slabs of 32 vectors from below and above; splits of 8 rows; nothing.
SHAPES = [(1, 1, 1), (2, 17, 33), (65, 33, 4), (66, 40, 70), (33, 132, 2), (90, 16, 1), (0, 5, 3), (5, 0, 2)]


def class_moments(kernels, x, labels, classes, center=None, ignore_index=IGNORE):
    """``(sums, sqnorms, counts, invalid)``; outputs start as NaN and garbage, as on a GPU."""
    sums = torch.full((classes, x.shape[1]), math.nan, dtype=compute_dtype(x.dtype))
    sqnorms = torch.full((classes,), math.nan, dtype=torch.float64)
    counts, invalid = torch.full((classes,), -7), torch.tensor(-7)
    kernels.class_moments(x, labels, classes, center, ignore_index, sums, sqnorms, counts, invalid)
    return sums, sqnorms, counts, invalid


def naive(x, labels, classes, center=None):
    keep = (labels >= 0) & (labels < classes)
    x, labels = x[keep], labels[keep]
    r = x if center is None else x - center[labels]
    onehot = torch.nn.functional.one_hot(labels, classes).to(x.dtype)
    return onehot.T @ r, onehot.T @ r.square().sum(1), onehot.sum(0).long()


def assert_moments(ours, x, labels, classes, center=None):
    sums, sqnorms, counts = naive(*exact(x, labels), classes, *exact(center))
    torchs = naive(*plain(x, labels), classes, *plain(center))
    assert torch.equal(ours[2], counts)
    size = naive(x.double().abs(), labels, classes)[0].max().item() if x.numel() and classes else 0
    assert_accurate(ours[0], torchs[0], sums, scale=max(1, size), what="sums")
    assert_accurate(ours[1].to(compute_dtype(x.dtype)), torchs[1], sqnorms, eps=4, what="sqnorms")
    assert ((ours[1] - sqnorms).abs() <= 8 * torch.finfo(compute_dtype(x.dtype)).eps * sqnorms).all()


def check(kernels, seed=0):
    """One run that a test of planted defects repeats: classes within, across and over several splits; two slabs."""
    kernels.schedule(seed)
    torch.manual_seed(3)
    x, labels = randn(60, 136, dtype=torch.float32), torch.randint(0, 3, (60,)) * (torch.rand(60) < 0.5)
    center = randn(5, 136, dtype=torch.float32)
    assert_moments(class_moments(kernels, x, labels, 5, center), x, labels, 5, center)


def test_check(kernels):
    for seed in range(3):
        check(kernels, seed)


@dtypes
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(kernels, shape, dtype, centred):
    n, d, c = shape
    x, labels = randn(n, d, dtype=dtype, shift=0.5), random_labels(n, c)
    center = randn(c, d, dtype=compute_dtype(dtype)) if centred else None
    ours = class_moments(kernels, x, labels, c, center)
    assert_moments(ours, x, labels, c, center)
    assert ours[3] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_slabs_than_warps(kernels, dtype):
    d = 1024 * 4 // dtype.itemsize + 136
    x, labels, center = randn(20, d, dtype=dtype), random_labels(20, 3), randn(3, d, dtype=torch.float32)
    assert_moments(class_moments(kernels, x, labels, 3, center), x, labels, 3, center)


@pytest.mark.parametrize("case", ["hot", "zipf", "own_class", "half"])
def test_label_distributions(kernels, simt_mode, case):
    n = 17_000 if simt_mode == "plain" else 700
    assert simt_mode != "plain" or kernels.split_rows(n) == 32
    torch.manual_seed(1)
    zipf = torch.rand(n).pow(-1).long().clamp_max(999)
    labels, classes = {
        "hot": (torch.zeros(n, dtype=torch.int64), 1),
        "zipf": (zipf, 1000),
        "own_class": (torch.randperm(n), n),
        "half": (torch.where(torch.rand(n) < 0.5, 2, torch.randint(0, 50, (n,))), 50),
    }[case]
    x, center = randn(n, 4, dtype=torch.float32, shift=0.5), randn(classes, 4, dtype=torch.float32)
    sums, sqnorms, counts, _ = class_moments(kernels, x, labels, classes, center)
    r = x.double() - center.double()[labels]
    truth = torch.zeros(classes, 4, dtype=torch.float64).index_add_(0, labels, r)
    squares = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, r.square().sum(1))
    assert torch.equal(counts, torch.bincount(labels, minlength=classes))
    torch.testing.assert_close(sums.double(), truth, rtol=1e-6, atol=2e-7 * r.abs().sum(0).max().item())
    torch.testing.assert_close(sqnorms, squares, rtol=5e-7, atol=0)


@dtypes
@layouts
def test_layouts(kernels, layout, dtype):
    change = LAYOUTS[layout]
    for d in (33, 40):
        x, labels = change(randn(35, d, dtype=dtype)), random_labels(35, 4)
        center = randn(4, d, dtype=compute_dtype(dtype))
        assert_moments(class_moments(kernels, x, labels, 4, center), x, labels, 4, center)
    shifted = torch.cat([center.new_zeros(1), center.flatten()])[1:].view(center.shape)  # x in vectors, centres not
    assert_moments(class_moments(kernels, x, labels, 4, shifted), x, labels, 4, center)


def test_squares_are_added_up_in_short_chains(kernels, simt_mode):
    """Squares of which float32 holds 32 exactly, and not 64."""
    if simt_mode != "plain":
        pytest.skip("too large for a sanitizer")
    n = 17_000
    assert kernels.split_rows(n) == 32
    x = torch.full((n, 4), 1 + 2**-9)
    assert class_moments(kernels, x, torch.zeros(n, dtype=torch.int64), 1)[1] == 4 * n * (1 + 2**-9) ** 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_value_touches_its_class_alone(kernels, bad):
    x, labels = randn(40, 9, dtype=torch.float32), torch.arange(40) % 5
    clean = class_moments(kernels, x, labels, 5)
    x[3, 2] = bad
    ours = class_moments(kernels, x, labels, 5)
    rest = torch.arange(5) != 3
    assert all(torch.equal(a[rest], b[rest]) for a, b in zip(ours[:3], clean[:3], strict=True))
    assert not ours[0][3, 2].isfinite() and not ours[1][3].isfinite() and ours[0][3, 3].isfinite()
    labels[3] = IGNORE
    assert class_moments(kernels, x, labels, 5)[0].isfinite().all()


@pytest.mark.parametrize("classes", [0, 3])
def test_nothing_counts(kernels, classes):
    sums, sqnorms, counts, invalid = class_moments(kernels, randn(20, 2), torch.full((20,), IGNORE), classes)
    assert (counts == 0).all() and (sums == 0).all() and (sqnorms == 0).all() and invalid == 0


def test_invalid_labels_are_counted_and_skipped(kernels):
    x = randn(30, 4, dtype=torch.float32)
    labels = torch.tensor([0, -1, 3, 2**40, -(2**40), IGNORE, 2, 1, 2**32, 2]).repeat(3)
    ours = class_moments(kernels, x, labels, 3)
    assert_moments(ours, x, labels, 3)
    assert ours[3] == 15
    assert class_moments(kernels, x, labels, 3, ignore_index=2)[2].tolist() == [3, 3, 0]  # and -100 is invalid then
    assert class_moments(kernels, x, labels, 3, ignore_index=2)[3] == 18
    assert class_moments(kernels, x, torch.full((30,), 9), 3)[3] == 30


def test_invalid_labels_in_more_blocks_than_lanes(kernels, simt_mode):
    if simt_mode != "plain":
        pytest.skip("too large for a sanitizer")
    labels = torch.full((70_000,), IGNORE)
    labels[-50_000:] = 7
    assert class_moments(kernels, torch.zeros(70_000, 1), labels, 1)[3] == 50_000


def test_collapsed_regime(kernels):
    means = torch.nn.functional.normalize(randn(5, 32), dim=1) * 100
    labels = torch.arange(5).repeat(40)
    x = (means[labels] + 1e-3 * randn(200, 32)).float()
    sums, sqnorms, counts, _ = class_moments(kernels, x, labels, 5, x[:5].clone())
    ours = sqnorms / counts - (sums.double() / counts[:, None]).square().sum(1)
    truth = torch.stack([x.double()[labels == c].var(0, correction=0).sum() for c in range(5)])
    assert ((ours / truth - 1).abs() < 1e-4).all()


def test_bits_do_not_depend_on_the_schedule(kernels):
    x, labels = randn(300, 40, dtype=torch.float32), random_labels(300, 5)
    results = []
    for seed in range(4):
        kernels.schedule(seed)
        results.append(bits(class_moments(kernels, x, labels, 5)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bits_of_keys_and_split_lengths(kernels):
    for classes in (0, 1, 2, 3, 4, 255, 256, 2**20 - 1, 2**20):
        assert 2 ** kernels.key_bits(classes) > classes  # the key of rows that do not count is `classes`
    assert [kernels.split_rows(n) for n in (1, 8192, 8193, 2**18, 2**18 + 1, 10**9)] == [8, 8, 16, 256, 256, 256]


def state(classes, d, dtype=torch.float32):
    return {
        "counts": torch.zeros(classes, dtype=torch.int64),
        "center": torch.zeros(classes, d, dtype=compute_dtype(dtype)),
        "sums": torch.zeros(classes, d, dtype=torch.float64),
        "sqnorms": torch.zeros(classes, dtype=torch.float64),
        "invalid": torch.zeros((), dtype=torch.int64),
    }


def accumulate(kernels, s, x, labels, ignore_index=IGNORE):
    bad = torch.tensor(-7)
    kernels.accumulate_class_moments_(*s.values(), x, labels, ignore_index, bad)
    return int(bad)


def copy(s):
    return {name: t.clone() for name, t in s.items()}


def check_accumulate(kernels, seed=0, dtype=torch.float32, shape=(60, 36, 6)):
    """Three calls against the same calls of the reference in float64, class by class; classes that are absent stay."""
    kernels.schedule(seed)
    torch.manual_seed(seed)
    n, d, c = shape
    s, seen = state(c, d, dtype), []
    for call in range(3):
        x, labels = randn(n, d, dtype=dtype, shift=0.5), random_labels(n, max(1, c - 2 + call))
        before = copy(s)
        assert accumulate(kernels, s, x, labels) == 0
        present = torch.zeros(c, dtype=torch.bool).index_fill_(0, labels[labels != IGNORE], True)
        for name in ("counts", "center", "sums", "sqnorms"):
            assert torch.equal(s[name][~present], before[name][~present]), name
        old = before["counts"] > 0
        assert torch.equal(s["center"][old], before["center"][old])
        seen.append((x.double(), labels))
    x, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    eps = torch.finfo(compute_dtype(dtype)).eps
    for k in range(c):
        rows = x[labels == k]
        assert s["counts"][k] == rows.shape[0]
        if rows.shape[0]:
            mean = s["center"][k].double() + s["sums"][k] / s["counts"][k]
            torch.testing.assert_close(mean, rows.mean(0), rtol=0, atol=16 * eps * rows.abs().max().item())
            variance = s["sqnorms"][k] / s["counts"][k] - (s["sums"][k] / s["counts"][k]).square().sum()
            torch.testing.assert_close(variance, rows.var(0, correction=0).sum(), rtol=32 * eps, atol=32 * eps * d)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 17, 5), (65, 40, 130), (50, 65, 3)], ids=str)
def test_a_stream_matches_float64(kernels, shape, dtype):
    check_accumulate(kernels, 0, dtype, shape)


def test_accumulate_schedules(kernels):
    for seed in range(3):
        check_accumulate(kernels, seed)


def test_accumulate_by_hand(kernels):
    s = state(3, 2)
    accumulate(kernels, s, torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), torch.tensor([2, 2, IGNORE]))
    assert s["counts"].tolist() == [0, 0, 2] and s["center"].tolist() == [[0, 0], [0, 0], [2, 3]]
    assert s["sums"].tolist() == [[0, 0]] * 3 and s["sqnorms"].tolist() == [0, 0, 4]
    accumulate(kernels, s, torch.tensor([[4.0, 3.0], [5.0, 5.0]]), torch.tensor([2, 0]))
    assert s["counts"].tolist() == [1, 0, 3] and s["center"].tolist() == [[5, 5], [0, 0], [2, 3]]
    assert s["sums"].tolist() == [[0, 0], [0, 0], [2, 0]] and s["sqnorms"].tolist() == [0, 0, 8]


def test_accumulate_equals_the_reference(kernels):
    # New and old classes, hot ones over several splits among them. Float64, so that only rounding is left to differ.
    x, labels = randn(200, 12), torch.randint(0, 4, (200,)) * (torch.rand(200) < 0.4)
    ours, theirs = state(6, 12, torch.float64), state(6, 12, torch.float64)
    for rows in (slice(0, 80), slice(80, 200)):
        y = labels[rows] + (rows.start > 0)
        accumulate(kernels, ours, x[rows], y)
        reference(*theirs.values(), x[rows], y, IGNORE)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)


def test_accumulate_skips_invalid_labels_and_counts_them(kernels):
    ours, clean = state(4, 3), state(4, 3)
    x, labels = randn(30, 3, dtype=torch.float32), torch.arange(30) % 4
    bad = torch.arange(30) % 7 == 2
    for expected in (4, 8):
        assert accumulate(kernels, ours, x, labels.masked_fill(bad, 4)) == 4 and ours["invalid"] == expected
        accumulate(kernels, clean, x, labels.masked_fill(bad, IGNORE))
    assert all(torch.equal(ours[name], clean[name]) for name in ("counts", "center", "sums", "sqnorms"))


@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_accumulate_with_a_class_that_is_the_ignore_index(kernels, ignored):
    one, two = state(5, 36), state(5, 36)
    x, labels = randn(60, 36, dtype=torch.float32), torch.randint(0, 5, (60,))
    labels[[0, -1]] = ignored
    for rows in (slice(0, 25), slice(25, 60)):
        assert accumulate(kernels, one, x[rows], labels[rows], ignored) == 0
        accumulate(kernels, two, x[rows], labels[rows].masked_fill(labels[rows] == ignored, IGNORE))
    assert all(torch.equal(one[name], two[name]) for name in one) and one["counts"][ignored] == 0


def test_accumulate_nothing(kernels):
    s = state(4, 5)
    accumulate(kernels, s, randn(9, 5, dtype=torch.float32), torch.arange(9) % 3)
    before = copy(s)
    accumulate(kernels, s, randn(0, 5, dtype=torch.float32), torch.zeros(0, dtype=torch.int64))
    accumulate(kernels, s, randn(9, 5, dtype=torch.float32), torch.full((9,), IGNORE))
    assert all(torch.equal(s[name], before[name]) for name in s)
    empty = state(0, 5)
    assert accumulate(kernels, empty, randn(2, 5, dtype=torch.float32), torch.tensor([0, IGNORE])) == 1


@layouts
def test_accumulate_layouts(kernels, layout):
    x, labels = LAYOUTS[layout](randn(35, 36, dtype=torch.float32)), random_labels(35, 4)
    one, two = state(4, 36), state(4, 36)
    accumulate(kernels, one, x, labels)
    accumulate(kernels, two, x.clone(memory_format=torch.contiguous_format), labels)
    for a, b in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    three = state(4, 36)
    storage = {name: torch.zeros(t.numel() + 1, dtype=t.dtype) for name, t in three.items()}
    for name, t in three.items():  # a state that starts 4 or 8 bytes after an aligned address
        three[name] = storage[name][1:].view(t.shape)
    accumulate(kernels, three, x, labels)
    for a, b in zip(one.values(), three.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_accumulate_nan_touches_its_class_alone(kernels):
    s, clean = state(4, 3), state(4, 3)
    x, labels = randn(40, 3, dtype=torch.float32), torch.arange(40) % 4
    accumulate(kernels, clean, x, labels)
    x[6, 1] = math.nan
    accumulate(kernels, s, x, labels)
    rest = torch.arange(4) != 2
    assert all(torch.equal(s[name][rest], clean[name][rest]) for name in ("counts", "center", "sums", "sqnorms"))
    assert s["sqnorms"][2].isnan() and s["counts"][2] == 10
