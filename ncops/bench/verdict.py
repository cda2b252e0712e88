"""Goals against results: what is met, and by how much the rest is missed."""

from __future__ import annotations

from typing import NamedTuple

from .accuracy import allowed
from .case import EAGER, OURS
from .runner import Result

BOUNDS = {"register": "FMA", "matmul": "matmul", "read": "read", "copy": "copy"}


class Check(NamedTuple):
    """One promise. ``short`` is the factor by which it is missed, 1 or less where it is met."""

    what: str
    goal: str
    short: float


def speed_checks(result: Result) -> list[Check]:
    """The promises of the goal that were measured."""
    goal = result.case.goal
    checks = []
    if goal.limit is not None and result.share is not None:
        checks.append(Check("limit", f"{goal.limit:.0%} limit", goal.limit / result.share.p50))
    checks += [Check(name, f"1x {name}", 1 / result.speedup[name]) for name in goal.beats if name in result.speedup]
    return checks


def memory_checks(result: Result) -> list[Check]:
    goal = result.case.goal.megabytes
    if goal is None or OURS not in result.megabytes:
        return []
    return [Check("memory", f"{goal:g} MB", result.megabytes[OURS] / goal)]


def accuracy_checks(result: Result) -> list[Check]:
    """Every case promises that our error is at most twice the eager one, and a few roundings."""
    if not {OURS, EAGER} <= result.errors.keys():
        return []
    return [Check("error", "2x eager", result.errors[OURS] / allowed(result.errors[EAGER], result.case.dtype))]


def checks(result: Result) -> list[Check]:
    return [*speed_checks(result), *memory_checks(result), *accuracy_checks(result)]


def words(found: list[Check]) -> str:
    """``met``, or ``missed by 1.2x (eager)``, or nothing where nothing was promised."""
    missed = [f"{check.short:.2f}x ({check.what})" for check in found if not check.short <= 1]
    if missed:
        return "missed by " + ", ".join(missed)
    return "met" if found else ""


def goals(found: list[Check]) -> str:
    return ", ".join(check.goal for check in found)
