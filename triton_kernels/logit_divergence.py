"""Divergences of stored logits: two reads of both forward, one read and one write backward."""

from __future__ import annotations

from torch import Tensor

from ._divergence_gradient import gradients
from ._divergence_passes import Rows, divergences, empty_planes
from ._launch import tuned


def logit_divergence(
    logits: Tensor, other_logits: Tensor, scale: float, softcap: float, beta: float
) -> tuple[Tensor, Tensor]:
    """``(floats, agree)``: the planes of ``ncops.backends.planes``, and whether the argmax is the same."""
    out = empty_planes(logits)
    divergences(Rows(logits, other_logits, None, None, scale, softcap, False), beta, *out)
    return out


def logit_divergence_backward(
    grad: Tensor, floats: Tensor, logits: Tensor, other_logits: Tensor, scale: float, softcap: float, beta: float,
    need_logits: bool, need_other_logits: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the stored logits; size 0 where not needed."""
    rows = Rows(logits, other_logits, None, None, scale, softcap, False)
    needs = ((logits, need_logits), (other_logits, need_other_logits))
    outs = [t.new_empty(t.shape) if need else None for t, need in needs]
    planes = grad.contiguous(), floats.contiguous()
    if logits.shape[0]:
        run = lambda config: gradients(config, rows, *planes, beta, *outs, factor=scale)  # noqa: E731
        tuned("logit_divergence_backward", logits, tuple(logits.shape), run)
    return tuple(t.new_empty(0) if out is None else out for (t, _), out in zip(needs, outs, strict=True))
