"""The smoke cases: every op at the sizes of a production launch, on every path that the launchers choose among.

Between them the cases reach each row of triton_kernels/_launch.py (tests/test_gpu_day.py holds them to it), features
that fill whole vectors and tiles and that do not, more than one tile per split, several splits and chunks, sums longer
than one float32 chain, and tensors whose last rows begin beyond 2^31 elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ncops
from ncops.backends import CUDA_OPS

from . import classes, logits, pairs
from .data import DTYPES, F32, SUMS, TF32, TF32_GRADIENTS, Case, Data, columns

OPS = {
    maker.__name__: maker
    for maker in (
        logits.linear_stats, logits.linear_stats_backward, logits.linear_loss, logits.linear_topk,
        logits.logit_stats, logits.logit_stats_backward,
        logits.linear_divergence, logits.linear_divergence_backward,
        logits.logit_divergence, logits.logit_divergence_backward,
        classes.class_moments, classes.class_moments_backward, classes.class_scatter, classes.class_scatter_backward,
        pairs.nearest_class_mean, pairs.nearest_neighbors, pairs.nearest_neighbors_backward,
        pairs.projected_sqnorms, pairs.projected_sqnorms_backward,
        pairs.pair_stats, pairs.pair_stats_backward,
    )
}  # fmt: skip
# The ops that multiply float32 features: torch's switch for tf32 concerns them.
WITH_TF32 = tuple(name for name in OPS if not name.startswith(("logit_", "class_moments")))


def cases(name: str, data: Data, tf32: bool = False) -> list[Case]:
    """The cases of one op; with ``tf32`` those of float32, held to tf32's accuracy."""
    found = [case for case in OPS[name](data) if not (case.huge and data.reduced)]
    if not tf32:
        return found
    tolerance = TF32_GRADIENTS if name.endswith(("backward", "loss")) else TF32
    return [case._replace(tolerance=tolerance) for case in found if case.dtype == F32]


def jobs(only: str = "") -> list[tuple[str, str, bool]]:
    """What a GPU has to get right: (op, backend, tf32), each for a process of its own."""
    names = [name for name in OPS if name.startswith(only)]
    compiled = [(name, "cuda", False) for name in names if name in CUDA_OPS]
    tf32 = [(name, "triton", True) for name in names if name in WITH_TF32]
    return compiled + [(name, "triton", False) for name in names] + tf32


def small(data: Data) -> Iterator[Case]:
    """Every compiled kernel once, small, for a sanitizer, which is a hundred times slower."""
    for dtype in DTYPES:
        for d in (64, 131):
            features = partial(classes.features, data, 700, d, 9, dtype)
            for run in (classes.moments, classes.accumulate, classes.scatter):
                yield Case(f"{run.__name__} {d}", dtype, features, run, SUMS[dtype])
            for n in (200, 9):
                inputs = partial(logits.linear, data, n, d, 700, dtype)
                for run in (logits.linear_columns, logits.capped_columns):
                    yield Case(f"{run.__name__} {n} {d}", dtype, inputs, run, SUMS[dtype])
        stored = partial(logits.stored, data, 9, 20001, 0, dtype)
        for softcap in (None, logits.SOFTCAP):
            run = partial(ncops.logit_stats, softcap=softcap)
            yield Case("logit_stats", dtype, stored, lambda *args, run=run: columns(run(*args)), SUMS[dtype])
