"""linear_stats, linear_loss, linear_topk, logit_stats and the divergences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

import ncops
from ncops.triton_kernels._candidates import candidate

from .data import (
    BF16,
    F32,
    GRADIENTS,
    SUMS,
    TAIL,
    Case,
    Data,
    Outputs,
    columns,
    divergence,
    divergences,
    gradients,
    last_rows,
    objective,
    tail,
)

SOFTCAP = 5.0  # which many logits of every case are near


def linear(data: Data, n: int, d: int, v: int, dtype: torch.dtype) -> list[Any]:
    x, weight = data.randn(n, d, dtype=dtype), data.randn(v, d, dtype=dtype, scale=d**-0.5)
    return [x, weight, data.randn(v, dtype=dtype), data.labels(n, v)]


def _spoilt(data: Data, value: float) -> list[Any]:
    """An infinity, a NaN or a large number keeps to its row, also where float32 is multiplied in halves."""
    args = linear(data, *data.sizes(512, 512, 1000), F32)
    args[0][7, 3] = value
    return args


def linear_columns(*args) -> Outputs:
    return columns(ncops.linear_stats(*args, scale=0.7))


def capped_columns(*args) -> Outputs:
    return columns(ncops.linear_stats(*args, scale=0.7, softcap=SOFTCAP))


def through_descriptors(x, weight, bias, target, **options) -> Outputs:
    with candidate("descriptors"):
        return columns(ncops.linear_stats(x, weight, None, target, scale=0.7, **options))


def _few_classes(data: Data, rows: int) -> list[Any]:
    return [*linear(data, 16, 4096, 16, BF16)[1:3], data.labels(rows, 16)]


def linear_stats(data: Data) -> Iterator[Case]:
    shapes = (
        (4096, 512, 5000), (300, 250, 1001), (130, 1024, 40000), (40, 512, 40000), (40, 250, 999), (30, 512, 40000),
        (1, 512, 50257), (16, 250, 300_000), (16, 768, 3000), (5000, 512, 10), (3000, 250, 60), (200, 250, 100),
        (500, 12288, 700),
    )  # fmt: skip
    yield from data.grid(shapes, linear, linear_columns, SUMS)
    yield from data.grid(((4096, 512, 5000), (40, 250, 999), (5000, 512, 10)), linear, capped_columns, SUMS, "capped")
    for n, d, v in ((4096, 512, 5000), (300, 248, 1001), (130, 1024, 40000), (8192, 576, 49152)):
        shape = data.sizes(n, d, v)
        for name, run in (("", through_descriptors), (" capped", partial(through_descriptors, softcap=SOFTCAP))):
            make = partial(linear, data, *shape, BF16)
            yield Case(f"descriptors{name} {shape}", BF16, make, run, SUMS[BF16])
    for value in (math.inf, -math.inf, math.nan, 1e12):
        make = partial(_spoilt, data, value)
        yield Case(f"one {value:g}", F32, make, linear_columns, SUMS[F32])
    few_classes = partial(_few_classes, data)
    yield data.beyond(4096, tail(linear_columns), SUMS[BF16], few_classes, partial(last_rows, labels=3))
    weight = partial(linear, data, 16, 4096, 2**31 // 4096 + TAIL, BF16)
    yield Case("weight beyond 2^31", BF16, weight, linear_columns, SUMS[BF16], huge=True)


def linear_stats_backward(data: Data) -> Iterator[Case]:
    loss = lambda *args, **options: objective(ncops.linear_stats(*args, scale=0.7, **options))  # noqa: E731
    run, capped = (partial(gradients, f, (0, 1, 2)) for f in (loss, partial(loss, softcap=SOFTCAP)))
    shapes = (
        (1000, 512, 5000), (300, 250, 1001), (8192, 256, 20000), (40, 264, 70000), (5000, 512, 10), (3000, 250, 60),
    )  # fmt: skip
    yield from data.grid(shapes, linear, run, GRADIENTS)
    yield from data.grid(((1000, 512, 5000), (5000, 512, 10)), linear, capped, GRADIENTS, "capped")
    few_classes = partial(_few_classes, data)
    only_x = partial(gradients, lambda *args: objective(ncops.linear_stats(*args)), (0,))
    yield data.beyond(4096, tail(only_x), GRADIENTS[BF16], few_classes, partial(last_rows, labels=3))


def _loss(x, weight, bias, target):
    options = {"z_loss": 1e-2, "entropy": -0.1, "label_smoothing": 0.1, "reduction": "sum"}
    return ncops.linear_loss(x, weight, bias, target, scale=0.7, **options).loss


def linear_loss(data: Data) -> Iterator[Case]:
    shapes = ((1000, 512, 5000), (300, 250, 1001), (2100, 264, 70000), (40, 512, 70000), (5000, 512, 10))
    yield from data.grid(shapes, linear, partial(gradients, _loss, (0, 1, 2)), GRADIENTS)


def _largest(k: int, softcap: float | None, x, weight, bias, target) -> Outputs:
    found = ncops.linear_topk(x, weight, bias, k=min(k, len(weight)), scale=0.7, softcap=softcap)
    return {"values": found.values, "lse": found.lse, "logprob": found.logprob, "index": found.indices.flatten()}


def linear_topk(data: Data) -> Iterator[Case]:
    """Groups of every size, rows that fit a block of the selection and that do not, all classes."""
    for k, softcap, *shapes in (
        (1, None, (300, 250, 1001), (40, 512, 70000)), (20, None, (2048, 768, 50257), (5000, 512, 33)),
        (50, None, (1, 768, 50257)), (50, SOFTCAP, (40, 250, 5000)), (1000, None, (130, 250, 50257)),
        (5000, None, (40, 250, 20001), (40, 250, 5000)),
    ):  # fmt: skip
        yield from data.grid(shapes, linear, partial(_largest, k, softcap), SUMS, f"k={k}")
    shape = data.sizes(8192, 4096, 128256)
    yield Case(f"k=64 {shape}", BF16, partial(linear, data, *shape, BF16), partial(_largest, 64, None), SUMS[BF16])


def stored(data: Data, n: int, v: int, pad: int, dtype: torch.dtype) -> list[Any]:
    """With ``pad`` rows do not begin at 16 bytes."""
    return [data.randn(n, v + pad, dtype=dtype, scale=3)[:, :v], data.labels(n, v)]


def _stored_cases(
    data: Data, run: Callable[..., Outputs], capped: Callable[..., Outputs], tolerances: Mapping[torch.dtype, float],
    make: Callable[..., list[Any]] = stored,
) -> Iterator[Case]:  # fmt: skip
    shapes = ((64, 50257, 0), (600, 128000, 3), (3, 300_000, 0), (2000, 1500, 0), (512, 8193, 3))
    yield from data.grid(shapes, make, run, tolerances)
    yield from data.grid(((64, 50257, 0), (2000, 1500, 3)), make, capped, tolerances, "capped")
    rest = lambda rows: [data.labels(rows, 131072) if make is stored else data.tailed(131072).mul_(2)]  # noqa: E731
    yield data.beyond(131072, tail(run), tolerances[BF16], rest, partial(last_rows, labels=1))


def logit_stats(data: Data) -> Iterator[Case]:
    run = lambda *args, **options: columns(ncops.logit_stats(*args, scale=0.7, **options))  # noqa: E731
    return _stored_cases(data, run, partial(run, softcap=SOFTCAP), SUMS)


def logit_stats_backward(data: Data) -> Iterator[Case]:
    loss = lambda *args, **options: objective(ncops.logit_stats(*args, scale=0.7, **options))  # noqa: E731
    run, capped = (partial(gradients, f, (0,)) for f in (loss, partial(loss, softcap=SOFTCAP)))
    return _stored_cases(data, run, capped, GRADIENTS)


def _states(data: Data, n: int, d: int, v: int, two: bool, dtype: torch.dtype) -> list[Any]:
    """Of two heads, or of one for two states that are near each other."""
    x, weight, bias, _ = linear(data, n, d, v, dtype)
    if not two:
        return [x, weight, x + data.randn(n, d, dtype=dtype, scale=0.1), None, bias, None]
    other, other_weight = data.randn(n, d + 8, dtype=dtype), data.randn(v, d + 8, dtype=dtype, scale=d**-0.5)
    return [x, weight, other, other_weight, bias, data.randn(v, dtype=dtype, scale=0.5)]


def _state_cases(data: Data, run: Callable[..., Outputs], tolerances: Mapping[torch.dtype, float]) -> Iterator[Case]:
    for name, two in (("one head", False), ("two heads", True)):
        make = lambda data, n, d, v, dtype, two=two: _states(data, n, d, v, two, dtype)  # noqa: E731
        shapes = ((1000, 512, 5000), (300, 250, 1001), (900, 264, 70000), (40, 512, 70000), (5000, 512, 10))
        yield from data.grid(shapes, make, partial(run, two), tolerances, name)


def linear_divergence(data: Data) -> Iterator[Case]:
    run = lambda two, *args: divergences(ncops.linear_divergence(*args, scale=0.7, beta=0.3))  # noqa: E731
    return _state_cases(data, run, SUMS)


def linear_divergence_backward(data: Data) -> Iterator[Case]:
    loss = lambda *args: divergence(ncops.linear_divergence(*args, scale=0.7, beta=0.3))  # noqa: E731
    run = lambda two, *args: gradients(loss, tuple(range(6)) if two else (0, 1, 2, 4), *args)  # noqa: E731
    return _state_cases(data, run, GRADIENTS)


def _two_stored(data: Data, n: int, v: int, pad: int, dtype: torch.dtype) -> list[Any]:
    logits = data.randn(n, v + pad, dtype=dtype, scale=3)
    return [logits[:, :v], (logits + data.randn(n, v + pad, dtype=dtype, scale=0.3))[:, :v]]


def logit_divergence(data: Data) -> Iterator[Case]:
    run = lambda *args, **options: divergences(ncops.logit_divergence(*args, scale=0.7, **options))  # noqa: E731
    return _stored_cases(data, run, partial(run, softcap=SOFTCAP), SUMS, _two_stored)


def logit_divergence_backward(data: Data) -> Iterator[Case]:
    loss = lambda *args, **options: divergence(ncops.logit_divergence(*args, scale=0.7, **options))  # noqa: E731
    run, capped = (partial(gradients, f, (0, 1)) for f in (loss, partial(loss, softcap=SOFTCAP)))
    return _stored_cases(data, run, capped, GRADIENTS, _two_stored)
