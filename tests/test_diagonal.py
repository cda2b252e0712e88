"""diagonal=True of ClassStatistics: variances of each class by dimension, against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testing import IGNORE, randn, random_labels

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.ops import unit_rows
from ncops.stats import blocks

C, D = 6, 9


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7 * D * 8)


def expected(x, labels):
    x, y = x.double().numpy(), labels.numpy()
    seen = [c for c in range(C) if (y == c).any()]
    return np.stack([x[y == c].var(0) for c in seen])


def tight(n=60, dtype=torch.float32, spread=1e-3, ignored=0.2):
    """Classes of this spread, other in every dimension, at a distance of 100 from the origin."""
    means = 100 * torch.nn.functional.normalize(randn(C, D), dim=1)
    labels = random_labels(n, C - 1, ignored)
    scale = spread * torch.linspace(0.1, 2, D, dtype=torch.float64)
    return (means[labels.clamp(min=0)] + scale * randn(n, D)).to(dtype), labels


def statistics(x, labels, pieces=3, **options):
    stats = ncops.ClassStatistics(C, D, diagonal=True, **options)
    for rows, y in zip(x.chunk(pieces), labels.chunk(pieces), strict=True):
        stats.update(rows, y)
    return stats


def check(stats, x, labels, rtol=1e-5):
    geometry = stats.compute()
    assert geometry.variances.dtype == torch.float64
    np.testing.assert_allclose(geometry.variances.numpy(), expected(x, labels), rtol=rtol, atol=1e-30)
    torch.testing.assert_close(geometry.variances.sum(1), geometry.class_var, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scatter", [False, True])
def test_variances_of_tight_classes(backend, dtype, scatter):
    x, labels = tight(dtype=dtype, spread=1e-3 if dtype != torch.bfloat16 else 3)
    check(statistics(x, labels, scatter=scatter), x, labels)


def test_without_it_there_are_none():
    x, labels = tight()
    stats = ncops.ClassStatistics(C, D)
    stats.update(x, labels)
    assert stats.squares is None and stats.compute().variances is None


def test_anchors_that_move():
    """A first row far outside its class: its anchor is moved by the next update, and squares with it."""
    x, labels = tight(300, ignored=0)
    labels[0] = 0
    x[0] += 30
    stats = ncops.ClassStatistics(C, D, diagonal=True)
    stats.update(x[:1], labels[:1])
    first = stats.center[0].clone()
    stats.update(x[1:], labels[1:])
    assert not torch.equal(stats.center[0], first)
    check(stats, x, labels)


def test_merge_with_other_anchors():
    x, labels = tight(90)
    whole = statistics(x[:30], labels[:30])
    other = statistics(x[30:], labels[30:])
    only = labels == C - 2
    kept = statistics(x[30:], torch.where(only, IGNORE, labels)[30:])
    check(whole.merge(other), x, labels)
    assert torch.equal(kept.merge(statistics(x[30:], torch.where(only, labels, IGNORE)[30:])).counts, other.counts)
    check(kept, x[30:], labels[30:])
    with pytest.raises(ValueError, match="other: diagonal: expected True, got False"):
        whole.merge(ncops.ClassStatistics(C, D))


def test_save_and_load(tmp_path):
    x, labels = tight()
    stats = statistics(x, labels)
    stats.save(tmp_path / "stats.safetensors")
    again = ncops.load(tmp_path / "stats.safetensors")
    assert torch.equal(again.squares, stats.squares)
    again.update(x, labels)
    check(again, torch.cat([x, x]), torch.cat([labels, labels]))
    state = again.state_dict()
    state["squares"] = state["squares"] * 2
    with pytest.raises(ValueError, match="state: squares: class 0: expected a sum of"):
        stats.load_state_dict(state)
    again.reset()
    assert not again.squares.any()


def test_states_of_before_the_option_load():
    x, labels = tight()
    plain = ncops.ClassStatistics(C, D)
    plain.update(x, labels)
    state = plain.state_dict()
    del state["config"]["diagonal"]
    stats = ncops.ClassStatistics(C, D)
    stats.load_state_dict(state)
    assert stats.squares is None and torch.equal(stats.sums, plain.sums)


def test_a_nan_spoils_its_class_alone():
    x, labels = tight(ignored=0)
    x[3, 2] = math.nan
    geometry = statistics(x, labels).compute()
    bad = geometry.classes == labels[3]
    assert geometry.variances[bad, 2].isnan() and geometry.variances[~bad].isfinite().all()
    check(statistics(x, labels, nonfinite="skip"), torch.cat([x[:3], x[4:]]), torch.cat([labels[:3], labels[4:]]))


@pytest.mark.parametrize("where", ["_add_squares", "_scatter_of"])
def test_an_update_that_fails_changes_nothing(monkeypatch, where):
    x, labels = tight()
    stats = statistics(x[:30], labels[:30], scatter=True)
    before = {name: tensor.clone() for name, tensor in stats.tensors().items()}
    add = getattr(stats, where)

    def fails(*arguments):
        add(*arguments)
        raise MemoryError

    monkeypatch.setattr(stats, where, fails)
    with pytest.raises(MemoryError):
        stats.update(x[30:], labels[30:])
    assert all(torch.equal(before[name], tensor) for name, tensor in stats.tensors().items())


def test_of_unit_rows():
    x, labels = tight()
    stats = statistics(x, labels, normalize=True)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    check(stats, unit, labels, rtol=2e-2)  # unit rows in float32 are rounded by 3e-8, beside spreads of 1e-6 to 2e-5


def share(rank):
    generator = torch.Generator().manual_seed(rank)
    labels = torch.arange(40) % (C - 1 - rank)
    means = 100 * torch.linspace(-1, 1, C * D).reshape(C, D)
    return means[labels] + 1e-3 * torch.randn(40, D, generator=generator), labels


def reduced(rank):
    stats = ncops.ClassStatistics(C, D, diagonal=True)
    if rank < 2:
        stats.update(*share(rank))
    return stats.all_reduce().compute().variances.tolist()


def test_all_reduce(on_ranks):
    ranks = on_ranks(3, reduced)
    assert ranks[0] == ranks[1] == ranks[2]
    x, labels = (torch.cat(part) for part in zip(share(0), share(1), strict=True))
    np.testing.assert_allclose(np.array(ranks[0]), expected(x, labels), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_class_moments(backend, monkeypatch, dtype, normalize, centred):
    monkeypatch.setattr(unit_rows, "BLOCK_BYTES", 7 * D * 8)
    x, labels = randn(40, D, shift=0.5).to(dtype), random_labels(40, C)
    center = randn(C, D, dtype=compute_dtype(dtype)) if centred else None
    found = ncops.class_moments(x, labels, C, center=center, normalize=normalize, diagonal=True)
    rows, y = x.double().numpy(), labels.numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows
    truth = np.zeros((C, D))
    for row, label in zip(rows, y, strict=True):
        if label != IGNORE:
            truth[label] += (row - (0 if center is None else center[label].double().numpy())) ** 2
    assert found.sqnorms.dtype == torch.float64
    np.testing.assert_allclose(found.sqnorms.numpy(), truth, rtol=1e-12 if dtype == torch.float64 else 3e-6)
    whole = ncops.class_moments(x, labels, C, center=center, normalize=normalize)
    torch.testing.assert_close(found.sqnorms.sum(1), whole.sqnorms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sums, whole.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.counts, whole.counts)


def test_gradients_of_class_moments(backend):
    x, center = randn(12, D).requires_grad_(), randn(C, D).requires_grad_()
    labels, weight = random_labels(12, C), randn(C, D)
    found = ncops.class_moments(x, labels, C, center=center, diagonal=True)
    mine = torch.autograd.grad((found.sqnorms * weight).sum() + found.sums[2].sum(), (x, center))
    keep = labels != IGNORE
    r = x[keep] - center[labels[keep]]
    plain = (r.square() * weight[labels[keep]]).sum() + r[labels[keep] == 2].sum()
    torch.testing.assert_close(mine, torch.autograd.grad(plain, (x, center)))


def test_class_moments_of_nothing(backend):
    for n, classes in ((0, C), (3, 0)):
        labels = torch.full((n,), IGNORE)
        found = ncops.class_moments(randn(n, D), labels, classes, diagonal=True)
        assert found.sqnorms.shape == (classes, D) and not found.sqnorms.any()
