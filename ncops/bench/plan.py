"""Which cases a run measures: the goals' (quick), and around them the sweeps (full)."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence

import torch

from . import OPS
from .case import COMPILE, EAGER, OURS, Bench, Case, name_of

# Small enough for the quick run; four points on each axis, far enough apart to be told from noise.
GROWTH = {"N": (256, 512, 1024, 2048), "V": (4096, 8192, 16384, 32768)}
GROWTH_BASE = {"N": 512, "D": 256, "V": 8192}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def benches(op: str) -> tuple[Bench, ...]:
    """The benches of one op."""
    return importlib.import_module(f".{op}", __package__).BENCHES


def bench(op: str, mode: str) -> Bench:
    """One of them."""
    return next(b for b in benches(op) if b.mode == mode)


def quick(ops: Sequence[str] = OPS) -> list[Case]:
    """Every case with a goal, and growth in N and V."""
    cases = _promised(ops)
    if "linear_stats" in ops:
        base = Case(bench("linear_stats", "forward"), "growth", GROWTH_BASE, contestants=(OURS, EAGER))
        cases += _points(base, GROWTH)
    return cases


def cuda(ops: Sequence[str] = OPS, everything: bool = False, device: str = "cuda") -> list[Case]:
    """The cases of a GPU: sizes that fill one. Nothing is promised there yet: the figures have to be measured first."""
    from .gpu import CASES

    return [
        dataclasses.replace(case, device=device, contestants=tuple(case.bench.contestants) if everything else None)
        for case in CASES
        if case.bench.op in ops
    ]


def full(ops: Sequence[str] = OPS) -> list[Case]:
    """The goals, then sweeps over every size, dtype, label distribution and number of threads."""
    cases = _promised(ops)
    for chosen in (chosen for op in ops for chosen in benches(op)):
        base = Case(chosen, chosen.mode, chosen.base, contestants=(OURS, EAGER, COMPILE, chosen.other))
        cases += _points(base, chosen.axes)
        cases += [_variant(base, name_of(dtype), dtype=dtype) for dtype in DTYPES]
        cases += [_variant(base, data, data=data) for data in chosen.data[1:]]
        cases.append(_variant(base, "one thread", threads=1, measures=("speed",)))
    return cases


def _promised(ops: Sequence[str]) -> list[Case]:
    return [case for op in ops for case in importlib.import_module(f".{op}", __package__).CASES]


def _points(base: Case, axes: Mapping[str, Sequence[int]]) -> list[Case]:
    """The base with one size after the other at every value of its axis."""
    return [
        _variant(base.with_sizes(**{axis: value}), f"{axis} {value}", axis=axis, measures=("speed", "memory"))
        for axis, values in axes.items()
        for value in values
    ]


def _variant(base: Case, name: str, **changes) -> Case:
    return dataclasses.replace(base, name=f"{base.name} {name}", **changes)
