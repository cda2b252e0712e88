"""The cases that a GPU is measured with, at sizes of the models that run there."""

from __future__ import annotations

import torch

from . import (
    class_moments,
    class_scatter,
    linear_stats,
    logit_stats,
    nearest_class_mean,
    pair_stats,
    projected_sqnorms,
)
from .case import Case

_LLM = {"N": 8192, "D": 4096, "V": 131072}  # 4.3 GB of float32 logits: rows and vocabulary of a training step
_SMALL = {"N": 4096, "D": 2048, "V": 32768}
_ALL = ("speed", "memory", "accuracy")

CASES = (
    Case(linear_stats.FORWARD, "bfloat16", _LLM, torch.bfloat16, measures=_ALL),
    Case(linear_stats.FORWARD, "float16", _SMALL, torch.float16),
    Case(linear_stats.FORWARD, "float32", _SMALL),
    Case(linear_stats.FORWARD, "32 rows", {"N": 32, "D": 4096, "V": 131072}, torch.bfloat16),
    Case(linear_stats.FORWARD, "10 classes", {"N": 1_000_000, "D": 512, "V": 10}),
    Case(linear_stats.FULL, "forward + backward", _LLM, torch.bfloat16, measures=_ALL),
    Case(linear_stats.FULL, "forward + backward, float32", _SMALL),
    Case(logit_stats.FORWARD, "bfloat16", {"N": 8192, "V": 131072}, torch.bfloat16, measures=_ALL),
    Case(logit_stats.FORWARD, "float32", {"N": 8192, "V": 50257}),
    Case(class_moments.FORWARD, "1000 classes", {"N": 400_000, "D": 2048, "C": 1000}, measures=_ALL),
    Case(class_moments.FORWARD, "1000 classes, bfloat16", {"N": 400_000, "D": 2048, "C": 1000}, torch.bfloat16),
    Case(
        class_moments.FORWARD, "50257 classes, Zipf", {"N": 400_000, "D": 2048, "C": 50257}, torch.bfloat16, "zipf",
    ),
    Case(class_scatter.FORWARD, "1000 classes", {"N": 200_000, "D": 2048, "C": 1000}, measures=_ALL),
    Case(class_scatter.FORWARD, "1000 classes, bfloat16", {"N": 200_000, "D": 2048, "C": 1000}, torch.bfloat16),
    Case(pair_stats.FORWARD, "cosine", {"K": 32768, "D": 1024}, measures=_ALL),
    Case(pair_stats.FORWARD, "log distance", {"K": 32768, "D": 1024}, data="log_distance"),
    Case(nearest_class_mean.FORWARD, "float32", {**nearest_class_mean.FORWARD.base, "N": 100_000}),
    Case(projected_sqnorms.FORWARD, "float32", {**projected_sqnorms.FORWARD.base, "N": 200_000}),
)  # fmt: skip
