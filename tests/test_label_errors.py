"""Labels and features in the shapes and types that people have them: named, with what to do about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ncops

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
    "logit_stats": ("target", lambda y: ncops.logit_stats(X @ W.T, y)),
    "class_moments": ("labels", lambda y: ncops.class_moments(X, y, C)),
    "class_scatter": ("labels", lambda y: ncops.class_scatter(X, y, W)),
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
