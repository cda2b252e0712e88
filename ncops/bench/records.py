"""Results as CSV rows with the columns that kernel benchmarks in this field share, and as one JSON document."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..stats.files import write_file
from . import verdict
from .case import OURS
from .runner import Result
from .table import FLOP_LIMITS, limit_rows
from .timing import Quantiles

COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str", "gpu_name", "timestamp",
    "ncops_version", "cpu_isa", "torch_version",
)  # fmt: skip
KEY = (*COLUMNS[:8], *COLUMNS[11:13], "cpu_isa")  # a newer row of the same key takes the older one's place
LABELS = {
    "N": "rows", "D": "features", "V": "classes (vocabulary)", "C": "classes", "K": "rows", "R": "rows of the basis",
}  # fmt: skip
NAME = "all_benchmark_data.csv"
SHARE = "limit share"  # the metric, beside "speed", "memory" and "error"


def rows(machine: Mapping[str, object], results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """One row per contestant and metric; ``gpu_name`` holds the device's name, the processor's on a CPU."""
    stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    for r in results:
        x_name = r.case.axis or next(iter(r.case.sizes))
        config = {
            "case": r.case.name, **r.case.sizes, "dtype": r.case.dtype_name, "data": r.case.data, "threads": r.threads
        }  # fmt: skip
        for provider, metric, unit, y in _values(r):
            values = (
                r.case.bench.op, provider, r.case.bench.mode, metric, unit, x_name, LABELS[x_name],
                r.case.sizes[x_name], y.p50, y.p20, y.p80, json.dumps(config), machine["device"], stamp,
                machine["ncops"], machine["isa"] or "", machine["torch"],
            )  # fmt: skip
            yield dict(zip(COLUMNS, values, strict=True))


def _values(r: Result) -> Iterator[tuple[str, str, str, Quantiles]]:
    for name, time in r.milliseconds.items():
        yield name, "speed", "ms", time
    if r.share is not None:
        yield OURS, SHARE, "ratio", r.share
    for name, megabytes in r.megabytes.items():
        yield name, "memory", "MB", Quantiles(megabytes, megabytes, megabytes)
    for name, error in r.errors.items():
        yield name, "error", "relative", Quantiles(error, error, error)
    for name, limit in r.limits.items():
        unit = "FLOP/s" if name in FLOP_LIMITS else "B/s"
        yield f"limit: {name}", "throughput", unit, limit


def write_csv(path: Path, new: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a CSV file, in place of those that have the same key."""
    kept: dict[tuple[str, ...], Mapping[str, Any]] = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = {_key(row): row for row in csv.DictReader(file)}
    kept.update({_key(row): row for row in new})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(kept.values())
    write_file(path, text.getvalue())


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in KEY)


def document(machine: Mapping[str, object], results: Sequence[Result]) -> dict[str, Any]:
    """Everything measured, for machines."""
    return {"machine": dict(machine), "limits": dict(limit_rows(results)), "results": [_entry(r) for r in results]}


def _entry(r: Result) -> dict[str, Any]:
    found = verdict.checks(r)
    return {
        "op": r.case.bench.op, "mode": r.case.bench.mode, "case": r.case.name, "sizes": dict(r.case.sizes),
        "dtype": r.case.dtype_name, "data": r.case.data, "threads": r.threads, "axis": r.case.axis,
        "milliseconds": {name: time._asdict() for name, time in r.milliseconds.items()},
        "speedup": r.speedup, "limits": {name: limit._asdict() for name, limit in r.limits.items()},
        "limit_share": r.share and r.share.p50, "bound": r.bound, "megabytes": r.megabytes, "errors": r.errors,
        "goals": [check._asdict() for check in found], "verdict": verdict.words(found),
    }  # fmt: skip
