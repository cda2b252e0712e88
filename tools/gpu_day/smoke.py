"""One op on one backend against float64 on the same device, in a process of its own; a line of JSON per case.

``python -m tools.gpu_day.smoke OP BACKEND --out FILE``. Exits with 3 where the device is past use: the cases that are
left would fail of the first one's error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from torch import Tensor

import ncops
from ncops import backends

from . import cases, keys
from .cases.data import Case, Data, Outputs

# Shares of rows, where there are 32 or more, whose best or whose rank may be another than float64's. Among 300,000
# classes some are as near to the target as float32 rounds, so that a rank may be off by a few.
NEAR_TIES = {"index": 0.02, "argmax": 0.02, "second_index": 0.02, "row_argmax": 0.02, "target_rank": 0.25}
OFF_BY = 3


def wide(args: list) -> list:
    return [a.detach().double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def differences(case: Case, ours: Outputs, truth: Outputs, tf32: bool) -> tuple[float, list[str]]:
    """The largest relative error of a float result, and what is wrong in words."""
    worst, wrong = 0.0, []
    for name, true in truth.items():
        mine, true = ours[name].detach(), true.detach()
        if mine.shape != true.shape:
            wrong.append(f"{name}: shape {tuple(mine.shape)}, not {tuple(true.shape)}")
        elif name in NEAR_TIES:
            apart, most = (mine != true).sum().item(), (mine - true).abs().max().item()
            near = name == "target_rank" and most <= OFF_BY
            allowed = NEAR_TIES[name] * len(true) if len(true) >= 32 else len(true) if near else 0
            if not tf32 and (apart > allowed or (name == "target_rank" and not near)):
                wrong.append(f"{name}: {apart} of {len(true)} differ, by {most} at most")
        elif not true.is_floating_point():
            if not torch.equal(mine, true):
                wrong.append(f"{name}: not equal")
        elif unlike := (mine.isfinite() != true.isfinite()).sum().item():
            wrong.append(f"{name}: {unlike} of {true.numel()} not finite alike")
        else:
            finite = true.isfinite()
            error = ((mine.double() - true)[finite].norm() / true[finite].norm().clamp(min=1e-300)).item()
            worst = max(worst, error)
            if not error <= case.tolerance:
                wrong.append(f"{name}: {error:.1e}")
    return worst, wrong


def check(case: Case, backend: str, tf32: bool = False) -> dict:
    """The row of one case: ``worst`` relative error, and ``why`` it is not ``ok``; ``fatal`` where nothing runs on."""
    with alone() if case.huge else contextlib.nullcontext():
        row = _row(case, backend, tf32)
        if torch.cuda.is_available() and not row["fatal"]:
            torch.cuda.empty_cache()  # beside the other processes'
    return row


def _row(case: Case, backend: str, tf32: bool) -> dict:
    row = {"case": case.name, "dtype": str(case.dtype).removeprefix("torch."), "ok": False, "worst": math.nan}
    row |= {"why": "", "fatal": False}
    try:
        args = case.make()
        with ncops.use_backend(backend):
            ours = case.run(*args)
        if args[0].is_cuda:
            torch.cuda.synchronize()
        args = wide(case.truth(args))
        with ncops.use_backend("reference"):
            truth = case.run(*args)
        row["worst"], wrong = differences(case, ours, truth, tf32)
        row |= {"ok": not wrong, "why": "; ".join(wrong)}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        row["why"] = f"{type(error).__name__}: {first} ({Path(place.filename).name}:{place.lineno})"
        row["fatal"] = any(words in str(error) for words in ("CUDA error", "illegal", "device-side"))
    return row


@contextlib.contextmanager
def alone():
    """Of all processes one at a time: their gigabytes together would not fit."""
    with open(Path(tempfile.gettempdir()) / "ncops-gpu-day.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(op: str, backend: str, data: Data, tf32: bool, out: Path) -> int:
    """Appends the rows to ``out`` as they come; returns the exit status."""
    head = {"op": op, "backend": backend + (" tf32" if tf32 else "")}
    reason = backends.why_not(backend, op, data.device)
    if reason is not None:
        append(out, head | {"case": "all", "ok": False, "why": f"does not run: {reason}"})
        return 1
    if tf32:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    status = 0
    for case in cases.cases(op, data, tf32):
        row = head | check(case, backend, tf32)
        fatal = row.pop("fatal")
        append(out, row)
        if fatal:
            return 3
        status = status if row["ok"] else 1
    return status


def append(path: Path, row: dict) -> None:
    with open(path, "a") as file:  # many processes append: one write each
        file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op", help="or 'small': every compiled kernel once, for a sanitizer, compared with nothing")
    parser.add_argument("backend")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("/dev/stdout"))
    options = parser.parse_args()
    data = Data(options.device, options.reduced)
    keys.settle()
    if options.op != "small":
        return run(options.op, options.backend, data, options.tf32, options.out)
    with ncops.use_backend(options.backend):
        for case in cases.small(data):
            case.run(*case.make())
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
