"""Runs cases and collects their results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
from collections.abc import Callable, Sequence

import torch

from ..backends import native
from . import accuracy, memory, timing
from .case import OURS, Case, torch_threads
from .limits import Limit, limits

# Seconds of repetitions per case; a point of a sweep gets a third. At least three repetitions are made.
QUICK_SECONDS, FULL_SECONDS = 1.5, 6.0


@dataclasses.dataclass
class Result:
    """What one case gave. Ratios are medians over repetitions of a quotient within the repetition."""

    case: Case
    threads: int
    milliseconds: dict[str, timing.Quantiles] = dataclasses.field(default_factory=dict)
    speedup: dict[str, float] = dataclasses.field(default_factory=dict)  # of ours over each other contestant
    limits: dict[str, timing.Quantiles] = dataclasses.field(default_factory=dict)  # flop/s and byte/s beside this case
    share: timing.Quantiles | None = None  # of the time that the limits leave no way around, in the time we take
    bound: str | None = None  # the limit that decides
    megabytes: dict[str, float] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)


def run(
    cases: Sequence[Case], *, everything: bool = False, threads: int | None = None, say: Callable[[str], None] = print,
    progress: bool = True, keep: Callable[[dict[str, object], Result], None] | None = None,
) -> tuple[dict[str, object], list[Result]]:  # fmt: skip
    """Measures the cases in order; returns what the machine is, and the results.

    Args:
        cases: from :mod:`ncops.bench.plan`.
        everything: every contestant and more repetitions; else those that the goals name.
        threads: of torch; None leaves them.
        say: gets a line about a peer that could not run.
        progress: a tqdm bar on standard error, where that is a terminal.
        keep: gets what the machine is and each result as soon as there is one: a long run that ends early keeps them.
    """
    from tqdm.auto import tqdm

    results = []
    with torch_threads(threads):
        facts = machine(cases[0].device if cases else "cpu")
        bar = tqdm(cases, disable=None if progress else True, unit="case", leave=False)
        for case in bar:
            bar.set_description(case.title)
            with torch_threads(case.threads) as count:
                results.append(_measure(case, count, everything, say))
            if keep is not None:
                keep(facts, results[-1])
    return facts, results


def _measure(case: Case, threads: int, everything: bool, say: Callable[[str], None]) -> Result:
    result = Result(case, threads)
    names = case.names(everything)
    if "accuracy" in case.measures:
        result.errors = accuracy.errors(case)
    if "speed" in case.measures:
        budget = (FULL_SECONDS if everything else QUICK_SECONDS) / (1 if case.axis is None else 3)
        _speed(case, names, budget, result, say)
    if "memory" in case.measures:
        for name in names if everything else names[:2]:
            megabytes = memory.measure(case, name)
            if megabytes is not None:
                result.megabytes[name] = megabytes
    return result


def _speed(case: Case, names: list[str], budget: float, result: Result, say: Callable[[str], None]) -> None:
    inputs = case.inputs()
    yardsticks = limits(case.products, case.device)
    runs = {name: functools.partial(case.bench.contestants[name], *inputs) for name in names}
    runs.update({name: limit.run for name, limit in yardsticks.items()})

    def failed(name: str, error: Exception) -> None:
        if name == OURS:
            raise error
        say(f"{case.title}: {name} could not run: {type(error).__name__}: {str(error).splitlines()[0]}")

    wait = torch.cuda.synchronize if case.device != "cpu" else None
    samples = timing.race(runs, budget, failed=failed, wait=wait)
    for name in names:
        if name in samples:
            result.milliseconds[name] = timing.quantiles([1e3 * s for s in samples[name]])
            result.speedup[name] = timing.ratio(samples[name], samples[OURS]).p50
    del result.speedup[OURS]
    if yardsticks:
        _share(case, yardsticks, samples, result)
    if "compile" in names:
        torch.compiler.reset()  # else the next shape counts as one more recompilation, and the ninth is not compiled


def _share(case: Case, yardsticks: dict[str, Limit], samples: dict[str, list[float]], result: Result) -> None:
    needed = {"register": case.flops, "matmul": case.flops, "read": case.bytes, "copy": case.bytes}
    times = {name: [needed[name] / limit.work * s for s in samples[name]] for name, limit in yardsticks.items()}
    result.limits = {
        name: timing.quantiles([limit.work / s for s in samples[name]]) for name, limit in yardsticks.items()
    }
    result.bound = max(times, key=lambda name: timing.quantiles(times[name]).p50)
    result.share = timing.ratio(times[result.bound], samples[OURS])


def machine(device: str = "cpu") -> dict[str, object]:
    """What the figures were measured on."""
    from .._version import __version__

    return {
        "device": device_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "ncops": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "isa": str(native.op("cpu_isa")()) if device == "cpu" and native.op("cpu_isa") is not None else None,
    }


def device_name() -> str:
    """The processor's model, as the system writes it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
