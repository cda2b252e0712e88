"""Rows for statistics whose classes are spread over ranks, and what is compared; one process sees the same rows."""

from __future__ import annotations

import torch

import ncops
from ncops.distributed import ShardedClassStatistics

D = 5
TENSORS = (
    "classes", "counts", "class_var", "means", "within_cov", "within_trace", "global_mean", "sample_mean", "variances",
)  # fmt: skip
STATE = ("counts", "center", "sums", "sqnorms", "scatter", "squares", "invalid", "skipped", "ignored")


def batch(rank: int, ranks: int, step: int, classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight classes far from the origin, one of them frequent. Uneven batches; the last of several ranks has no row."""
    g = torch.Generator().manual_seed(100 * step + rank)
    n = 0 if ranks > 1 and rank == ranks - 1 else 20 + 7 * rank + 3 * step
    labels = torch.randint(0, classes, (n,), generator=g)
    labels[: n // 3] = classes - 1
    offset = 10 * torch.randn(classes, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = offset[labels] + 0.1 * torch.randn(n, D, generator=g, dtype=torch.float64)
    labels[::9] = -100
    return x.to(dtype), labels


def one_and_shards(rank: int, ranks: int, classes: int, dtype: torch.dtype, steps: int = 3, **options):
    """Statistics that have seen the rows of all ranks, and those over the ranks that have seen each its own."""
    one = ncops.ClassStatistics(classes, D, **options)
    shards = ShardedClassStatistics(classes, D, **options)
    for step in range(steps):
        for r in range(ranks):
            one.update(*batch(r, ranks, step, classes, dtype))
        shards.update(*batch(rank, ranks, step, classes, dtype))
    return one, shards


def check_same_geometry(got, want, rtol=1e-6, atol=1e-9):
    assert got.coverage == want.coverage
    assert (got.num_samples, got.num_classes, got.input_dtype) == (want.num_samples, want.num_classes, want.input_dtype)
    for name in TENSORS:
        mine, theirs = getattr(got, name), getattr(want, name)
        if theirs is None:
            assert mine is None
        else:
            assert mine.dtype == theirs.dtype and mine.device.type == "cpu"
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: n + m)


def check_same_bits(got, want):
    for name in STATE:
        mine, theirs = getattr(got, name), getattr(want, name)
        assert (mine is None) == (theirs is None), name
        assert theirs is None or torch.equal(mine, theirs), name


def bits(shards: ShardedClassStatistics) -> list:
    return [t.clone() for t in shards.local.tensors().values()] + [torch.tensor(shards.updates)]


def same(before: list, after: list) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))
