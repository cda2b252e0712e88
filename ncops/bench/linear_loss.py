"""linear_loss with its gradient, against what trains a language model's head."""

from __future__ import annotations

import dataclasses

import torch

import ncops

from . import linear_stats
from .case import COMPILE, EAGER, OURS, Case, Goal

FULL = dataclasses.replace(
    linear_stats.FULL, op="linear_loss", ours=lambda x, weight, target: ncops.linear_loss(x, weight, None, target).loss,
    peers={"linear_stats": linear_stats.FULL.ours, **linear_stats.FULL.peers},
    flops=lambda s: 6 * s["N"] * s["D"] * s["V"],  # three products, none recomputed
)  # fmt: skip
BENCHES = (FULL,)

_GPT2 = {"N": 2048, "D": 768, "V": 50257}
_BEATS = (EAGER, COMPILE, "linear_cross_entropy")
_SPEED = ("speed",)  # float64 logits of these sizes would take minutes
CASES = (
    Case(FULL, "float32", _GPT2, goal=Goal(0.80, _BEATS), measures=_SPEED),
    Case(FULL, "bfloat16", _GPT2, torch.bfloat16, goal=Goal(0.70, _BEATS), measures=_SPEED),
    Case(
        FULL, "2048 features", {"N": 4096, "D": 2048, "V": 32000}, goal=Goal(0.80, _BEATS), measures=_SPEED,
        contestants=(OURS, EAGER),
    ),
    Case(
        FULL, "large V", {"N": 4096, "D": 256, "V": 131072}, goal=Goal(megabytes=100), measures=("memory",),
        contestants=(OURS,),
    ),
    Case(FULL, "accuracy", {"N": 256, "D": 512, "V": 4096}, measures=("accuracy",), contestants=(OURS, EAGER, COMPILE)),
)  # fmt: skip
