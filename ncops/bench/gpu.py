"""The cases that a GPU is measured with, at sizes of the models that run there.

``ncops bench --device cuda`` runs them against the contestants of every case, ``python -m tools.gpu_day`` on every
backend and against those that are named here: compiling takes torch many seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import (
    class_moments,
    class_scatter,
    linear_divergence,
    linear_loss,
    linear_stats,
    linear_topk,
    logit_divergence,
    logit_stats,
    nearest_class_mean,
    nearest_neighbors,
    pair_stats,
    projected_sqnorms,
)
from .case import COMPILE, EAGER, EVERYTHING, OURS, Bench, Case, Sizes

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
_SHORT = ("speed", "accuracy")
_LLM = {"N": 8192, "D": 4096, "V": 128256}  # 4.2 GB of float32 logits: rows and vocabulary of a training step
_SMALL_LM = {"N": 8192, "D": 576, "V": 49152}
_SMALL = {"N": 4096, "D": 2048, "V": 32768}
_MOMENTS = {"N": 1_000_000, "D": 1024, "C": 1000}
_SCATTER = {"N": 200_000, "D": 2048, "C": 1000}
_PAIRS = {"K": 32768, "D": 1024}


def _case(
    bench: Bench, name: str, dtype: torch.dtype, sizes: Sizes, *peers: str, data: str = "uniform",
    measures: Sequence[str] = _SHORT,
) -> Case:  # fmt: skip
    return Case(bench, name, sizes, dtype, data, measures=measures, contestants=(OURS, *peers), device="cuda")


_FORWARD, _FULL = linear_stats.FORWARD, linear_stats.FULL
CASES = (
    _case(_FORWARD, "bfloat16", BF16, _LLM, EAGER, COMPILE, "matmul", measures=EVERYTHING),
    _case(_FORWARD, "small model, bfloat16", BF16, _SMALL_LM, "matmul"),
    _case(_FORWARD, "32 rows, bfloat16", BF16, {**_LLM, "N": 32}, "matmul"),
    _case(_FORWARD, "float16", F16, _SMALL),
    _case(_FORWARD, "float32", F32, _SMALL, "matmul"),
    _case(_FORWARD, "10 classes", F32, {"N": 1_000_000, "D": 512, "V": 10}, "matmul", EAGER),
    _case(_FORWARD, "100 classes", F32, {"N": 1_000_000, "D": 512, "V": 100}, "matmul"),
    _case(
        _FULL, "forward + backward", BF16, _LLM, EAGER, COMPILE, "liger", "cut_cross_entropy", measures=EVERYTHING,
    ),
    _case(linear_loss.FULL, "bfloat16", BF16, _LLM, "linear_stats", "liger", measures=("speed", "memory")),
    _case(linear_loss.FULL, "small model, bfloat16", BF16, _SMALL_LM, "linear_stats", EAGER),
    _case(linear_loss.FULL, "float32", F32, _SMALL, "linear_stats"),
    _case(_FULL, "forward + backward, small model", BF16, _SMALL_LM, EAGER),
    _case(_FULL, "forward + backward, float32", F32, _SMALL, EAGER),
    _case(
        linear_topk.FORWARD, "the 64 largest, bfloat16", BF16, {**_LLM, "K": 64}, "matmul", EAGER, measures=EVERYTHING
    ),
    _case(linear_topk.FORWARD, "float32", F32, {"N": 2048, "D": 768, "V": 50257, "K": 20}, "matmul", EAGER),
    _case(linear_topk.FORWARD, "1 row, float32", F32, {"N": 1, "D": 768, "V": 50257, "K": 50}, "matmul", EAGER),
    _case(
        logit_stats.FORWARD, "bfloat16", BF16, {"N": 8192, "V": 131072}, EAGER, COMPILE, "cross_entropy",
        measures=EVERYTHING,
    ),
    _case(logit_stats.FORWARD, "float32", F32, {"N": 8192, "V": 50257}, "cross_entropy"),
    _case(linear_divergence.FORWARD, "two heads, bfloat16", BF16, _SMALL_LM, "matmul", EAGER),
    _case(linear_divergence.FULL, "two heads, forward + backward, bfloat16", BF16, _SMALL_LM, EAGER),
    _case(logit_divergence.FORWARD, "bfloat16", BF16, {"N": 8192, "V": 131072}, "kl_div"),
    _case(logit_divergence.FORWARD, "float32", F32, {"N": 8192, "V": 50257}, EAGER, "kl_div"),
    _case(
        class_moments.FORWARD, "1000 classes", F32, _MOMENTS, EAGER, COMPILE, "index_add_", measures=EVERYTHING,
    ),
    _case(class_moments.FORWARD, "1000 classes, bfloat16", BF16, _MOMENTS, "index_add_"),
    _case(
        class_moments.FORWARD, "128256 classes, Zipf", BF16, {**_MOMENTS, "C": 128256}, "index_add_", data="zipf",
    ),
    _case(class_scatter.FORWARD, "1000 classes", F32, _SCATTER, EAGER, "matmul", measures=EVERYTHING),
    _case(class_scatter.FORWARD, "1000 classes, bfloat16", BF16, _SCATTER, "matmul"),
    _case(class_scatter.FORWARD, "raw, bfloat16", BF16, _SCATTER, data="raw"),
    _case(pair_stats.FORWARD, "cosine", F32, _PAIRS, EAGER, "matmul", data="cosine", measures=EVERYTHING),
    _case(pair_stats.FORWARD, "cosine, bfloat16", BF16, _PAIRS, "matmul", data="cosine"),
    _case(pair_stats.FORWARD, "log distance", F32, _PAIRS, EAGER, data="log_distance"),
    _case(nearest_class_mean.FORWARD, "float32", F32, {"N": 100_000, "D": 512, "C": 1000}, EAGER, "matmul"),
    _case(nearest_class_mean.FORWARD, "128256 classes", F32, {"N": 20_000, "D": 512, "C": 128256}, "matmul"),
    _case(nearest_neighbors.FORWARD, "20 of 50,000", F32, {"N": 50_000, "D": 256, "K": 20}),
    _case(
        projected_sqnorms.FORWARD, "full rank", F32, {"N": 200_000, "D": 512, "R": 512, "C": 1000}, EAGER, "matmul"
    ),
)  # fmt: skip
