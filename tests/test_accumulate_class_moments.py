"""accumulate_class_moments_ against dense float64 arithmetic over several calls."""

from __future__ import annotations

import math

import pytest
import torch
from testing import (
    IGNORE,
    LAYOUTS,
    assert_deterministic,
    bits,
    dtypes,
    interpreter_blocks,
    layouts,
    randn,
    random_labels,
    threads,
)

import ncops
from ncops.backends.dtypes import compute_dtype

wide_blocks = interpreter_blocks(
    {"class_moments": {"CHUNK": 32, "BLOCK_D": 128}, "class_moments.merge": {"BLOCK_D": 128}}
)


def state(classes, d, dtype=torch.float32):
    return {
        "counts": torch.zeros(classes, dtype=torch.int64),
        "center": torch.zeros(classes, d, dtype=compute_dtype(dtype)),
        "sums": torch.zeros(classes, d, dtype=torch.float64),
        "sqnorms": torch.zeros(classes, dtype=torch.float64),
        "invalid": torch.zeros((), dtype=torch.int64),
    }


def add(s, x, labels, **options):
    return ncops.accumulate_class_moments_(*s.values(), x, labels, **options)


def copy(s):
    return {name: t.clone() for name, t in s.items()}


def means(s):
    return s["center"].double() + s["sums"] / s["counts"][:, None]


def variances(s):
    return s["sqnorms"] / s["counts"] - (s["sums"] / s["counts"][:, None]).square().sum(1)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 17, 5), (65, 33, 130), (130, 65, 3)], ids=str)
def test_a_stream_matches_float64(backend, shape, dtype):
    n, d, c = shape
    s, seen = state(c, d, dtype), []
    for _ in range(3):
        x, labels = randn(n, d, dtype=dtype, shift=0.5), random_labels(n, c)
        before = copy(s)
        assert add(s, x, labels) is None
        seen.append((x.double(), labels))
        present = torch.zeros(c, dtype=torch.bool).index_fill_(0, labels[labels != IGNORE], True)
        for name in ("counts", "center", "sums", "sqnorms"):
            assert torch.equal(s[name][~present], before[name][~present]), name
        old = before["counts"] > 0
        assert torch.equal(s["center"][old], before["center"][old])
    x, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    eps = torch.finfo(compute_dtype(dtype)).eps
    for k in range(c):
        rows = x[labels == k]
        assert s["counts"][k] == rows.shape[0]
        if rows.shape[0]:
            torch.testing.assert_close(means(s)[k], rows.mean(0), rtol=0, atol=16 * eps * rows.abs().max().item())
            spread = rows.var(0, correction=0).sum()
            torch.testing.assert_close(variances(s)[k], spread, rtol=32 * eps, atol=32 * eps * d)
    assert s["invalid"] == 0


def test_by_hand(backend):
    s = state(3, 2)
    add(s, torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), torch.tensor([2, 2, IGNORE]))
    assert s["counts"].tolist() == [0, 0, 2] and s["center"].tolist() == [[0, 0], [0, 0], [2, 3]]
    assert s["sums"].tolist() == [[0, 0]] * 3 and s["sqnorms"].tolist() == [0, 0, 4]
    add(s, torch.tensor([[4.0, 3.0], [5.0, 5.0]]), torch.tensor([2, 0]))
    assert s["counts"].tolist() == [1, 0, 3] and s["center"].tolist() == [[5, 5], [0, 0], [2, 3]]
    assert s["sums"].tolist() == [[0, 0], [0, 0], [2, 0]] and s["sqnorms"].tolist() == [0, 0, 8]


def test_collapsed_regime(backend):
    directions = torch.nn.functional.normalize(randn(10, 32), dim=1) * 100
    s, seen = state(10, 32), []
    for _ in range(4):
        labels = torch.arange(500 if backend != "triton" else 100) % 10
        x = (directions[labels] + 1e-3 * randn(len(labels), 32)).float()
        add(s, x, labels)
        seen.append(x.double())
    x, labels = torch.cat(seen), labels.repeat(4)
    truth = torch.stack([x[labels == c].var(0, correction=0).sum() for c in range(10)])
    assert ((variances(s) / truth - 1).abs() < 1e-4).all()


