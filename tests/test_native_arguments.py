"""What kernels are handed that is not as it seems: freed memory, indices changed by hand, states in a graph."""

from __future__ import annotations

import pytest
import torch

import ncops


def freed(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What sharding frameworks leave of a parameter between two uses."""
    t = torch.ones(size, dtype=dtype)
    t.untyped_storage().resize_(0)
    return t


X, W, Y = torch.randn(6, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 4, 0])
CALLS = {
    "linear_stats": (lambda t: ncops.linear_stats(X, t), W.shape, "weight"),
    "linear_stats x": (lambda t: ncops.linear_stats(t, W), X.shape, "x"),
    "linear_stats bias": (lambda t: ncops.linear_stats(X, W, t), (5,), "bias"),
    "linear_loss": (lambda t: ncops.linear_loss(X, t, None, Y), W.shape, "weight"),
    "linear_loss class_weight": (lambda t: ncops.linear_loss(X, W, None, Y, class_weight=t), (5,), "class_weight"),
    "linear_topk": (lambda t: ncops.linear_topk(X, t, k=2), W.shape, "weight"),
    "linear_divergence": (lambda t: ncops.linear_divergence(X, W, X, t), W.shape, "other_weight"),
    "logit_divergence": (lambda t: ncops.logit_divergence(X, t), X.shape, "other_logits"),
    "logit_stats": (lambda t: ncops.logit_stats(t), (6, 5), "logits"),
    "class_moments": (lambda t: ncops.class_moments(t, Y, 5), X.shape, "x"),
    "class_scatter": (lambda t: ncops.class_scatter(X, Y, t), W.shape, "center"),
    "projected_sqnorms": (lambda t: ncops.projected_sqnorms(X, t), W.shape, "basis"),
    "nearest_class_mean": (lambda t: ncops.nearest_class_mean(X, t), W.shape, "means"),
    "nearest_neighbors": (lambda t: ncops.nearest_neighbors(X, t, k=1), W.shape, "rows"),
    "pair_stats": (lambda t: ncops.pair_stats(t, "dot"), W.shape, "rows"),
    "pair_stats variances": (lambda t: ncops.pair_stats(W, "cdnv", variances=t), (5,), "variances"),
    "pinv_trace": (lambda t: ncops.pinv_trace(torch.eye(4), t), W.shape, "means"),
    "solve_trace": (lambda t: ncops.solve_trace(t, W), (4, 4), "total"),
    "ClassStatistics": (lambda t: ncops.ClassStatistics(5, 4).update(t, Y), X.shape, "x"),
}
LABELS = {
    "linear_stats": (lambda y: ncops.linear_stats(X, W, None, y), "target"),
    "linear_loss": (lambda y: ncops.linear_loss(X, W, None, y), "target"),
    "class_moments": (lambda y: ncops.class_moments(X, y, 5), "labels"),
    "pair_stats": (lambda y: ncops.pair_stats(X, "dot", labels=y), "labels"),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("call", CALLS)
def test_freed_memory_is_an_error(call, backend):
    run, size, name = CALLS[call]
    with ncops.use_backend(backend), pytest.raises(RuntimeError, match=f"^{name}: its storage has 0 bytes"):
        run(freed(*size))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("call", LABELS)
def test_freed_labels_are_an_error(call, backend):
    run, name = LABELS[call]
    with ncops.use_backend(backend), pytest.raises(RuntimeError, match=f"^{name}: its storage has 0 bytes"):
        run(freed(6, dtype=torch.int64))


def test_memory_freed_before_the_gradient_is_an_error():
    weight = W.clone().requires_grad_()
    with ncops.use_backend("cpu"):
        loss = ncops.linear_stats(X, weight, None, Y).nll.sum()
        weight.data.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="weight: its storage has 0 bytes"):
            loss.backward()


def test_memory_that_is_too_small_is_an_error():
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


@pytest.mark.parametrize("bad", [5, 10**9, -2])
def test_largest_classes_changed_by_hand_get_no_gradient(bad):
    x, weight = X.clone().requires_grad_(), W.clone().requires_grad_()
    with ncops.use_backend("cpu"):
        found = ncops.linear_topk(x, weight, k=2)
        loss = found.values.sum()
        found.indices.numpy()[:] = bad
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
