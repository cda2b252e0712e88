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
from ncops.bench import (
    class_moments,
    class_scatter,
    linear_stats,
    logit_stats,
    nearest_class_mean,
    pair_stats,
    projected_sqnorms,
)
from ncops.bench.case import COMPILE, EAGER, OURS, Bench, Case

from . import keys
from .cases import WITH_TF32
from .smoke import append

F32, BF16 = torch.float32, torch.bfloat16
SECONDS, LEAST, MOST = 0.4, 3, 11  # of one contestant, and its repetitions
SHORTEST, CALLS = 0.004, 20  # seconds; shorter calls are timed in groups, of so many at most
CYCLES = 2e9  # a second of the card at its fastest


def case(bench: Bench, dtype: torch.dtype, data: str = "uniform", note: str = "", peers=(EAGER,), **sizes) -> Case:
    full = " backward" if bench.mode == "full" else ""
    shape = "x".join(map(str, sizes.values()))
    kind = "" if data == "uniform" else f" {data}"
    name = f"{bench.op}{full}{note} {str(dtype).removeprefix('torch.')} {shape}{kind}"
    return Case(bench, name, sizes, dtype, data, contestants=(OURS, *peers), device="cuda")


def raw_scatter(x, labels, center):
    return ncops.class_scatter(x)


_LLM = {"N": 8192, "D": 4096, "V": 128256}
_SMALL = {"N": 4096, "D": 2048, "V": 32768}
_MOMENTS = {"N": 1_000_000, "D": 1024}
_SCATTER = {"N": 200_000, "D": 2048, "C": 1000}
_RAW = dataclasses.replace(class_scatter.FORWARD, contestants={OURS: raw_scatter})
_ALL = (EAGER, COMPILE, "matmul")  # compiling takes torch many seconds: a case of the ops that it can fuse has it
# By the name of the op, so that a part can be run.
GROUPS: dict[str, tuple[Case, ...]] = {
    "ceilings": (),
    "linear_stats": (
        case(linear_stats.FORWARD, BF16, peers=_ALL, **_LLM),
        case(linear_stats.FORWARD, BF16, peers=("matmul",), N=8192, D=576, V=49152),
        case(linear_stats.FORWARD, BF16, peers=("matmul",), N=32, D=4096, V=128256),
        case(linear_stats.FORWARD, F32, peers=("matmul",), **_SMALL),
        case(linear_stats.FORWARD, F32, peers=("matmul", EAGER), N=1_000_000, D=512, V=10),
        case(linear_stats.FORWARD, F32, peers=("matmul",), N=1_000_000, D=512, V=100),
    ),
    "linear_stats_backward": (
        case(linear_stats.FULL, BF16, peers=(EAGER, COMPILE, "liger", "cut_cross_entropy"), **_LLM),
        case(linear_stats.FULL, BF16, peers=(EAGER,), N=8192, D=576, V=49152),
        case(linear_stats.FULL, F32, **_SMALL),
    ),
    "logit_stats": (
        case(logit_stats.FORWARD, BF16, peers=(EAGER, COMPILE, "cross_entropy"), N=8192, V=131072),
        case(logit_stats.FORWARD, F32, peers=("cross_entropy",), N=8192, V=50257),
    ),
    "class_moments": (
        case(class_moments.FORWARD, F32, peers=(EAGER, COMPILE, "index_add_"), **_MOMENTS, C=1000),
        case(class_moments.FORWARD, BF16, peers=("index_add_",), **_MOMENTS, C=1000),
        case(class_moments.FORWARD, BF16, "zipf", peers=("index_add_",), **_MOMENTS, C=128256),
    ),
    "class_scatter": (
        case(class_scatter.FORWARD, F32, peers=(EAGER, "matmul"), **_SCATTER),
        case(class_scatter.FORWARD, BF16, peers=("matmul",), **_SCATTER),
        case(_RAW, BF16, note=" raw", peers=(), **_SCATTER),
    ),
    "pair_stats": (
        case(pair_stats.FORWARD, F32, "cosine", peers=(EAGER, "matmul"), K=32768, D=1024),
        case(pair_stats.FORWARD, BF16, "cosine", peers=("matmul",), K=32768, D=1024),
        case(pair_stats.FORWARD, F32, "log_distance", K=32768, D=1024),
    ),
    "nearest_class_mean": (
        case(nearest_class_mean.FORWARD, F32, peers=(EAGER, "matmul"), N=100_000, D=512, C=1000),
        case(nearest_class_mean.FORWARD, F32, peers=("matmul",), N=20_000, D=512, C=128256),
    ),
    "projected_sqnorms": (
        case(projected_sqnorms.FORWARD, F32, peers=(EAGER, "matmul"), N=200_000, D=512, R=512, C=1000),
    ),
}


@contextlib.contextmanager
def forced(backend: str, tf32: bool = False) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        with ncops.use_backend(backend):
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
        if op in CUDA_OPS and one.bench.mode == "forward":
            found["cuda"] = function, forced("cuda")
        if op in WITH_TF32 and one.dtype == F32:
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


def inputs(one: Case, device: str) -> tuple:
    with torch.device(device):
        return one.bench.make(one.sizes, one.dtype, one.data, torch.Generator(device).manual_seed(0))


def ceilings(timer: Callable, out: Path) -> None:
    """What the card reaches: products of 8192 x 8192, and copying 2 GB."""
    side = 8192
    for name, dtype in (("bfloat16", BF16), ("float32", F32), ("tf32", F32)):
        a, b = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
        with forced("reference", tf32=name == "tf32"):
            row = timer(lambda: a @ b)  # noqa: B023
        append(out, {"case": "ceiling", "who": f"mm {name}", "flops": 2 * side**3, "bytes": 0} | row)
    source = torch.empty(1 << 29, device="cuda")
    target = torch.empty_like(source)
    row = timer(lambda: target.copy_(source))
    append(out, {"case": "ceiling", "who": "copy", "flops": 0, "bytes": 2 * source.nbytes} | row)


def measure(one: Case, timer: Callable, out: Path, ours_only: bool = False, device: str = "cuda") -> None:
    """A row per contestant. What does not run is a row too; an error of the device ends the process."""
    args = inputs(one, device)
    fixed = {"case": one.name, "dtype": str(one.dtype).removeprefix("torch."), "flops": one.flops, "bytes": one.bytes}
    for who, (function, context) in contestants(one).items():
        if ours_only and who not in ("triton", "cuda"):
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
