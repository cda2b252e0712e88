"""Runs of the row-statistics kernels in the harness, and what their columns are held against."""

from __future__ import annotations

import math

import torch
from logit_columns import FLOATS, naive
from testing import IGNORE, assert_accurate

from ncops.backends.dtypes import compute_dtype
from ncops.backends.planes import SHARE_FLOATS, SHARE_INDICES
from ncops.reference.logit_share import LogitShare

INDICES = ("argmax", "second_index", "target_rank")
COLUMNS = (*FLOATS, *INDICES)
TARGETS = ("target_logit", "nll", "target_rank")


def planes(dtype, rows, floats=FLOATS, indices=INDICES):
    """Empty planes, NaN or negative until a kernel fills them."""
    return torch.full((len(floats), rows), math.nan, dtype=dtype), torch.full((len(indices), rows), -9)


def named(floats, indices):
    return dict(zip(COLUMNS, (*floats, *indices), strict=True))


def logit_stats(kernels, logits, target=None, scale=1.0, ignore_index=IGNORE, softcap=0.0):
    out = planes(compute_dtype(logits.dtype), logits.shape[0])
    kernels.logit_stats(logits, target, scale, softcap, ignore_index, *out)
    return named(*out)


def linear_stats(kernels, x, weight, bias=None, target=None, scale=1.0, ignore_index=IGNORE, blocks=512, softcap=0.0):
    out = planes(compute_dtype(x.dtype), x.shape[0])
    kernels.linear_stats(x, weight, bias, target, scale, softcap, ignore_index, blocks, *out)
    return named(*out)


def linear_stats_share(kernels, x, weight, bias, target_logit, scale=1.0, blocks=512, softcap=0.0):
    floats, indices = planes(torch.float64, x.shape[0], SHARE_FLOATS, SHARE_INDICES)
    kernels.linear_stats_share(x, weight, bias, target_logit, scale, softcap, blocks, floats, indices)
    return LogitShare(*floats, *indices)


def linear_stats_targets(kernels, x, weight, bias, target, scale=1.0, ignore_index=IGNORE, softcap=0.0):
    out = torch.full((x.shape[0],), float("nan"), dtype=compute_dtype(x.dtype))
    kernels.linear_stats_targets(x, weight, bias, target, scale, softcap, ignore_index, out)
    return out


def assert_columns(ours, plain, exact, target, indices=True):
    """Within twice the error of plain torch's logits ``plain`` of those in float64, ``exact``."""
    theirs, truth = naive(plain, target), naive(exact, target)
    size = exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 0
    for name in FLOATS:
        if name in truth:
            scale = max(1, size**2 if name == "var" else size)
            assert_accurate(ours[name], theirs[name], truth[name], what=name, scale=scale, eps=4)
    for name in INDICES if indices else ():
        if name in truth:
            assert torch.equal(ours[name], theirs[name]), name


def same_bits(a, b):
    for name in COLUMNS:
        x, y = a[name], b[name]
        if x.dtype.is_floating_point:
            kind = {4: torch.int32, 8: torch.int64}[x.element_size()]
            x, y = x.view(kind), y.view(kind)
        assert torch.equal(x, y), name
