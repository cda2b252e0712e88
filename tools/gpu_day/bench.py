"""Times of every op, of what a user would pick instead, and of the card's own ceilings; a line of JSON each.

``python -m tools.gpu_day.bench [GROUP...] --out FILE``. The cases and their peers are those of ``ncops.bench``, with
data made on the GPU and medians of CUDA events; here every backend is a contestant.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import ncops
from ncops.backends import CUDA_OPS
from ncops.bench import limits, roofline
from ncops.bench.case import OURS, Case
from ncops.bench.gpu import CASES
from ncops.triton_kernels._candidates import candidate

from . import keys
from .cases import WITH_TF32
from .smoke import append

SECONDS, LEAST, MOST = 0.4, 3, 11  # of one contestant, and its repetitions
SHORTEST, CALLS = 0.004, 20  # seconds; shorter calls are timed in groups, of so many at most
CYCLES = 2e9  # a second of the card at its fastest


def named(one: Case) -> Case:
    """The case by the name that rows have: op, dtype, sizes, kind of data."""
    full = " backward" if one.bench.mode == "full" else ""
    shape = "x".join(map(str, one.sizes.values()))
    kind = "" if one.data == "uniform" else f" {one.data}"
    return dataclasses.replace(one, name=f"{one.bench.op}{full} {one.dtype_name} {shape}{kind}")


def group(one: Case) -> str:
    """The name of the op, so that a part can be run."""
    return one.bench.op + ("_backward" if one.bench.mode == "full" else "")


GROUPS: dict[str, list[Case]] = {"ceilings": []}
for one in map(named, CASES):
    GROUPS.setdefault(group(one), []).append(one)


@contextlib.contextmanager
def forced(backend: str, tf32: bool = False, chosen: str = "") -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        with ncops.use_backend(backend), candidate(chosen) if chosen else contextlib.nullcontext():
            yield
    finally:
        matmul.fp32_precision = before


def contestants(one: Case) -> dict[str, tuple[Callable, contextlib.AbstractContextManager]]:
    """By name: what to run, and inside of what. Our op once per backend that has it."""
    found = {}
    op = one.bench.op
    for name in one.names(everything=False):
        function = one.bench.contestants[name]
        if name != OURS:
            found[name] = function, contextlib.nullcontext()
            continue
        found["triton"] = function, forced("triton")
        if op == "linear_stats" and one.bench.mode == "forward" and one.dtype.itemsize == 2:
            found["triton descriptors"] = function, forced("triton", chosen="descriptors")
        if op == "class_scatter" and one.bench.mode == "forward" and (one.dtype.itemsize == 4 or one.data != "raw"):
            found["triton split_halves"] = function, forced("triton", chosen="split_halves")
        if op in CUDA_OPS and one.bench.mode == "forward":
            found["cuda"] = function, forced("cuda")
        if op in WITH_TF32 and one.dtype == torch.float32:
            found["triton tf32"] = function, forced("triton", tf32=True)
    return found


def clock(run: Callable[[], object]) -> dict[str, float]:
    """``ms`` of the card, the median; ``host_ms`` until a call returns; ``mb`` that it needs at its peak.

    The card is kept busy until the calls to be timed are queued: else its clock would run while Python launches.
    """
    run()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begin = torch.cuda.memory_allocated(), time.perf_counter()
    run()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    calls = max(2, min(CALLS, int(SHORTEST / (time.perf_counter() - begin))))
    grown = (torch.cuda.max_memory_allocated() - before) / 1e6
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < LEAST or (len(times) < MOST and time.perf_counter() - begin < SECONDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(min(0.05, 1.5 * calls * host + 2e-4) * CYCLES))
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / calls)
    return {"ms": statistics.median(times), "host_ms": 1e3 * host, "mb": grown}


def once(run: Callable[[], object]) -> dict[str, float]:
    """For a profiler, which has a clock of its own."""
    run()
    torch.cuda.synchronize()
    return dict.fromkeys(("ms", "host_ms", "mb"), 0.0)


def ceilings(timer: Callable, out: Path) -> None:
    """What the card reaches: products of 8192 x 8192, and copying 2 GB."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("tf32", torch.float32)):
        limit = limits.matmul(dtype, "cuda")
        with forced("reference", tf32=name == "tf32"):
            row = timer(limit.run)
        append(out, {"case": "ceiling", "who": f"mm {name}", "flops": limit.work, "bytes": 0} | row)
    limit = limits.copy("cuda", 1 << 29)
    append(out, {"case": "ceiling", "who": "copy", "flops": 0, "bytes": limit.work} | timer(limit.run))
    limits.matmul.cache_clear()
    limits.copy.cache_clear()


def measure(one: Case, timer: Callable, out: Path, ours_only: bool) -> None:
    """A row per contestant. What does not run is a row too; an error of the device ends the process."""
    args = one.inputs("cuda")
    fixed = {"case": one.name, "dtype": one.dtype_name, "flops": one.flops, "bytes": one.bytes}
    fixed["paper_ms"] = 1e3 * max(roofline.estimate(one))
    for who, (function, context) in contestants(one).items():
        if ours_only and who not in ("triton", "triton descriptors", "triton split_halves", "cuda"):
            continue
        row = fixed | {"who": who}
        try:
            with context:
                row |= timer(lambda: function(*args))  # noqa: B023
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if "CUDA error" in str(error):
                append(out, row)
                raise
        append(out, row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=list(GROUPS))
    parser.add_argument("--once", action="store_true", help="our kernels on each group's first case, unclocked")
    parser.add_argument("--out", type=Path, default=Path("/dev/null"))
    options = parser.parse_args()
    timer = once if options.once else clock
    keys.settle()
    wanted = [name for name in GROUPS if name.startswith(tuple(options.groups))]
    if options.once:  # the backward's many launches last: a profiler counts them
        wanted.sort(key=lambda name: "backward" in name)
    for name in wanted:
        append(options.out, {"group": name})
        if name == "ceilings" and not options.once:
            ceilings(timer, options.out)
        for one in GROUPS[name][: 1 if options.once else None]:
            measure(one, timer, options.out, ours_only=options.once)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
