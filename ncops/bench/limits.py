"""The machine's limits beside which every figure stands: multiply-adds and memory. Without the native part: none.

On a CPU: multiply-adds that stay in registers, and reading memory, by kernels of our own. On a GPU: the rate of torch's
own large matrix product, and of copying within its memory.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..backends import native

READ_ELEMENTS = 1 << 26  # 268 MB of float32: more than any cache
REGISTER_SECONDS = 0.03  # shorter, and a thread that wakes late counts
MATRIX = 8192  # 1.1 TFLOP: milliseconds on any GPU


class Limit(NamedTuple):
    """``run()`` does ``work``: floating-point operations or bytes."""

    work: float
    run: Callable[[], object]


def limits(dtype: torch.dtype, device: str = "cpu") -> dict[str, Limit]:
    """By name: ``"register"`` or ``"matmul"`` for products of this dtype, ``"read"`` or ``"copy"`` for memory."""
    if device != "cpu":
        return {"matmul": matmul(dtype, device), "copy": copy(device)}
    if native.op("register_products") is None or native.op("read_memory") is None:
        return {}
    return {"register": _register(dtype, torch.get_num_threads()), "read": _read()}


@functools.cache
def matmul(dtype: torch.dtype, device: str) -> Limit:
    """A square product as torch computes it: what a GPU reaches, close to its peak."""
    size = MATRIX // 2 if dtype == torch.float64 else MATRIX
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return Limit(2.0 * size**3, lambda: torch.mm(a, b, out=out))


@functools.cache
def copy(device: str, elements: int | None = None) -> Limit:
    """Bytes read and written; of READ_ELEMENTS float32 unless told otherwise."""
    source = torch.ones(elements or READ_ELEMENTS, device=device)
    target = torch.empty_like(source)
    return Limit(2.0 * source.nbytes, lambda: target.copy_(source))


@functools.cache
def _register(dtype: torch.dtype, _threads: int) -> Limit:
    like, run = torch.ones(1, dtype=dtype), native.op("register_products")
    steps, best = 100_000, float("inf")
    for _ in range(8):  # the first calls find threads asleep; a slow one here would make the yardstick too short
        begin = time.perf_counter()
        run(like, steps)
        best = min(best, time.perf_counter() - begin)
    steps = max(steps, int(steps * REGISTER_SECONDS / best))
    return Limit(float(run(like, steps)), lambda: run(like, steps))


@functools.cache
def _read() -> Limit:
    x = torch.ones(1, READ_ELEMENTS)  # ones: pages of zeros need not exist
    run = native.op("read_memory")
    return Limit(float(x.nbytes), lambda: run(x))
