"""Contestants timed side by side: each repetition runs all of them, every other one in reverse order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SHORTEST = 0.002  # seconds; shorter calls are timed in groups


class Quantiles(NamedTuple):
    """Median, with the 20 % and 80 % quantiles beside it."""

    p50: float
    p20: float
    p80: float


def quantiles(values: Sequence[float]) -> Quantiles:
    return Quantiles(*np.quantile(values, (0.5, 0.2, 0.8)).tolist())


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Quantiles:
    """Quantiles of the quotient within each repetition: what slows the machine for a while cancels."""
    return quantiles([a / b for a, b in zip(numerator, denominator, strict=True)])


def race(
    runs: Mapping[str, Callable[[], object]], budget: float, least: int = 3, most: int = 21,
    failed: Callable[[str, Exception], None] | None = None, wait: Callable[[], object] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds per call and repetition of every contestant, warm.

    Repetitions fill ``budget`` seconds, at least ``least`` and at most ``most`` of them. A contestant that raises on
    its first call is reported to ``failed`` and left out (without ``failed`` the error is raised). ``wait`` returns
    when everything that was started has run: a GPU is waited for before and after each group of calls.
    """
    wait = wait or (lambda: None)
    samples: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            run()  # compiles, and brings pages and caches in
            wait()
        except Exception as error:
            if failed is None:
                raise
            failed(name, error)
            continue
        samples[name] = []
    group = dict.fromkeys(samples, 1)
    order = list(samples)
    begin = time.perf_counter()
    for repetition in range(most):
        if repetition >= least and time.perf_counter() - begin > budget:
            break
        for name in order:
            seconds = _seconds(runs[name], group[name], wait)
            samples[name].append(seconds)
            group[name] = max(1, math.ceil(SHORTEST / seconds))
        order.reverse()
    return samples


def _seconds(run: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return max(time.perf_counter() - begin, 1e-9) / calls
