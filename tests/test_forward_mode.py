"""Forward-mode differentiation is refused: torch takes a missing rule for a derivative of zero, without a word."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import ncops

X = torch.randn(6, 3)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])
CALLS = {
    "class_moments": lambda x: ncops.class_moments(x, LABELS, 2).sums,
    "class_scatter": ncops.class_scatter,
    "projected_sqnorms": lambda x: ncops.projected_sqnorms(x, torch.eye(3)),
    "linear_stats": lambda x: ncops.linear_stats(x, torch.eye(3)).lse,
    "linear_topk": lambda x: ncops.linear_topk(x, torch.eye(3), k=2).lse,
    "logit_stats": lambda x: ncops.logit_stats(x).lse,
    "logit_divergence": lambda x: ncops.logit_divergence(x, x).kl,
    "linear_divergence": lambda x: ncops.linear_divergence(x, torch.eye(3), torch.ones(6, 3)).kl,
    "nearest_neighbors": lambda x: ncops.nearest_neighbors(x, torch.eye(3), k=2).sqdist,
    "pair_stats": lambda x: ncops.pair_stats(x, "dot").mean,
}


@pytest.mark.parametrize("op", CALLS)
def test_forward_mode_is_refused(op):
    with pytest.raises(NotImplementedError, match=op):
        torch.func.jvp(CALLS[op], (X,), (torch.ones_like(X),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=op):
        CALLS[op](forward_ad.make_dual(X, torch.ones_like(X)))
    CALLS[op](X)  # and only there


@pytest.mark.parametrize("op", CALLS)
def test_functional_gradients_are_refused(op):
    """As docs/integrations.md says: torch's own words, and never a wrong number."""
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: CALLS[op](x).sum())(X)