@layouts
def test_layouts(backend, layout):
    x, labels = LAYOUTS[layout](randn(65, 33, dtype=torch.float32)), random_labels(65, 6)
    one, two = state(6, 33), state(6, 33)
    add(one, x, labels.repeat_interleave(2)[::2])
    add(two, x.contiguous(), labels)
    for a, b in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert one["counts"].sum() == (labels != IGNORE).sum() > 0


def test_leading_dimensions_and_nothing(backend):
    x, labels = randn(2, 3, 5), torch.randint(0, 4, (2, 3))
    one, two = state(4, 5, torch.float64), state(4, 5, torch.float64)
    add(one, x, labels)
    add(two, x.view(6, 5), labels.view(6))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))
    before = copy(one)
    add(one, x[:0], labels[:0])
    add(one, x, torch.full_like(labels, IGNORE))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), before.values(), strict=True))


def test_nan_touches_its_class_alone(backend):
    s, clean = state(4, 3), state(4, 3)
    x, labels = randn(20, 3, dtype=torch.float32), torch.arange(20) % 4
    add(clean, x, labels)
    x[6, 1] = math.nan
    add(s, x, labels)
    rest = torch.arange(4) != 2
    for name in ("counts", "center", "sums", "sqnorms"):
        assert torch.equal(s[name][rest], clean[name][rest]), name
    assert s["sqnorms"][2].isnan() and s["counts"][2] == 5


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_label_out_of_range_leaves_the_state(backend, bad):
    s = state(4, 3)
    add(s, randn(20, 3, dtype=torch.float32), torch.arange(20) % 3)
    before = copy(s)
    labels = torch.tensor([0, 3, IGNORE, bad, 99])
    with pytest.raises(ValueError, match=rf"labels: .*\[0, 4\).*got {bad} at row 3"):
        add(s, randn(5, 3, dtype=torch.float32), labels)
    assert all(torch.equal(a, b) for a, b in zip(s.values(), before.values(), strict=True))


def changed(**change):
    return state(4, 3) | change


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (changed(counts=torch.zeros(4)), "counts: expected torch.int64"),
        (changed(center=torch.zeros(4, 3).double()), "center: expected torch.float32"),
        (changed(sums=torch.zeros(4, 3)), "sums: expected torch.float64"),
        (changed(sums=torch.zeros(3, 4).double().t()), "sums: expected a contiguous tensor"),
        (changed(sqnorms=torch.zeros(3).double()), r"sqnorms: expected shape \(C,\) = \(4,\), got \(3,\)"),
        (changed(invalid=torch.zeros(1, dtype=torch.int64)), r"invalid: expected shape \(\)"),
    ],
)
def test_errors(s, message):
    with pytest.raises(ValueError, match=message):
        add(s, randn(5, 3, dtype=torch.float32), torch.zeros(5, dtype=torch.int64))


def test_features_that_require_a_gradient_leave_the_state_free_of_it(backend):
    s = state(4, 3)
    add(s, randn(5, 3, dtype=torch.float32).requires_grad_(), torch.zeros(5, dtype=torch.int64))
    assert not any(t.requires_grad for t in s.values()) and s["counts"][0] == 5


def test_deterministic(backend):
    n, d = (5000, 65) if backend != "triton" else (200, 17)
    x, labels = randn(n, d, dtype=torch.float32), random_labels(n, 40)

    def run():
        s = state(40, d)
        add(s, x[: n // 2], labels[: n // 2])
        add(s, x[n // 2 :], labels[n // 2 :])
        return s.values()

    assert_deterministic(run, backend)


def test_opcheck(backend):
    s = state(3, 5)
    op = torch.ops.ncops.accumulate_class_moments_.default
    torch.library.opcheck(op, (*s.values(), randn(9, 5, dtype=torch.float32), random_labels(9, 3), IGNORE))


def test_compile(backend):
    x, labels = randn(9, 5, dtype=torch.float32), random_labels(9, 3)
    eager, compiled = state(3, 5), state(3, 5)

    def run(x, *tensors):
        ncops.accumulate_class_moments_(*tensors, x, labels)
        return tensors[0] * 2

    torch._dynamo.reset()
    with threads(1):
        doubled = torch.compile(run, fullgraph=True, backend="aot_eager")(x, *compiled.values())
        assert torch.equal(doubled, run(x, *eager.values()))
    for a, b in zip(bits(eager.values()), bits(compiled.values()), strict=True):
        assert torch.equal(a, b)
