"""The steps of the day, and the limits that they run under: none can stop the next, or take what the next needs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ncu, table, tree

PYTHON = sys.executable
GRACE = 8  # seconds that a process has to end by itself when its time is up
ALL_AT_ONCE = 16


class Day:
    """What the steps share: where results go, how much time is left, and what part was asked for."""

    def __init__(self, out: Path, total: float, only: str = ""):
        self.out, self.only, self.end = out, only, time.monotonic() + total
        self.failures: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "log.txt"):
            (out / name).unlink(missing_ok=True)

    def left(self) -> float:
        return self.end - time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)
        with open(self.out / "summary.txt", "a") as file:
            file.write(line + "\n")

    def fail(self, line: str) -> None:
        self.failures.append(line)
        self.say(f"FAILED {line}")

    def step(self, name: str, function: Callable[[Day, float], None], most: float, result: str) -> None:
        """Runs a step for at most ``most`` seconds, and never more than what is left; ``result`` is its file."""
        (self.out / result).unlink(missing_ok=True)
        limit, begin = min(most, self.left() - GRACE), time.monotonic()
        if limit < GRACE:
            self.fail(f"{name}: no time left")
            return
        try:
            function(self, limit)
        except Exception as error:
            self.fail(f"{name}: {type(error).__name__}: {error}")
        self.say(f"{name}: {time.monotonic() - begin:.0f} s of {limit:.0f}, {self.left():.0f} s left")


def run(command: list, limit: float, log: Path | None = None, **variables: str) -> int | str:
    """The exit status of a command, or what became of it in words; its output is appended to ``log``."""
    with open(log or os.devnull, "a") as output:
        try:
            process = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env=tree.environment() | variables, cwd=tree.ROOT,
            )  # fmt: skip
        except OSError as error:
            return f"did not start: {error.strerror}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(limit)
        for kind in (signal.SIGINT, signal.SIGKILL):  # pytest tells what it has when it is interrupted
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, kind)
                process.wait(GRACE)
        return f"over its limit of {limit:.0f} s"


def module(name: str, *arguments) -> list:
    return [PYTHON, "-m", f"{__package__}.{name}", *arguments]


def environment(day: Day, limit: float) -> None:
    """What machine this is, and what of the library runs here."""
    log = day.out / "env.txt"
    facts = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    run(["nvidia-smi", f"--query-gpu={facts}", "--format=csv"], limit / 2, log)
    code = (
        "import torch, triton, sys; from ncops.cli import info; f = info.collect(torch_env=False);"
        "print(sys.version, torch.__version__, triton.__version__); print(f['native']);"
        "print({op: (on['cuda']['runs'], on['cuda']['why_not']) for op, on in f['ops'].items()});"
        "print(torch.cuda.get_device_properties(0))"
    )
    status = run([PYTHON, "-c", code], limit, log)
    if status != 0:
        day.fail(f"env: {status}, see env.txt")


def smoke(day: Day, limit: float) -> None:
    """Every job in a process of its own; one that ends badly, or finds nothing to check, is a row too."""
    from .cases import jobs
    from .smoke import append

    out, log, end = day.out / "smoke.jsonl", day.out / "log.txt", time.monotonic() + limit

    def job(work: tuple[str, str, bool]) -> None:
        op, backend, tf32 = work
        command = module("smoke", op, backend, "--out", out, *["--tf32"] * tf32)
        status = run(command, max(1, end - time.monotonic()), log)
        who = backend + (" tf32" if tf32 else "")
        rows = [row for row in table.read(out) if (row["op"], row["backend"]) == (op, who)]
        if status not in (0, 1) or not rows:
            why = f"the process ended with {status} after {len(rows)} cases" if rows else f"checked nothing: {status}"
            append(out, {"op": op, "backend": who, "case": "all", "ok": False, "why": why})

    with ThreadPoolExecutor(ALL_AT_ONCE) as pool:
        list(pool.map(job, jobs(day.only)))
    rows = table.read(out)
    wrong = [row for row in rows if not row["ok"]]
    day.say(table.smoke(rows))
    if wrong or not rows:
        day.fail(f"smoke: {len(wrong)} of {len(rows)} wrong")


def bench(day: Day, limit: float) -> None:
    """Groups of cases one after another; a process that dies takes its group along, and the next has the rest."""
    from .bench import GROUPS
    from .smoke import append

    out, end = day.out / "bench.jsonl", time.monotonic() + limit
    groups = [name for name in GROUPS if name == "ceilings" or name.startswith(day.only)]
    while groups:
        status = run(module("bench", *groups, "--out", out), max(1, end - time.monotonic()), day.out / "log.txt")
        begun = [row["group"] for row in table.read(out) if "group" in row]
        if status == 0:
            break
        dead = begun[-1] if begun and begun[-1] in groups else groups[0]
        append(out, {"case": dead, "who": "all", "error": f"the process ended with {status}"})
        day.fail(f"bench: {dead}: {status}")
        groups = groups[groups.index(dead) + 1 :] if end > time.monotonic() else []


def pytest(day: Day, limit: float) -> None:
    log = day.out / "pytest.txt"
    command = [PYTHON, "-m", "pytest", "tests/gpu", "-q", "-n", 16, "--dist", "worksteal", "--maxfail=60", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", f"{__package__}.keys"]
    status = run([*command, *(["-k", day.only] if day.only else [])], limit, log)
    day.say(f"pytest: {(log.read_text().splitlines() or [''])[-1]}")
    if status != 0:
        day.fail(f"pytest: {status}, see pytest.txt")


def sanitizer(day: Day, limit: float) -> None:
    """Bad accesses and races that values do not show, in the compiled kernels."""
    tools = ("memcheck", "racecheck")

    def check(tool: str) -> int | str:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", 9, *module("smoke", "small", "cuda")]
        # Without torch's pool an access beyond a tensor is one beyond an allocation.
        return run(command, limit, day.out / f"{tool}.part", PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    with ThreadPoolExecutor() as pool:
        ended = dict(zip(tools, pool.map(check, tools), strict=True))
    with open(day.out / "sanitizer.txt", "w") as file:
        for tool, status in ended.items():
            part = day.out / f"{tool}.part"
            file.write(f"==== {tool}: {status}\n{part.read_text()}\n")
            part.unlink()
            if status != 0:
                day.fail(f"sanitizer: {tool}: {status}, see sanitizer.txt")


def profile(day: Day, limit: float) -> None:
    """Where the time of the kernels goes."""
    part = day.out / "ncu.part"
    status = run([*ncu.COMMAND, *module("bench", "--once", *([day.only] if day.only else []))], limit, part)
    (day.out / "ncu.txt").write_text(ncu.table(part.read_text()) + f"\n{status}\n")
    part.unlink()
    if status != 0:
        day.fail(f"ncu: {status}, see ncu.txt")


# In the order of their worth, each with the seconds it may take, the day's total standing above them, and its result.
STEPS: dict[str, tuple[Callable[[Day, float], None], float, str]] = {
    "env": (environment, 40, "env.txt"), "smoke": (smoke, 100, "smoke.jsonl"), "bench": (bench, 200, "bench.jsonl"),
    "pytest": (pytest, 110, "pytest.txt"), "sanitizer": (sanitizer, 60, "sanitizer.txt"),
    "ncu": (profile, 80, "ncu.txt"),
}  # fmt: skip
