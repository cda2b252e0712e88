"""linear_topk against the topk and the log-sum-exp of N x V logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import ncops

from .case import Bench, Case, Goal, randn

K = 20


def make(sizes, dtype, data, generator):
    n, d, v = sizes["N"], sizes["D"], sizes["V"]
    return randn(generator, n, d).to(dtype), (randn(generator, v, d) * d**-0.5).to(dtype), sizes["K"]


def ours(x, weight, k):
    found = ncops.linear_topk(x, weight, k=k)
    return found.values, found.lse


def eager(x, weight, k):
    z = F.linear(x, weight)
    return z.topk(k)[0], z.logsumexp(1)


FORWARD = Bench(
    op="linear_topk", make=make, ours=ours, eager=eager, other="matmul",
    peers={"matmul": lambda x, weight, k: F.linear(x, weight)},
    flops=lambda s: 2 * s["N"] * s["D"] * s["V"],
    bytes=lambda s, item: item * s["D"] * (s["N"] + s["V"]),
    base={"N": 1024, "D": 512, "V": 16384, "K": K},
    axes={
        "N": (1, 16, 64, 256, 1024, 4096), "D": (64, 256, 1024, 4096), "V": (1000, 16384, 131072),
        "K": (1, 8, 64, 512),
    },
    accuracy={"N": 256, "V": 8192}, bf16_products=True,
)  # fmt: skip
BENCHES = (FORWARD,)

_LLM = {"N": 1024, "D": 768, "V": 16384}
CASES = (
    Case(FORWARD, "the 20 largest", {**_LLM, "K": K}, goal=Goal(0.80)),
    Case(FORWARD, "the 256 largest", {**_LLM, "K": 256}),
    Case(FORWARD, "bfloat16", {**_LLM, "K": K}, torch.bfloat16),
    Case(FORWARD, "1 row", {"N": 1, "D": 768, "V": 50257, "K": K}, measures=("speed",)),
)  # fmt: skip
