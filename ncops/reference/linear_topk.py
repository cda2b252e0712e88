"""The largest logits of a linear classifier by row blocks, in plain PyTorch; the gradient is that of every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.planes import FLOATS, INDICES
from ._blocks import row_blocks
from .linear_stats import logits_of
from .logit_stats import row_columns
from .softcap import capped, uncapped_gradient


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: float, softcap: float, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(values (N, k), sums (2, N), indices (N, k))``: sums are the log-sum-exp, and what it is above the largest."""
    blocks = []
    for here in row_blocks(x.shape[0], weight.shape[0]):
        z = capped(logits_of(x[here], weight, bias, scale), softcap)
        columns = dict(zip(FLOATS, row_columns(z, None, -100)[0].unbind(), strict=True))
        values, indices = (t[:, :k] for t in z.sort(dim=1, descending=True, stable=True))
        poisoned = columns["lse"].isnan()[:, None]
        sums = torch.stack([columns["lse"], columns["gap"]])
        blocks.append((values.masked_fill(poisoned, torch.nan), sums, indices.masked_fill(poisoned, -1)))
    return tuple(torch.cat(parts, dim) for parts, dim in zip(zip(*blocks, strict=True), (0, 1, 0), strict=True))


def linear_topk_backward(
    g_values: Tensor, g_logprob: Tensor, g_lse: Tensor, values: Tensor, logprob: Tensor, lse: Tensor, indices: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, scale: float, softcap: float, allow_tf32: bool,
    need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias``; size 0 where not needed."""
    return topk_gradients(
        g_values, g_logprob, g_lse, values, logprob, lse, indices, x, weight, bias, 0, scale, softcap, allow_tf32,
        need_x, need_weight, need_bias,
    )  # fmt: skip


def topk_gradients(
    g_values: Tensor, g_logprob: Tensor, g_lse: Tensor, values: Tensor, logprob: Tensor, lse: Tensor, indices: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, start: int, scale: float, softcap: float, allow_tf32: bool,
    need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Through the log-sum-exp by linear_stats_backward, beside that a gradient at k logits of each row.

    The classes of ``weight`` begin at ``start`` of those that ``indices`` number; others are those of another shard.
    The log-probability of the largest logit is ``-gap``; the others' are ``values - lse``. The k entries are sorted by
    class, so that sums over rows go in the order of the rows.
    """
    k, classes_here = values.shape[1], weight.shape[0]
    here = (indices >= start) & (indices < start + classes_here)
    classes = (indices - start).where(here, 0)
    poisoned = lse.isnan()
    active = (g_values != 0).any(1) | (g_logprob != 0).any(1) | (g_lse != 0)
    planes = {name: torch.zeros_like(lse) for name in FLOATS}
    planes |= {"lse": lse, "gap": -logprob[:, 0], "max": values[:, 0]}
    grad = {name: torch.zeros_like(lse) for name in FLOATS}
    grad["lse"] = (g_lse - g_logprob[:, 1:].sum(1)).masked_fill(poisoned & active, 1)  # gives NaN everywhere
    grad["gap"] = -g_logprob[:, 0]
    places = torch.full((len(INDICES), x.shape[0]), -1, dtype=torch.int64, device=x.device)
    places[INDICES.index("argmax")] = classes[:, 0].where(here[:, 0], classes_here).masked_fill(poisoned, -1)
    grad, planes = (torch.stack([t[name] for name in FLOATS]) for t in (grad, planes))
    g_x, g_weight, g_bias = torch.ops.ncops.linear_stats_backward(
        grad, planes, places, x, weight, bias, None, scale, softcap, -100, allow_tf32, need_x, need_weight, need_bias,
        True,
    )  # fmt: skip
    picked = g_values + torch.cat([torch.zeros_like(lse)[:, None], g_logprob[:, 1:]], 1)
    picked = picked.where(here, 0)
    if need_x or softcap:
        product = _row_sums(picked, classes, x, weight, bias, scale, softcap)
        g_x = g_x + product if need_x else g_x
    if need_weight or need_bias:
        order = classes.flatten().argsort(stable=True)
        ends = torch.searchsorted(classes.flatten()[order], torch.arange(weight.shape[0] + 1, device=x.device))
        picked, rows = picked.flatten()[order], order // k
    if need_bias:
        g_bias = g_bias + _sums(picked.double(), ends)
    if need_weight:
        known = x.where(active[:, None], 0)  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
        for here in row_blocks(x.shape[1], len(rows)):  # of features
            terms = (scale * picked)[:, None] * known[rows, here].to(values.dtype)
            g_weight[:, here] += _sums(terms, ends)
    return tuple(g.to(x.dtype) for g in (g_x, g_weight, g_bias))


def _row_sums(
    picked: Tensor, classes: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """``(N, D)`` products of the gradients ``picked (N, k)``, which become those before the cap, and rows of weight."""
    out = picked.new_empty(x.shape)
    for here in row_blocks(x.shape[0], 2 * classes.shape[1] * x.shape[1]):
        rows = weight[classes[here]].to(picked.dtype)
        if softcap:
            z = scale * torch.einsum("nkd,nd->nk", rows, x[here].to(picked.dtype))
            z = z if bias is None else z + bias[classes[here]]
            picked[here] = uncapped_gradient(picked[here], z, softcap)
        out[here] = scale * torch.einsum("nk,nkd->nd", picked[here], rows)
    return out


def _sums(terms: Tensor, ends: Tensor) -> Tensor:
    """Over the terms of each class, which lie between its end and that of the class before, in their order."""
    return torch.segment_reduce(terms, "sum", offsets=ends, axis=0, unsafe=True, initial=0)
