"""logit_divergence, against the same columns in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import ncops

from .case import Bench, Case, randn


def columns(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What a user writes for these columns."""
    z, y = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (z, y))
    log_p, log_q = z.log_softmax(1), y.log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = ((p * (log_p - log_m)).sum(1) + (q * (log_q - log_m)).sum(1)) / 2
    return (
        (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1), js, torch.minimum(p, q).sum(1),
        -(p * log_p).sum(1), -(q * log_q).sum(1), z.logsumexp(1), y.logsumexp(1), z.argmax(1) == y.argmax(1),
    )  # fmt: skip


def ours(result) -> tuple[Tensor, ...]:
    """The same columns in the same order."""
    return (
        result.kl, result.reverse_kl, result.js, result.overlap, result.entropy, result.other_entropy, result.lse,
        result.other_lse, result.agree,
    )  # fmt: skip


def make(sizes, dtype, data, generator):
    z = 3 * randn(generator, sizes["N"], sizes["V"])
    return z.to(dtype), (z + 0.3 * randn(generator, sizes["N"], sizes["V"])).to(dtype)


FORWARD = Bench(
    op="logit_divergence", make=make, other="kl_div", eager=columns,
    ours=lambda z, y: ours(ncops.logit_divergence(z, y)),
    peers={
        "kl_div": lambda z, y: torch.nn.functional.kl_div(
            y.log_softmax(1), z.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
    },
    flops=lambda s: s["N"] * s["V"],
    bytes=lambda s, item: 2 * item * s["N"] * s["V"],
    base={"N": 1024, "V": 8192}, axes={"N": (64, 1024, 4096), "V": (100, 1000, 8192, 65536)},
    accuracy={"N": 256, "V": 4096},
)  # fmt: skip
BENCHES = (FORWARD,)
CASES = (Case(FORWARD, "float32", {"N": 1024, "V": 16384}),)
