"""linear_divergence of two heads, against what computes the same from two N x V blocks of logits."""

from __future__ import annotations

import torch.nn.functional as F

import ncops

from . import logit_divergence
from .case import EAGER, OURS, Bench, Case, Goal, randn


def make(sizes, dtype, data, generator):
    n, d, v = sizes["N"], sizes["D"], sizes["V"]
    x, weight = randn(generator, n, d), randn(generator, v, d) * d**-0.5
    other, other_weight = x + 0.3 * randn(generator, n, d), weight + 0.3 * randn(generator, v, d) * d**-0.5
    return tuple(t.to(dtype) for t in (x, weight, other, other_weight))


def eager(x, weight, other, other_weight):
    return logit_divergence.columns(F.linear(x, weight), F.linear(other, other_weight))


FORWARD = Bench(
    op="linear_divergence", make=make, other="matmul", eager=eager,
    ours=lambda *inputs: logit_divergence.ours(ncops.linear_divergence(*inputs)),
    peers={"matmul": lambda x, weight, other, other_weight: (F.linear(x, weight), F.linear(other, other_weight))},
    flops=lambda s: 4 * s["N"] * s["D"] * s["V"],
    bytes=lambda s, item: 2 * item * s["D"] * (s["N"] + s["V"]),
    base={"N": 1024, "D": 512, "V": 8192},
    axes={"N": (64, 256, 1024, 4096), "D": (128, 512, 2048), "V": (100, 1000, 8192, 32768)},
    accuracy={"N": 256, "V": 4096}, bf16_products=True,
)  # fmt: skip
FULL = Bench(
    op="linear_divergence", make=make, other=EAGER, wrt=(0, 1, 2, 3),
    ours=lambda *inputs: ncops.linear_divergence(*inputs).kl.mean(),
    eager=lambda *inputs: eager(*inputs)[0].mean(), peers={},
    flops=lambda s: 16 * s["N"] * s["D"] * s["V"],  # eight products, two of them recomputed
    bytes=lambda s, item: 4 * item * s["D"] * (s["N"] + s["V"]),
    base=FORWARD.base, axes=FORWARD.axes, accuracy=FORWARD.accuracy, bf16_products=True,
)  # fmt: skip
BENCHES = (FORWARD, FULL)

_SIZES = {"N": 1024, "D": 768, "V": 8192}
CASES = (
    # 1.15 times its two products at linear_stats' share of the limit.
    Case(FORWARD, "two heads", _SIZES, goal=Goal(0.85 / 1.15)),
    Case(FULL, "two heads, forward + backward", _SIZES, contestants=(OURS, EAGER)),
)
