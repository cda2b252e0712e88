"""class_moments, its running form, and class_scatter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import ncops
from ncops.triton_kernels._candidates import candidate

from .data import BF16, F16, F32, F64, GRADIENTS, SUMS, TAIL, Case, Data, Outputs, gradients, last_rows


def features(data: Data, n: int, d: int, c: int, dtype: torch.dtype) -> list[Any]:
    return [data.randn(n, d, dtype=dtype, shift=0.5), data.labels(n, c), data.wide(dtype, c, d)]


def moments(x, labels, center) -> Outputs:
    about, plain = (ncops.class_moments(x, labels, len(center), center=m) for m in (center, None))
    both = {f"{name} about 0": getattr(plain, name) for name in ("sums", "sqnorms")}
    return both | {name: getattr(about, name) for name in ("sums", "sqnorms", "counts", "invalid")}


def accumulate(x, labels, center) -> Outputs:
    (c, d), device = center.shape, x.device
    counts, invalid = (torch.zeros(size, dtype=torch.int64, device=device) for size in (c, ()))
    sums, sqnorms = (torch.zeros(size, dtype=F64, device=device) for size in ((c, d), c))
    anchors, half = torch.zeros_like(center), len(x) // 2
    for part in (slice(0, half), slice(half, None)):  # the second call meets classes that have anchors, and new ones
        ncops.accumulate_class_moments_(counts, anchors, sums, sqnorms, invalid, x[part], labels[part])
    # Anchors are rounded: what they leave over is in the sums.
    return {"first": anchors.double() * counts[:, None] + sums, "counts": counts, "invalid": invalid}


def class_moments(data: Data) -> Iterator[Case]:
    shapes = (
        (100_000, 512, 1000), (20_000, 100, 7), (50_000, 1024, 50257), (4000, 2048, 10), (30_000, 64, 1),
        (3000, 1001, 40), (3000, 130, 40),  # no rows of whole vectors, and for some dtypes
    )  # fmt: skip
    yield from data.grid(shapes, features, moments, SUMS)
    # Batch sums are float32 also where a float64 state receives them.
    yield from data.grid(shapes, features, accumulate, SUMS, "accumulate")

    def of_others(x, labels):
        found = ncops.class_moments(x, labels, 40)
        return {name: getattr(found, name)[1:] for name in ("sums", "sqnorms", "counts")}

    def tail_labels(rows):
        labels = torch.zeros(rows, dtype=torch.int64, device=data.device)
        labels[-TAIL:] = data.labels(TAIL, 39) + 1  # IGNORE + 1 is out of range
        return [labels]

    yield data.beyond(4096, of_others, SUMS[BF16], tail_labels, partial(last_rows, tensors=2))
    classes = 2**31 // 4096 + TAIL

    def many_classes():
        return [data.randn(20_000, 4096, dtype=BF16), classes - 1 - data.labels(20_000, TAIL).clamp(min=0)]

    def their_sums(x, labels):
        return {"sums": ncops.class_moments(x, labels, classes).sums[-TAIL:].clone()}

    yield Case("sums beyond 2^31", BF16, many_classes, their_sums, SUMS[BF16], huge=True)


def class_moments_backward(data: Data) -> Iterator[Case]:
    def loss(x, labels, center):
        found = ncops.class_moments(x, labels, len(center), center=center)
        return (found.sums * 0.7).sum() + (found.sqnorms * 0.3).sum()

    shapes = ((20_000, 100, 7), (50_000, 1024, 1000), (3000, 1001, 40))
    yield from data.grid(shapes, features, partial(gradients, loss, (0, 2)), GRADIENTS)


def scatter(x, labels, center) -> Outputs:
    return {
        "within": ncops.class_scatter(x, labels, center), "total": ncops.class_scatter(x, None, center[0]),
        "raw": ncops.class_scatter(x),
    }  # fmt: skip


def of_halves(x, labels, center) -> Outputs:
    with candidate("split_halves"):
        return scatter(x, labels, center)


def _spoilt(data: Data, value: float) -> list[Any]:
    """An infinity or a NaN keeps to the row and the column of its feature."""
    args = features(data, *data.sizes(3000, 250, 30), F32)
    args[0][7, 3] = value
    return args


def class_scatter(data: Data) -> Iterator[Case]:
    sizes = ((20_000, 512), (5000, 100), (3000, 1000), (50_000, 64), (3000, 130), (2000, 301))
    yield from data.grid(((n, d, 30) for n, d in sizes), features, scatter, SUMS)
    for n, d in ((100_000, 1024), (20_000, 512), (3000, 1000), (2000, 301)):  # several chunks, one, and padded features
        for dtype in (F32, BF16, F16):
            shape = data.sizes(n, d, 30)
            make = partial(features, data, *shape, dtype)
            yield Case(f"split_halves {shape}", dtype, make, of_halves, SUMS[dtype])
    for value in (math.inf, math.nan):
        yield Case(f"split_halves, one {value:g}", F32, partial(_spoilt, data, value), of_halves, SUMS[F32])
    yield data.beyond(64, lambda x: {"raw": ncops.class_scatter(x)}, SUMS[BF16])


def class_scatter_backward(data: Data) -> Iterator[Case]:
    def loss(x, labels, center):
        d = x.shape[1]
        weight = torch.linspace(-1, 1, d * d, dtype=F64, device=x.device).view(d, d)
        return (ncops.class_scatter(x, labels, center) * weight).sum()

    shapes = ((5000, 512, 30), (3000, 250, 30))
    yield from data.grid(shapes, features, partial(gradients, loss, (0, 2)), GRADIENTS)
