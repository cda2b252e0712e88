"""The columns of linear_stats and logit_stats from dense logits, for the tests of both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from testing import IGNORE, randn, random_labels

FLOATS = ("lse", "gap", "max", "second", "target_logit", "nll", "entropy", "mean", "var", "sum_squared_prob")
DERIVED = ("margin", "max_prob", "sum", "sumsq")


def naive(z, target=None):
    """Every column of dense logits, in their dtype; ignored rows as the documentation says."""
    v = z.shape[1]
    order = z.sort(dim=1, descending=True, stable=True)
    top, best = order.values, order.indices
    c = {"lse": z.logsumexp(1), "max": top[:, 0], "argmax": best[:, 0]}
    c["gap"] = torch.log1p((top[:, 1:] - top[:, :1]).exp().sum(1))
    c["second"] = top[:, 1] if v > 1 else torch.full_like(top[:, 0], -math.inf)
    c["second_index"] = best[:, 1] if v > 1 else torch.full_like(best[:, 0], -1)
    c["entropy"] = -(z.softmax(1) * z.log_softmax(1)).sum(1)
    c["sum_squared_prob"] = z.softmax(1).square().sum(1)
    c["mean"], c["var"] = z.mean(1), (z - z.mean(1, keepdim=True)).square().mean(1)
    c["max_prob"], c["sum"], c["sumsq"] = z.softmax(1).amax(1), z.sum(1), z.square().sum(1)
    if target is not None:
        valid = target != IGNORE
        t = z.gather(1, target.clamp(min=0)[:, None])
        others = z.scatter(1, target.clamp(min=0)[:, None], -math.inf)
        c["valid"] = valid
        c["target_logit"] = t.squeeze(1).where(valid, 0)
        c["target_rank"] = (z > t).sum(1).where(valid, -1)
        c["nll"] = F.cross_entropy(z, target, reduction="none", ignore_index=IGNORE)
        c["margin"] = (t.squeeze(1) - others.amax(1)).where(valid, 0)
        c["correct"] = valid & (c["argmax"] == target)
    return c


def dense(x, weight, bias, scale):
    z = scale * (x @ weight.T)
    return z if bias is None else z + bias


def capped(z, softcap):
    return z.where(z.isinf(), softcap * (z / softcap).tanh())


def problem(n, d, v, dtype, bias=True):
    x, weight = randn(n, d, dtype=dtype), randn(v, d, dtype=dtype, scale=1.5)
    return x, weight, randn(v, dtype=dtype) if bias else None, random_labels(n, v)


def collapsed(dtype=torch.float32):
    """Logits that every backend forms exactly: 30 for the own class, small multiples of 1/64 elsewhere."""
    v = 12
    weight = torch.randint(-32, 32, (v, v)).to(torch.float64) / 64
    weight.fill_diagonal_(30)
    return torch.eye(v, dtype=dtype), weight.to(dtype), torch.arange(v)


COEFFICIENTS = dict(zip(FLOATS, (0.7, -1.1, 0.5, 0.3, 0.9, 1.3, -0.6, 0.8, 0.4, 0.9), strict=True))


def objective(columns, rows):
    """All float columns at once, weighted differently per column and row."""
    weights = torch.linspace(0.5, 1.5, rows, dtype=torch.float64, device=columns["lse"].device)
    return sum(c * (columns[name].double() * weights).sum() for name, c in COEFFICIENTS.items())
