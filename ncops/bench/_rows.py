"""The peers that linear_stats and logit_stats share: every column of a row of logits, in plain torch and NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AVERAGES = {7: 8}  # where mean and variance stand among the columns


def columns(z: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """What a user writes for these columns, in the cheapest forms that torch has (each was timed)."""
    z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
    top, index = z.topk(2, 1)
    lse = z.logsumexp(1)
    at_target = z.gather(1, target[:, None])
    rank = (z > at_target).sum(1)
    entropy = lse - (z.softmax(1) * z).sum(1)
    var, mean = torch.var_mean(z, 1, correction=0)
    at_target = at_target.squeeze(1)
    return (
        lse, lse - top[:, 0], top[:, 0], top[:, 1], at_target, lse - at_target, entropy, mean, var,
        index[:, 0], index[:, 1], rank,
    )  # fmt: skip


def ours(stats) -> tuple[Tensor, ...]:
    """The same columns in the same order from a LinearStats."""
    return (
        stats.lse, stats.gap, stats.max, stats.second, stats.target_logit, stats.nll, stats.entropy, stats.mean,
        stats.var, stats.argmax, stats.second_index, stats.target_rank,
    )  # fmt: skip


def numpy_columns(z: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    index = np.argpartition(z, -2, axis=1)[:, -2:]
    top = np.take_along_axis(z, index, 1)
    peak = top.max(1)
    below = z - peak[:, None]
    terms = np.exp(below)
    total = terms.sum(1)
    lse = peak + np.log(total)
    at_target = np.take_along_axis(z, target[:, None], 1)
    entropy = np.log(total) - (terms * below).sum(1) / total
    rank = (z > at_target).sum(1)
    at_target = at_target[:, 0]
    return (
        lse, lse - peak, peak, top.min(1), at_target, lse - at_target, entropy, z.mean(1), z.var(1),
        z.argmax(1), index, rank,
    )  # fmt: skip
