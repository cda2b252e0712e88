"""Columns and gradients put together from shards of the classes, against all classes at once; in one process."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import COEFFICIENTS, FLOATS, collapsed, problem
from testing import IGNORE, assert_accurate, block_rows, dtypes, randn

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.distributed.shard_columns import (
    local_share,
    marks_differ,
    merge_shares,
    row_marks,
    shard_gradients,
    target_logits,
)
from ncops.ops.columns import columns_of

COLUMNS = (
    "lse", "gap", "max", "second", "target_logit", "nll", "entropy", "mean", "var", "sum_squared_prob",
    "argmax", "second_index", "target_rank", "valid",
)  # fmt: skip
INDICES = ("argmax", "second_index", "target_rank", "valid")
SCALE = 0.7


def cut(weight, bias, cuts):
    ends = (0, *cuts, len(weight))
    for start, end in zip(ends, ends[1:], strict=False):
        yield start, weight[start:end], None if bias is None else bias[start:end]


def merged_planes(x, weight, bias, target, cuts, scale=SCALE, softcap=0.0):
    shards = list(cut(weight, bias, cuts))
    level = None
    if target is not None:
        level = sum(target_logits(x, w, b, target, start, scale, softcap, IGNORE, False) for start, w, b in shards)
    every = torch.stack([local_share(x, w, b, level, start, scale, softcap, False) for start, w, b in shards])
    return merge_shares(every, level, target, IGNORE, compute_dtype(x.dtype))


def sharded(x, weight, bias, target, cuts, scale=SCALE, softcap=0.0):
    planes = merged_planes(x, weight, bias, target, cuts, scale, softcap)
    return columns_of(planes, (len(x),), target, len(weight), IGNORE)._asdict()


def whole(x, weight, bias, target, scale=SCALE, softcap=0.0):
    return ncops.linear_stats(x, weight, bias, target, scale=scale, softcap=softcap or None)._asdict()


def assert_same(shards, together, eps=4):
    for name in COLUMNS:
        a, b = shards[name], together[name]
        if b is None:
            assert a is None, name
        elif name in INDICES:
            assert torch.equal(a, b), name
        else:
            assert a.dtype == b.dtype, name
            size = max(1.0, together["max"].nan_to_num(0, 0, 0).abs().max().item()) if len(b) else 1.0
            atol = eps * torch.finfo(b.dtype).eps * (size**2 if name == "var" else size)
            torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True, msg=name)


CUTS = {"halves": (20,), "uneven": (1, 30), "empty": (0, 17, 17, 41), "one": ()}
cuts = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
caps = pytest.mark.parametrize("softcap", [0.0, 1.5], ids=["uncapped", "capped"])


@caps
@dtypes
@cuts
def test_columns_equal_those_of_all_classes(backend, monkeypatch, cuts, dtype, softcap):
    block_rows(monkeypatch)
    x, weight, bias, target = problem(19, 12, 41, dtype)
    ours = sharded(x, weight, bias, target, cuts, softcap=softcap)
    assert_same(ours, whole(x, weight, bias, target, softcap=softcap))


def test_rows_of_other_ranks_are_told_by_target_and_direction():
    x, target = torch.randn(6, 8), torch.arange(6)
    mine = row_marks(x, target)
    assert not marks_differ(torch.stack([mine, mine, mine])).any()
    third, others = x * 1.001, target.clone()  # roundings of size and direction are no other row
    third[1] = math.nan
    third[2, 1::2] *= -1  # of the same length, and the same in every second coordinate
    third[3, ::2] *= -1
    others[4] = -100
    differ = marks_differ(torch.stack([mine, mine, row_marks(third, others)]))
    assert differ.tolist() == [False, False, True, True, True, False]


def test_few_rows_and_no_target(backend):
    for rows in (0, 1, 5):
        x, weight, bias, target = problem(rows, 12, 41, torch.float32)
        assert_same(sharded(x, weight, bias, target, (9, 30)), whole(x, weight, bias, target))
        assert_same(sharded(x, weight, None, None, (9, 30)), whole(x, weight, None, None))


def test_collapsed_regime_keeps_its_digits(backend):
    """At margin 30 the gap is 1e-12; it must survive the merge whichever shard the largest logit is in."""
    x, weight, target = collapsed()
    ours = sharded(x, weight, None, target, (3, 8), scale=1.0)
    z = (x.double() @ weight.double().T).scatter(1, target[:, None], -math.inf)
    truth = torch.log1p((z - 30).exp().sum(1))
    for name in ("gap", "nll"):
        assert ((ours[name].double() / truth - 1).abs() < 1e-4).all(), name
    assert (ours["target_rank"] == 0).all()


def test_ties_go_to_the_lowest_class_of_all(backend):
    x = torch.ones(3, 1)
    weight = torch.tensor([[1.0], [5.0], [2.0], [5.0], [5.0], [0.0]])
    target = torch.tensor([4, 2, 5])
    for cuts in ((2, 4), (1, 3), (5,)):
        ours = sharded(x, weight, None, target, cuts, scale=1.0)
        assert ours["argmax"].tolist() == [1, 1, 1] and ours["second_index"].tolist() == [3, 3, 3]
        assert ours["target_rank"].tolist() == [0, 3, 5]
        assert_same(ours, whole(x, weight, None, target, scale=1.0))


def test_masked_spoilt_and_single_classes(backend):
    x, weight, bias, target = problem(9, 6, 12, torch.float32)
    bias[4:8] = -math.inf  # one whole shard
    x[3] = math.nan
    target = torch.arange(9)
    assert_same(sharded(x, weight, bias, target, (4, 8)), whole(x, weight, bias, target))
    bias[:] = -math.inf
    assert_same(sharded(x, weight, bias, target, (4, 8)), whole(x, weight, bias, target))
    weight[2, 0] = math.inf
    assert_same(sharded(x, weight, None, target, (4, 8)), whole(x, weight, None, target))
    x, weight, _, target = problem(4, 6, 1, torch.float32)
    assert_same(sharded(x, weight, None, target, (1,)), whole(x, weight, None, target))


def test_two_classes_one_each(backend):
    x, weight, bias, target = problem(9, 6, 2, torch.float64)
    assert_same(sharded(x, weight, bias, target, (1,)), whole(x, weight, bias, target))


@caps
@dtypes
@cuts
def test_gradients_equal_those_of_all_classes(backend, cuts, dtype, softcap):
    x, weight, bias, target = problem(19, 12, 41, dtype)
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    columns = whole(*inputs, target, softcap=softcap)
    weights = {name: randn(19, dtype=columns[name].dtype) * COEFFICIENTS[name] for name in FLOATS}
    together = torch.autograd.grad(sum((weights[n] * columns[n]).sum() for n in FLOATS), inputs)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    exact = whole(*wide, target, softcap=softcap)
    truth = torch.autograd.grad(sum((weights[n].double() * exact[n]).sum() for n in FLOATS), wide)

    planes = merged_planes(x, weight, bias, target, cuts, softcap=softcap)
    valid = target != IGNORE
    grads = [weights[n].where(valid, 0) if n in ("nll", "target_logit") else weights[n] for n in FLOATS]
    parts = [
        shard_gradients(
            torch.stack(grads), *planes, x, w, b, target, start, 41, SCALE, softcap, IGNORE, False, [True] * 3
        )
        for start, w, b in cut(weight, bias, cuts)
    ]
    ours = sum(p[0].double() for p in parts).to(dtype), *(torch.cat([p[i] for p in parts]) for i in (1, 2))
    for name, a, b, c in zip(("x", "weight", "bias"), ours, together, truth, strict=True):
        # Each shard's gradient of x is rounded once; there are at most five.
        assert_accurate(a, b, c, what=f"gradient of {name}", eps=8)


@pytest.mark.parametrize("ignored", [2, 30])
def test_a_class_that_is_the_ignore_index_counts_nowhere(backend, monkeypatch, ignored):
    monkeypatch.setitem(globals(), "IGNORE", ignored)
    x, weight, bias, target = problem(19, 12, 41, torch.float64)
    target = target.where(target >= 0, ignored)
    target[0] = ignored
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    together = ncops.linear_stats(*inputs, target, scale=SCALE, ignore_index=ignored)._asdict()
    assert_same(sharded(x, weight, bias, target, (9, 30)), together)
    grads = randn(len(FLOATS), 19)  # of ignored rows too
    truth = torch.autograd.grad(sum((g * together[n]).sum() for g, n in zip(grads, FLOATS, strict=True)), inputs)
    planes = merged_planes(x, weight, bias, target, (9, 30))
    parts = [
        shard_gradients(grads, *planes, x, w, b, target, start, 41, SCALE, 0.0, IGNORE, False, [True] * 3)
        for start, w, b in cut(weight, bias, (9, 30))
    ]
    ours = sum(p[0] for p in parts), *(torch.cat([p[i] for p in parts]) for i in (1, 2))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradient_of_one_column_wherever_its_class_is(backend):
    """The argmax, the second and the target each in another shard than the rest."""
    x, weight, bias, target = problem(12, 5, 9, torch.float64)
    target = target.where(target != IGNORE, 2)
    for name in (*FLOATS, "margin"):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        stats = ncops.linear_stats(*inputs, target, scale=SCALE)
        columns = [stats._asdict()[n] for n in FLOATS]
        value = getattr(stats, name).sum()
        expected = torch.autograd.grad(value, inputs, retain_graph=True)
        grads = torch.autograd.grad(value, columns, allow_unused=True)
        grads = torch.stack([torch.zeros_like(c) if g is None else g for g, c in zip(grads, columns, strict=True)])
        planes = merged_planes(x, weight, bias, target, (3, 6))
        parts = [
            shard_gradients(grads, *planes, x, w, b, target, start, 9, SCALE, 0.0, IGNORE, False, [True] * 3)
            for start, w, b in cut(weight, bias, (3, 6))
        ]
        ours = sum(p[0] for p in parts), *(torch.cat([p[i] for p in parts]) for i in (1, 2))
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
