"""A run beside an earlier one's CSV file: how times and shares of the limit have moved."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CommandError
from ..report.console import emit, show_table
from .case import OURS
from .records import COLUMNS, NAME, SHARE, rows
from .runner import Result
from .table import milliseconds
from .timing import Quantiles

Row = Mapping[str, Any]
SHOWN = ("case", "then", "now", "faster", "share then", "share now", "verdict")
COMPARED = ((OURS, "speed"), (OURS, SHARE))  # contestant and metric
WHERE = {"gpu_name": "machine", "cpu_isa": "instruction set", "threads": "threads"}  # of others, times say nothing
WITH = {"ncops_version": "ncops", "torch_version": "torch"}


class Change(NamedTuple):
    """One case then and now; None where it was not measured, or times are of two machines."""

    case: str
    milliseconds: tuple[Quantiles, Quantiles] | None
    share: tuple[Quantiles, Quantiles] | None

    @property
    def faster(self) -> float | None:
        """Times faster than before."""
        return None if self.milliseconds is None else self.milliseconds[0].p50 / self.milliseconds[1].p50

    @property
    def verdict(self) -> str:
        """``slower`` or ``faster`` where time and share say so, each beyond the spread of both runs; else nothing.

        Time alone may be the machine's, share alone a limit's that was disturbed.
        """
        costs = [self.milliseconds, self.share and self.share[::-1]]  # of both, more is worse now
        found = {_beyond(*pair) for pair in costs if pair}
        return found.pop() if len(found) == 1 else ""


class Comparison(NamedTuple):
    """What changed since the file was written; ``notes``: how the runs differ, a line each."""

    changes: list[Change]
    notes: list[str]

    @property
    def slower(self) -> list[Change]:
        return [change for change in self.changes if change.verdict == "slower"]


def read(path: Path) -> list[dict[str, Any]]:
    """Times and shares of ours in a file that ``ncops bench --output`` has written, or in the folder that holds it.

    Raises:
        CommandError: it is another kind of file, or holds none. OSError: it cannot be read.
    """
    path = path / NAME if path.is_dir() else path
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS[:-2] if name not in (reader.fieldnames or ())]  # which were not always
            if missing:
                raise ValueError(f"it has no column {missing[0]}")
            found = [_parsed(row) for row in reader if _compared(row)]
    except (ValueError, TypeError, csv.Error) as error:  # UnicodeDecodeError, JSONDecodeError
        raise CommandError(f"--compare: {path}: expected {NAME} of ncops bench --output: {error}") from None
    if not found:
        raise CommandError(f"--compare: {path}: holds no times of {OURS}")
    return found


def _parsed(row: Row) -> dict[str, Any]:
    """Its numbers as Quantiles, its sizes as a dictionary, and its threads beside them."""
    config = json.loads(row["extra_benchmark_config_str"])
    y = Quantiles(*(float(row[name]) for name in ("y_value_50", "y_value_20", "y_value_80")))
    if not isinstance(config, dict) or not all(0 < value < math.inf for value in y):
        raise ValueError(f"a row of {row['kernel_name']} makes no sense")
    told = {name: row.get(name) or "" for name in COLUMNS}  # what older files lack, and rows that are cut short
    return {**told, "threads": str(config.pop("threads", "")), "config": config, "y": y}


def compare(earlier: Sequence[Row], machine: Mapping[str, object], results: Sequence[Result]) -> Comparison:
    """Holds results against rows of :func:`read`: of several that fit, the newest on the machine most like this one."""
    then: dict[tuple, list[Row]] = {}
    for row in earlier:
        then.setdefault(_key(row), []).append(row)
    changes, notes = [], {}
    for r in results:
        pairs = {}
        for new in (_parsed(row) for row in rows(machine, [r]) if _compared(row)):
            fitting = then.get(_key(new))
            if fitting is None:
                continue
            old = max(fitting, key=lambda row, new=new: (sum(row[k] == new[k] for k in WHERE), row["timestamp"]))
            elsewhere = _differing(WHERE, old, new)
            notes.update(dict.fromkeys([*elsewhere, *_differing(WITH, old, new)]))
            if new["metric_name"] == SHARE or not elsewhere:
                pairs[new["metric_name"]] = old["y"], new["y"]
            else:
                notes["so times are not compared"] = None
        if pairs:
            changes.append(Change(f"{r.case.title}, {r.case.shape}", pairs.get("speed"), pairs.get(SHARE)))
    timed = sum(bool(r.milliseconds) for r in results)
    if len(changes) < timed:
        notes[f"{timed - len(changes)} of {timed} cases cannot be compared"] = None
    return Comparison(changes, list(notes))


def _compared(row: Row) -> bool:
    return (row["kernel_provider"], row["metric_name"]) in COMPARED


def _key(row: Row) -> tuple:
    of = (row["kernel_name"], row["kernel_operation_mode"], row["metric_name"])
    return (*of, json.dumps(row["config"], sort_keys=True))


def _differing(names: Mapping[str, str], old: Row, new: Row) -> list[str]:
    """In words; what an older file does not tell is taken to be the same."""
    return [f"{names[k]}: {old[k]} then, {new[k]} now" for k in names if old[k] and old[k] != new[k]]


def _beyond(old: Quantiles, new: Quantiles) -> str:
    """Of a cost, whether its spread lies wholly beyond the older one's."""
    return "slower" if new.p20 > old.p80 else "faster" if new.p80 < old.p20 else ""


def show(path: Path, comparison: Comparison) -> None:
    """Prints what has changed since that file was written, and how the runs differ."""
    emit()
    lines = [
        (
            c.case, *_both(c.milliseconds, milliseconds), "" if c.faster is None else f"{c.faster:.2f}x",
            *_both(c.share, "{:.0%}".format), c.verdict,
        )
        for c in comparison.changes
    ]  # fmt: skip
    show_table(f"Against {path}", SHOWN, lines, left=(0, len(SHOWN) - 1))
    for note in comparison.notes:
        emit(note)


def _both(pair: tuple[Quantiles, Quantiles] | None, words: Callable[[float], str]) -> list[str]:
    return ["", ""] if pair is None else [words(y.p50) for y in pair]


def document(path: Path, comparison: Comparison) -> dict[str, Any]:
    """The same, for machines."""
    changes = [
        {
            "case": c.case, "milliseconds": c.milliseconds and [y._asdict() for y in c.milliseconds],
            "faster": c.faster, "limit_share": c.share and [y._asdict() for y in c.share], "verdict": c.verdict,
        }
        for c in comparison.changes
    ]  # fmt: skip
    return {"with": str(path), "changes": changes, "notes": comparison.notes}
