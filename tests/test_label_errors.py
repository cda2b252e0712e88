"""Labels and features in the shapes and types that people have them: named, with what to do about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ncops
from ncops import losses

N, D, C = 6, 3, 4
X, W = torch.ones(N, D), torch.ones(C, D)
Y = torch.arange(N) % C


def update(labels):
    statistics = ncops.ClassStatistics(C, D)
    try:
        statistics.update(X, labels)
    finally:
        assert statistics.center is None and not statistics.counts.any()


def decide(labels):
    statistics = ncops.ClassStatistics(C, D)
    statistics.update(X, Y)
    ncops.DecisionStatistics(statistics.compute(), W).update(X, labels)


CALLS = {
    "linear_stats": ("target", lambda y: ncops.linear_stats(X, W, None, y)),
    "linear_loss": ("target", lambda y: ncops.linear_loss(X, W, None, y)),
    "logit_stats": ("target", lambda y: ncops.logit_stats(X @ W.T, y)),
    "class_moments": ("labels", lambda y: ncops.class_moments(X, y, C)),
    "class_scatter": ("labels", lambda y: ncops.class_scatter(X, y, W)),
    "projected_sqnorms": ("labels", lambda y: ncops.projected_sqnorms(X, W, y, W)),
    "pair_stats": ("labels", lambda y: ncops.pair_stats(X, "dot", labels=y)),
    "supervised_contrastive": ("labels", lambda y: losses.supervised_contrastive(X, y)),
    "ClassStatistics": ("labels", update),
    "DecisionStatistics": ("labels", decide),
}
LABELS = [
    (Y[:, None], ValueError, "{}: expected shape .* = \\(6,\\), got \\(6, 1\\): {}.squeeze\\(-1\\) has it"),
    (torch.eye(C, dtype=torch.long)[Y], ValueError, "{}: expected shape .* not one-hot; {}.argmax\\(-1\\) has it"),
    (torch.eye(C)[Y], ValueError, "{}: expected an integer dtype, got torch.float32: .* {}.argmax\\(-1\\) has it"),
    (torch.eye(C, dtype=torch.bool)[Y], ValueError, "{}: expected an integer dtype, got torch.bool: .*argmax"),
    (Y.float(), ValueError, "{}: expected an integer dtype, got torch.float32$"),
    (Y[1:], ValueError, "{}: expected shape .* = \\(6,\\), got \\(5,\\)$"),
    (Y.numpy(), TypeError, "{}: expected a tensor, got ndarray: torch.as_tensor\\({}\\) is one"),
    (Y.tolist(), TypeError, "{}: expected a tensor, got list: torch.as_tensor\\({}\\) is one"),
    ("cat", TypeError, "{}: expected a tensor, got str$"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("labels", "kind", "message"), LABELS, ids=range(len(LABELS)))
def test_labels(call, labels, kind, message):
    name, run = CALLS[call]
    with pytest.raises(kind, match=message.format(name, name)):
        run(labels)


def test_features():
    with pytest.raises(TypeError, match=r"x: expected a tensor, got ndarray: torch.as_tensor\(x\) is one"):
        ncops.linear_stats(np.ones((N, D)), W)
    with pytest.raises(TypeError, match=r"weight: expected a tensor, got list: torch.as_tensor\(weight\) is one"):
        ncops.linear_stats(X, W.tolist())


NOTHING, ONES = torch.zeros(2, 3, 0), torch.zeros(2, 3, dtype=torch.long)
OF_NOTHING = {
    "linear_stats": lambda x, y: ncops.linear_stats(x, W[:, :0], None, y).nll,
    "linear_loss": lambda x, y: ncops.linear_loss(x, W[:, :0], None, y).stats.nll,
    "linear_topk": lambda x, y: ncops.linear_topk(x, W[:, :0], k=2).indices,
    "linear_divergence": lambda x, y: ncops.linear_divergence(x, W[:, :0], x).kl,
    "class_moments": lambda x, y: ncops.class_moments(x, y, C).counts,
    "class_scatter": lambda x, y: ncops.class_scatter(x, y, W[:, :0]),
    "projected_sqnorms": lambda x, y: ncops.projected_sqnorms(x, W[:, :0], y, W[:, :0]),
    "nearest_class_mean": lambda x, y: ncops.nearest_class_mean(x, W[:, :0]).index,
    "nearest_neighbors": lambda x, y: ncops.nearest_neighbors(x, W[:, :0], k=2).sqdist,
}


@pytest.mark.parametrize("call", OF_NOTHING)
def test_leading_dimensions_of_rows_without_features(call):
    """Of which torch cannot tell the number of rows."""
    found, flat = OF_NOTHING[call](NOTHING, ONES), OF_NOTHING[call](NOTHING.view(6, 0), ONES.view(6))
    assert torch.equal(found.reshape(flat.shape), flat)
    assert found.shape[:2] == ((2, 3) if len(flat) == 6 else flat.shape[:2])


def test_rows_without_features_beside_a_classifier_with_some():
    with pytest.raises(ValueError, match=r"weight: expected shape \(V, D\) = \(4, 0\), got \(4, 3\)"):
        ncops.linear_stats(NOTHING, W)
    with pytest.raises(ValueError, match=r"logits: expected shape .* at least one class, got \(2, 3, 0\)"):
        ncops.logit_stats(NOTHING)
