"""The machine's limits: multiply-adds that stay in registers, and reading memory. Without the native part: none."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import _native

READ_ELEMENTS = 1 << 26  # 268 MB of float32: more than any cache
REGISTER_SECONDS = 0.03  # shorter, and a thread that wakes late counts


class Limit(NamedTuple):
    """``run()`` does ``work``: floating-point operations or bytes."""

    work: float
    run: Callable[[], object]


def limits(dtype: torch.dtype) -> dict[str, Limit]:
    """``"register"`` for products of this dtype and ``"read"``, on the threads of the moment."""
    if _native.op("register_products") is None or _native.op("read_memory") is None:
        return {}
    return {"register": _register(dtype, torch.get_num_threads()), "read": _read()}


@functools.cache
def _register(dtype: torch.dtype, _threads: int) -> Limit:
    like, run = torch.ones(1, dtype=dtype), _native.op("register_products")
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
    run = _native.op("read_memory")
    return Limit(float(x.nbytes), lambda: run(x))
