"""What multiplies rows with rows: nearest_class_mean, nearest_neighbors, projected_sqnorms and pair_stats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ncops

from .classes import features
from .data import BF16, DTYPES, F16, F32, F64, GRADIENTS, SUMS, TAIL, Case, Data, gradients, tail


def _points(data: Data, n: int, d: int, c: int, dtype: torch.dtype) -> list[Any]:
    return [data.randn(n, d, dtype=dtype), data.wide(dtype, c, d)]


def nearest_class_mean(data: Data) -> Iterator[Case]:
    def run(x, means):
        nearest = ncops.nearest_class_mean(x, means)
        return {"index": nearest.index, "sqdist": nearest.sqdist}

    yield from data.grid(((5000, 512, 1000), (300, 250, 3000), (200, 1030, 7)), _points, run, SUMS)
    yield data.beyond(512, tail(run), SUMS[BF16], lambda rows: [data.randn(10, 512)])


def _candidates(data: Data, n: int, d: int, m: int, dtype: torch.dtype) -> list[Any]:
    return [data.randn(n, d, dtype=dtype), data.randn(m, d, dtype=dtype)]


def nearest_neighbors(data: Data) -> Iterator[Case]:
    def run(x, rows):
        found = ncops.nearest_neighbors(x, rows, k=20)
        return {"sqdist": found.sqdist, "nearest": found.index[:, 0]}

    yield from data.grid(((5000, 512, 50_000), (300, 250, 3000)), _candidates, run, SUMS)
    alone = lambda x: {"sqdist": ncops.nearest_neighbors(x, k=5).sqdist}  # noqa: E731
    yield Case("among themselves", F32, lambda: [data.randn(*data.sizes(20_000), 64)], alone, SUMS[F32])


def nearest_neighbors_backward(data: Data) -> Iterator[Case]:
    def loss(x, rows):
        return ncops.nearest_neighbors(x, rows, k=20).sqdist.sqrt().sum()

    yield from data.grid(((3000, 250, 5000),), _candidates, partial(gradients, loss, (0,)), GRADIENTS)


def _projection(data: Data, n: int, d: int, r: int, dtype: torch.dtype) -> list[Any]:
    x, labels, center = features(data, n, d, 30, dtype)
    return [x, data.randn(r, d, dtype=dtype, scale=d**-0.5), labels, center]


def projected_sqnorms(data: Data) -> Iterator[Case]:
    def run(x, basis, labels, center):
        return {"centred": ncops.projected_sqnorms(x, basis, labels, center), "raw": ncops.projected_sqnorms(x, basis)}

    def raw(x, basis):
        return {"raw": ncops.projected_sqnorms(x, basis)}

    yield from data.grid(((5000, 512, 512), (300, 250, 37), (200, 1030, 65)), _projection, run, SUMS)
    yield data.beyond(512, tail(raw), SUMS[BF16], lambda rows: [data.randn(10, 512, dtype=BF16)])


def projected_sqnorms_backward(data: Data) -> Iterator[Case]:
    def loss(x, basis, labels, center):
        out = ncops.projected_sqnorms(x, basis, labels, center)
        return (out * torch.linspace(-1, 1, len(x), dtype=F64, device=x.device)).sum()

    shapes = ((5000, 512, 512), (300, 250, 37))
    yield from data.grid(shapes, _projection, partial(gradients, loss, (0, 1)), GRADIENTS)


BY_CLASS = ((3000, 512), (700, 250))
KERNELS = ("dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv")


def _rows(data: Data, k: int, d: int, dtype: torch.dtype, kernel: str) -> list[Any]:
    scale = d**-0.5 if kernel in ("dot", "gaussian") else 1.0
    return [data.randn(k, d, dtype=dtype, scale=scale, shift=0.3), data.wide(dtype, k).abs() + 0.1]


def _labelled(data: Data, k: int, d: int, dtype: torch.dtype) -> list[Any]:
    return [data.randn(k, d, dtype=dtype, shift=0.3), data.labels(k, 10)]


def _pair_stats(kernel: str, rows: Tensor, variances: Tensor):
    variances = variances if kernel == "cdnv" else None
    return ncops.pair_stats(rows, kernel, variances=variances, power=1.5 if kernel == "riesz" else 1)


def _pair_cases(data: Data, run: Callable, tolerances: dict[torch.dtype, float]) -> Iterator[Case]:
    for kernel in KERNELS:
        make = partial(_rows, kernel=kernel)
        yield from data.grid(((3000, 512), (700, 250)), make, partial(run, kernel), tolerances, kernel)


def pair_stats(data: Data) -> Iterator[Case]:
    def found(stats):
        return {name: getattr(stats, name) for name in ("mean", "var", "min", "max", "row_max", "row_argmax", "count")}

    def run(kernel, rows, variances):
        return found(_pair_stats(kernel, rows, variances))

    def by_class(rows, labels):
        return found(ncops.pair_stats(rows, "angle", labels=labels))

    yield from _pair_cases(data, run, dict.fromkeys(DTYPES, 1e-4) | {F64: 1e-9})
    yield from data.grid(BY_CLASS, _labelled, by_class, dict.fromkeys(DTYPES, 1e-4) | {F64: 1e-9}, "angle by class")
    # The pairs with rows of zeros are zero.
    dots = lambda rows: {"row_max": ncops.pair_stats(rows, "dot").row_max[-TAIL:].clamp(min=0)}  # noqa: E731
    yield data.beyond(65536, dots, 1e-4)


def pair_stats_backward(data: Data) -> Iterator[Case]:
    def run(kernel, rows, variances):
        def loss(rows, variances):
            stats = _pair_stats(kernel, rows, variances)
            return stats.mean + 0.1 * stats.row_max.sum()

        return gradients(loss, (0, 1) if kernel == "cdnv" else (0,), rows, variances)

    def loss_by_class(kernel, rows, labels):
        stats = ncops.pair_stats(rows, kernel, labels=labels)
        return stats.mean[0] - stats.mean[1] + 0.1 * stats.row_max[:, labels >= 0].sum()

    def run_by_class(kernel, rows, labels):
        return gradients(partial(loss_by_class, kernel), (0,), rows, labels)

    tolerances = {F32: 1e-4, BF16: 2e-2, F16: 5e-3, F64: 1e-9}
    yield from _pair_cases(data, run, tolerances)
    for kernel in ("cosine", "angle", "distance"):
        yield from data.grid(BY_CLASS, _labelled, partial(run_by_class, kernel), tolerances, f"{kernel} by class")
