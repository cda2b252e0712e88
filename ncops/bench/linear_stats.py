"""linear_stats, forward and forward + backward, against what computes the same from N x V logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import ncops

from . import _rows
from .case import EVERYTHING, Bench, Case, Goal, labels, numpy, randn, single_thread


def make(sizes, dtype, data, generator):
    n, d, v = sizes["N"], sizes["D"], sizes["V"]
    target = labels(generator, n, v, data)
    weight = randn(generator, v, d)
    if data == "collapsed":  # features are their class's row: margin about 22, nll of 1e-9 and below
        weight = F.normalize(weight)
        x = 32 * weight[target] + 0.05 * randn(generator, n, d)
    else:
        x, weight = randn(generator, n, d), weight * d**-0.5
    return x.to(dtype), weight.to(dtype), target


def ours(x, weight, target):
    return _rows.ours(ncops.linear_stats(x, weight, None, target))


def liger(x, weight, target):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(x, weight, target)[0]


def cut_cross_entropy(x, weight, target):
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(x, weight, target)


_FUSED = {}  # where this torch has such a function
if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
    _FUSED = {
        "linear_cross_entropy": F.linear_cross_entropy,
        "linear_cross_entropy chunked": lambda x, weight, target: F.linear_cross_entropy(
            x, weight, target, options=torch.nn.LinearCrossEntropyOptions()
        ),
    }

FORWARD = Bench(
    op="linear_stats", make=make, other="matmul", ours=ours,
    eager=lambda x, weight, target: _rows.columns(F.linear(x, weight), target),
    peers={
        "matmul": lambda x, weight, target: F.linear(x, weight),
        "one thread": single_thread(ours),
        "numpy": numpy(lambda x, weight, target: _rows.numpy_columns(x @ weight.T, target)),
    },
    flops=lambda s: 2 * s["N"] * s["D"] * s["V"],
    bytes=lambda s, item: item * s["D"] * (s["N"] + s["V"]),
    base={"N": 1024, "D": 512, "V": 16384},
    axes={
        "N": (1, 16, 64, 256, 1024, 4096),
        "D": (64, 128, 256, 512, 1024, 2048, 4096),
        "V": (10, 100, 1000, 4096, 16384, 65536, 131072),
    },
    accuracy={"N": 256, "V": 8192}, averages=_rows.AVERAGES, data=("uniform", "zipf"), bf16_products=True,
)  # fmt: skip
FULL = Bench(
    op="linear_stats", make=make, other="linear_cross_entropy", wrt=(0, 1),
    ours=lambda x, weight, target: ncops.linear_stats(x, weight, None, target).loss("nll"),
    eager=lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target),
    peers={**_FUSED, "liger": liger, "cut_cross_entropy": cut_cross_entropy},
    flops=lambda s: 8 * s["N"] * s["D"] * s["V"],  # four products, one of them recomputed
    bytes=lambda s, item: 2 * item * s["D"] * (s["N"] + s["V"]),
    base={"N": 1024, "D": 512, "V": 8192},
    axes={"N": (64, 256, 1024, 4096), "D": (128, 512, 2048), "V": (100, 1000, 8192, 32768)},
    accuracy={"N": 256, "V": 4096}, bf16_products=True,
)  # fmt: skip
BENCHES = (FORWARD, FULL)

_LLM = {"N": 1024, "D": 768, "V": 16384}  # 67 MB of logits: beyond the caches, and quick
CASES = (
    Case(FORWARD, "float32", _LLM, goal=Goal(0.85), measures=EVERYTHING),
    Case(FORWARD, "bfloat16", _LLM, torch.bfloat16, goal=Goal(0.80)),
    Case(FULL, "forward + backward", {"N": 1024, "D": 768, "V": 8192}, goal=Goal(0.75), measures=EVERYTHING),
    Case(FORWARD, "10 classes", {"N": 50000, "D": 512, "V": 10}, goal=Goal(beats=("matmul",))),
    Case(FORWARD, "100 classes", {"N": 50000, "D": 512, "V": 100}, goal=Goal(0.70)),
    # Whether all threads are busy shows beside the same call on one thread.
    Case(FORWARD, "1 row", {"N": 1, "D": 768, "V": 50257}, goal=Goal(0.70), other="one thread"),
    Case(FORWARD, "32 rows", {"N": 32, "D": 768, "V": 50257}, goal=Goal(0.70), other="one thread"),
    Case(FORWARD, "collapsed", {"N": 256, "D": 512, "V": 1000}, data="collapsed", measures=("accuracy",)),
)  # fmt: skip
