"""The benchmark's cases under pytest-benchmark, to compare commits: not part of ``make test``.

``python -m pytest bench --benchmark-save=before``; after a change
``python -m pytest bench --benchmark-compare=0001 --benchmark-compare-fail=median:10%``.
Absolute times: only for one machine that has nothing else to do. ``limit_seconds`` says how fast it was.
"""

from __future__ import annotations

import pytest

from ncops.bench import plan, timing
from ncops.bench.case import OURS
from ncops.bench.limits import limits

CASES = [case for case in plan.quick() if "speed" in case.measures and case.axis is None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_speed(benchmark, case):
    inputs = case.inputs()
    run = case.bench.contestants[OURS]
    yardsticks = timing.race({name: limit.run for name, limit in limits(case.dtype).items()}, budget=0.2)
    benchmark.group = case.bench.op
    benchmark.extra_info.update(
        sizes=dict(case.sizes), dtype=str(case.dtype), limit_seconds={n: min(s) for n, s in yardsticks.items()}
    )
    benchmark.pedantic(run, inputs, rounds=7, warmup_rounds=1)
