"""The results in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..report.console import emit, show_table
from . import verdict
from .case import COMPILE, EAGER, OURS, name_of
from .runner import Result

FLOP_LIMITS = {"register": "multiply-adds", "matmul": "matmul"}
SPEED = ("case", "ours", "rate", "limit share", "vs eager", "vs compile", "vs other", "goal", "verdict")
QUALITY = ("case", "memory", "eager", "goal", "error", "eager", "goal", "verdict")


def show(machine: Mapping[str, object], results: Sequence[Result]) -> None:
    """Prints the machine, its limits and the tables: speed, then memory and accuracy. Sweeps are left to the plots."""
    how, on = f"{machine['threads']} threads · ncops {machine['ncops']} ({machine['isa']})", f" with {machine['isa']}"
    if machine["isa"] is None:
        how, on = f"ncops {machine['ncops']}", ""
    emit(f"{machine['device']} · {how} · torch {machine['torch']}")
    limits = limit_rows(results)
    if limits:
        emit("limits: " + ", ".join(f"{what} {value}" for what, value in limits))
    cases = [r for r in results if r.case.axis is None]
    if any(r.milliseconds for r in cases):
        emit()
        columns, lines = SPEED, speed_rows(cases)
        if machine.get("isa") or not any(line[2] for line in lines):  # on a CPU the share of the limit says it all
            columns, lines = columns[:2] + columns[3:], [line[:2] + line[3:] for line in lines]
        title = f"Speed{on} (goals: shares of this machine's limits; x: times faster than a contestant)"
        show_table(title, columns, lines, left=(0, len(columns) - 2, len(columns) - 1))
    if any(r.megabytes or r.errors for r in cases):
        emit()
        title = "Memory beyond inputs and results, and largest error against float64"
        show_table(title, QUALITY, quality_rows(cases), left=(0, 3, 6, 7))


def limit_rows(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The best median of each limit: (what, value), on the run's own number of threads."""
    best: dict[str, float] = {}
    threads = max((r.threads for r in results), default=0)
    for r in results:
        for name, value in r.limits.items() if r.threads == threads else ():
            what = f"{name_of(r.case.products)} {FLOP_LIMITS[name]}" if name in FLOP_LIMITS else name
            best[what] = max(best.get(what, 0.0), value.p50)
    return [
        (what, f"{value / 1e9:.0f} {'GB/s' if what in ('read', 'copy') else 'GFLOP/s'}")
        for what, value in sorted(best.items())
    ]


def speed_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    rows = []
    for r in results:
        if not r.milliseconds:
            continue
        found = verdict.speed_checks(r)
        share = "" if r.share is None else f"{r.share.p50:.0%} {verdict.BOUNDS[r.bound]}"
        other = _times(r, r.case.versus)
        rows.append((
            _case(r), milliseconds(r.milliseconds[OURS].p50), _rate(r), share, _times(r, EAGER), _times(r, COMPILE),
            other and f"{other} {r.case.versus}", verdict.goals(found), verdict.words(found),
        ))  # fmt: skip
    return rows


def quality_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    rows = []
    for r in results:
        memory, accuracy = verdict.memory_checks(r), verdict.accuracy_checks(r)
        if r.megabytes or r.errors:
            rows.append((
                _case(r), _megabytes(r, OURS), _megabytes(r, EAGER), verdict.goals(memory),
                _error(r, OURS), _error(r, EAGER), verdict.goals(accuracy), verdict.words(memory + accuracy),
            ))  # fmt: skip
    return rows


def _case(r: Result) -> str:
    return f"{r.case.title}, {r.case.shape}"


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _rate(r: Result) -> str:
    """What we reach of what decides: useful operations or bytes over our time."""
    if r.bound is None:
        return ""
    seconds = r.milliseconds[OURS].p50 / 1e3
    if r.bound in FLOP_LIMITS:
        return f"{r.case.flops / seconds / 1e9:.0f} GFLOP/s"
    return f"{r.case.bytes / seconds / 1e9:.0f} GB/s"


def _times(result: Result, name: str) -> str:
    value = result.speedup.get(name)
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _megabytes(result: Result, name: str) -> str:
    return f"{result.megabytes[name]:.0f} MB" if name in result.megabytes else ""


def _error(result: Result, name: str) -> str:
    return f"{result.errors[name]:.1e}" if name in result.errors else ""
