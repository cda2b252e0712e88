"""Runs of the row-statistics kernels in the harness, and what their columns are held against."""

from __future__ import annotations

import torch
from logit_columns import FLOATS, naive
from testing import IGNORE, assert_accurate

from ncops.backends.dtypes import compute_dtype

COLUMNS = (*FLOATS, "argmax", "second_index", "target_rank", "valid")
INDICES = ("argmax", "second_index", "target_rank", "valid")
TARGETS = ("target_logit", "nll", "target_rank", "valid")


def columns(like, rows, targets):
    """Empty columns, NaN or negative until a kernel fills them."""
    made = {}
    for name in COLUMNS:
        size = 0 if name in TARGETS and not targets else rows
        dtype = compute_dtype(like) if name in FLOATS else torch.bool if name == "valid" else torch.int64
        unset = float("nan") if dtype.is_floating_point else 0 if name == "valid" else -9
        made[name] = torch.full((size,), unset, dtype=dtype)
    return made


def logit_stats(kernels, logits, target=None, scale=1.0, ignore_index=IGNORE):
    out = columns(logits.dtype, logits.shape[0], target is not None)
    kernels.logit_stats(logits, target, scale, ignore_index, list(out.values()))
    return out


def linear_stats(
    kernels, x, weight, bias=None, target=None, scale=1.0, ignore_index=IGNORE, blocks=512, target_logit=None
):
    out = columns(x.dtype, x.shape[0], target is not None)
    kernels.linear_stats(x, weight, bias, target, scale, ignore_index, blocks, target_logit, list(out.values()))
    return out


def linear_stats_targets(kernels, x, weight, bias, target, scale=1.0, ignore_index=IGNORE):
    out = torch.full((x.shape[0],), float("nan"), dtype=compute_dtype(x.dtype))
    kernels.linear_stats_targets(x, weight, bias, target, scale, ignore_index, out)
    return out


def assert_columns(ours, plain, exact, target, indices=True):
    """Within twice the error of plain torch's logits ``plain`` of those in float64, ``exact``."""
    theirs, truth = naive(plain, target), naive(exact, target)
    size = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 0
    for name in FLOATS:
        if name in truth:
            scale = max(1, size**2 if name == "var" else size)
            assert_accurate(ours[name], theirs[name], truth[name], what=name, scale=scale, eps=4)
    for name in INDICES if indices else ("valid",):
        if name in truth:
            assert torch.equal(ours[name], theirs[name]), name


def same_bits(a, b):
    for name in COLUMNS:
        x, y = a[name], b[name]
        if x.dtype.is_floating_point:
            kind = {4: torch.int32, 8: torch.int64}[x.element_size()]
            x, y = x.view(kind), y.view(kind)
        assert torch.equal(x, y), name
