"""The Triton kernels of class_moments alone: chunks of sorted rows, classes cut by a border, bad labels counted."""

from __future__ import annotations

import pytest
import torch
from testing import IGNORE, bits, randn, random_labels

pytest.importorskip("triton")
from ncops.reference import class_moments as reference  # noqa: E402
from ncops.triton_kernels import _sorted_rows, class_moments  # noqa: E402
from ncops.triton_kernels._launch import interpreted, override  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not interpreted(), reason="CPU tensors need Triton's interpreter"),
]


def state(classes, d):
    return (
        torch.zeros(classes, dtype=torch.int64),
        torch.zeros(classes, d),
        torch.zeros(classes, d, dtype=torch.float64),
        torch.zeros(classes, dtype=torch.float64),
        torch.zeros((), dtype=torch.int64),
    )


def check(x, labels, classes, center=None):
    ours = class_moments.class_moments(x, labels, classes, center, IGNORE)
    truth = reference.class_moments(x.double(), labels, classes, None if center is None else center.double(), IGNORE)
    for a, b in zip(ours[2:], truth[2:], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], truth[1], rtol=1e-6, atol=0)
    return ours


# Rows of each class in label order. Chunks are 8 rows, tiles 4: classes that end on a border of either, one before, one
# after; a class over many chunks; single rows; absent classes at both ends and in the middle.
LENGTHS = {
    "aligned": (8, 8, 16),
    "tiles": (4, 4, 4, 4),
    "one_before": (7, 1, 7, 1, 8),
    "one_after": (9, 8, 7, 9),
    "hot_first": (50, 1, 1, 1),
    "hot_last": (1, 1, 1, 50),
    "hot_between": (3, 41, 2),
    "single_rows": (1,) * 19,
    "absent": (0, 0, 5, 0, 20, 0, 0, 3, 0),
    "less_than_a_tile": (3,),
}


@pytest.mark.parametrize("ignored", [0, 11])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_chunk_borders(lengths, ignored):
    labels = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    labels = torch.cat([labels, torch.full((ignored,), IGNORE)])[torch.randperm(len(labels) + ignored)]
    x, center = randn(len(labels), 5, dtype=torch.float32, shift=2), randn(len(lengths), 5, dtype=torch.float32)
    with override("class_moments", CHUNK=8, ROWS=4, BLOCK_D=4), override("class_moments.merge", PARTS=2, BLOCK_D=4):
        check(x, labels, len(lengths), center)
        # In two calls: classes that the first has seen keep their anchors, the others get the mean of their rows.
        ours, theirs = state(len(lengths), 5), state(len(lengths), 5)
        for rows in (slice(0, 9), slice(9, None)):
            class_moments.accumulate_class_moments_(*ours, x[rows], labels[rows], IGNORE)
            reference.accumulate_class_moments_(*theirs, x[rows], labels[rows], IGNORE)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_chunks_follow_from_the_shape():
    assert [class_moments.chunk_rows(n, 256) for n in (0, 1, 100_000, 200_000, 10**6, 10**9)] == [
        32,
        32,
        64,
        128,
        256,
        256,
    ]


def test_blocks_do_not_change_what_a_class_holds():
    # One hot class among many: with chunks of 4 or of 64 rows the same sums, to rounding.
    labels = torch.where(torch.rand(150) < 0.5, 0, torch.randint(0, 40, (150,)))
    x = randn(150, 7, dtype=torch.float32)
    with override("class_moments", CHUNK=4, ROWS=2):
        one = check(x, labels, 40)
    with override("class_moments", CHUNK=64, ROWS=8):
        two = check(x, labels, 40)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_invalid_labels_are_skipped_and_counted():
    # As on a GPU, where nothing can raise: the op layer raises on the CPU before it looks at the result.
    x, labels = randn(40, 6, dtype=torch.float32), random_labels(40, 5)
    labels[[3, 17, 30]] = torch.tensor([-1, 5, 2**40])
    x[[3, 17, 30]] = torch.nan
    assert check(x, labels, 5)[3] == 3
    before = state(5, 6)
    after = tuple(t.clone() for t in before)
    assert class_moments.accumulate_class_moments_(*after, x, labels, IGNORE) == 3
    assert all(torch.equal(a, b) for a, b in zip(bits(before), bits(after), strict=True))
    assert class_moments.class_moments(x, labels, 0, None, IGNORE)[3] == (labels != IGNORE).sum()


@pytest.mark.parametrize("classes", [1, 40, 2000])
@pytest.mark.parametrize("n", [0, 1, 37])
def test_sorted_rows(classes, n):
    labels = random_labels(n, classes)
    if n > 5:
        labels[5] = classes
    order, keys, starts = _sorted_rows.sort_rows(labels, n, classes, IGNORE, labels.device)
    wanted = labels.masked_fill(labels == IGNORE, classes + 1)
    assert torch.equal(keys.long(), wanted.sort(stable=True)[0]) and torch.equal(order, wanted.sort(stable=True)[1])
    assert torch.equal(starts, torch.searchsorted(wanted.sort()[0], torch.arange(classes + 2)))


def test_keys_are_as_narrow_as_the_classes_allow():
    wanted = {1: torch.int16, 32766: torch.int16, 32767: torch.int32, 2**31 - 2: torch.int32, 2**31: torch.int64}
    assert {c: _sorted_rows.key_dtype(c) for c in wanted} == wanted
