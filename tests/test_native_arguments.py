"""What kernels are handed that is not as it seems: freed memory, indices changed by hand, states in a graph."""

from __future__ import annotations

import pytest
import torch

import ncops


def freed(*size: int) -> torch.Tensor:
    """What sharding frameworks leave of a parameter between two uses."""
    t = torch.randn(*size)
    t.untyped_storage().resize_(0)
    return t


X, W, Y = torch.randn(6, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 4, 0])
CALLS = {
    "linear_stats": (lambda t: ncops.linear_stats(X, t), W.shape, "weight"),
    "linear_stats x": (lambda t: ncops.linear_stats(t, W), X.shape, "x"),
    "linear_stats bias": (lambda t: ncops.linear_stats(X, W, t), (5,), "bias"),
    "logit_stats": (lambda t: ncops.logit_stats(t), (6, 5), "logits"),
    "class_moments": (lambda t: ncops.class_moments(t, Y, 5), X.shape, "x"),
    "class_scatter": (lambda t: ncops.class_scatter(X, Y, t), W.shape, "center"),
    "projected_sqnorms": (lambda t: ncops.projected_sqnorms(X, t), W.shape, "basis"),
    "nearest_class_mean": (lambda t: ncops.nearest_class_mean(X, t), W.shape, "means"),
    "pair_stats": (lambda t: ncops.pair_stats(t, "dot"), W.shape, "rows"),
}


@pytest.mark.parametrize("call", CALLS)
def test_freed_memory_is_an_error(call):
    run, size, name = CALLS[call]
    with ncops.use_backend("cpu"), pytest.raises(RuntimeError, match=f"{name}: its storage has 0 bytes"):
        run(freed(*size))
    part = torch.randn(40)
    view = part[20:].view(4, 5)
    part.untyped_storage().resize_(100)  # not all gone
    with ncops.use_backend("cpu"), pytest.raises(RuntimeError, match="x: its storage has 100 bytes"):
        ncops.class_scatter(view)


@pytest.mark.parametrize("bad", [5, 10**9, -2])
def test_indices_changed_by_hand_are_an_error(bad):
    logits = (X @ W.T).requires_grad_()
    with ncops.use_backend("cpu"):
        stats = ncops.logit_stats(logits, Y)
        loss = (stats.max + stats.nll).sum()
        stats.argmax.numpy()[2] = bad  # past autograd
        with pytest.raises(RuntimeError, match=rf"indices: expected -1 or classes below 5, got {bad} at row 2"):
            loss.backward()


@pytest.mark.parametrize("bad", [5, 10**9])
def test_indices_beyond_the_classes_are_those_of_other_shards(bad):
    """A shard's backward gets the classes of the whole vocabulary: those that it has not get nothing here."""
    x, weight = X.clone().requires_grad_(), W.clone().requires_grad_()
    with ncops.use_backend("cpu"):
        stats = ncops.linear_stats(x, weight)
        loss = stats.max.sum()
        stats.argmax.numpy()[:] = bad
        loss.backward()
    assert not x.grad.any() and not weight.grad.any()


def test_partners_changed_by_hand_get_no_gradient():
    rows = X.clone().requires_grad_()
    with ncops.use_backend("cpu"):
        stats = ncops.pair_stats(rows, "dot")
        loss = stats.row_max.sum()
        stats.row_argmax.numpy()[:] = 10**9
        loss.backward()
    assert not rows.grad.any()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_update_in_place_spoils_graphs_that_need_the_state(backend):
    with ncops.use_backend(backend):
        stats = ncops.ClassStatistics(5, 4)
        stats.update(X, Y)
        x = X.clone().requires_grad_()
        loss = ncops.class_moments(x, Y, 5, center=stats.center).sqnorms.sum()
        version = stats.sums._version
        stats.update(X + 100, Y)
        assert stats.sums._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
