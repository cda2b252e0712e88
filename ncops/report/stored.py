"""Runs on disk: report.json files and saved statistics, read with the suspicion that files of others deserve."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..conventions import PRESETS, Convention
from ..errors import CommandError
from ..names import Preset
from ..stats.arrays import Arrays, Classifier, read_classifier
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.load import load
from ..stats.passes import in_dtype_of
from .classes import INTEGERS, ClassTable
from .collapse import CollapseReport
from .details import CLASS_COLUMNS
from .measured import Measured, assemble, geometry_facts
from .provenance import SCHEMA

REPORT, CLASSES, DECISIONS = "report.json", "class_statistics.safetensors", "decision_statistics.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_]{1,60}")


class Run(NamedTuple):
    """One measurement of a comparison: its report, the details to show beside it, and the file it came from."""

    name: str
    report: CollapseReport
    details: dict[str, Any]
    source: str


def find(path: str | os.PathLike) -> Path:
    """The file that a run stands for: itself, or the one that a folder holds.

    Raises:
        FileNotFoundError: no such file, or nothing of ours in the folder.
    """
    place = Path(path)
    if not place.is_dir():
        if not place.is_file():
            raise FileNotFoundError(f"run: no file or folder {str(path)!r}")
        return place
    for name in (REPORT, CLASSES):
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"run: the folder {str(path)!r} has neither {REPORT} nor {CLASSES}")


def read_report(path: Path) -> Measured:
    """A report and its details from a ``report.json``. Details that have not the form that plots and tables need are
    left out, which a note tells.

    Raises:
        ValueError: not JSON, or not a report.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"run: {path} is not readable JSON: {error}") from None
    values = document.get("metrics") if isinstance(document, dict) else None
    if not isinstance(values, dict) or not values:
        raise ValueError(f"run: {path} is not a report: expected an object with metrics")
    for name, value in values.items():
        if not _NAME.fullmatch(name) or not (value is None or _number(value)):
            raise ValueError(f"run: {path}: metrics: expected names of letters, digits and _ with numbers or null")
    metrics = {name: math.nan if value is None else float(value) for name, value in values.items()}
    coverage = {k: v for k, v in _mapping(document.get("coverage")).items() if _NAME.fullmatch(k) and _maybe(v)}
    if coverage.get("decision_unkept_share", 0.0) is None:
        coverage["decision_unkept_share"] = math.nan
    coverage.setdefault("dim", _mapping(document.get("run")).get("dim"))  # where reports had it at first
    if not _count(coverage["dim"]):
        del coverage["dim"]
    reasons = document.get("metric_notes", document.get("notes"))  # as ncops writes it, and as CollapseReport.to_json
    reasons = {k: str(v) for k, v in _mapping(reasons).items() if k in metrics}
    made = {key: value for key, value in _facts(_mapping(document.get("provenance"))).items() if _NAME.fullmatch(key)}
    details = read_details(document)
    listed = details.get("classes")
    classes = None if listed is None else ClassTable.of_rows(listed["rows"], listed["of"])
    report = CollapseReport(metrics, coverage, _convention(document), reasons, made, classes)
    report.details = details
    schema = document.get("schema")
    if schema is not None and not (_count(schema) and schema <= SCHEMA):
        details["notes"].append(f"{path.name} has schema {schema!s:.20}, this version of ncops reads up to {SCHEMA}.")
    return Measured(report, details)


def _convention(document: Mapping[str, Any]) -> Convention:
    """The settings in full, where they are there and known; else the preset of that name."""
    try:
        return Convention(**document["settings"])
    except (KeyError, TypeError, ValueError):
        return PRESETS.get(str(document.get("convention")), PRESETS["ncops"])


def _mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


# -- details: what is not of the form that the plots and tables take is dropped ---------------------------------------


def _number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _maybe(value: Any) -> bool:
    return value is None or _number(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _maybe_count(value: Any) -> bool:
    return value is None or _count(value)


def _list(value: Any, kind: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and (length is None or len(value) == length) and all(kind(v) for v in value)


def _ascending(value: Any, length: int | None = None) -> bool:
    return _list(value, _number, length) and all(a < b for a, b in zip(value[:-1], value[1:], strict=True))


def _entries(data: Any, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """The entries of ``data`` that ``checks`` names, once each has passed its check."""
    for key, passes in checks.items():
        if not passes(data[key]):
            raise ValueError(key)
    return {key: data[key] for key in checks}


def _histogram(data: Any, more: Sequence[str] = (), per_bin: Sequence[str] = ()) -> dict[str, Any]:
    """``more`` names counts, ``per_bin`` lists of a number or None per bin, that this histogram has beside the rest."""
    bins = len(data["counts"])
    checks = {
        "edges": lambda edges: bins > 0 and _ascending(edges, bins + 1),
        "counts": lambda counts: _list(counts, _count),
        **dict.fromkeys(more, _count),
        **dict.fromkeys(per_bin, lambda values: _list(values, _maybe, bins)),
    }
    optional = {"unit": lambda unit: unit in ("classes", "pairs", "samples"), "mean": _number}
    return _entries(data, checks) | {key: data[key] for key, passes in optional.items() if passes(data.get(key))}


def _scatter(data: Any) -> dict[str, Any]:
    size = len(data["count"])
    checks = dict.fromkeys(("count", "variance"), lambda values: _list(values, lambda v: _number(v) and v > 0, size))
    return {**_entries(data, {**checks, "of": _count}), "shown": size}


def _classes(data: Any) -> dict[str, Any]:
    rows = []
    for row in data["rows"]:
        if "held_out" in row:  # its name before, whatever part the decisions were on
            row = {**row, "decided": row["held_out"]}
        checks = {name: _maybe_count if name in INTEGERS else _maybe for name in CLASS_COLUMNS if name in row}
        rows.append({**_entries(row, {"id": _count, **checks}), "text": str(row["text"])})
        if "nearest_text" in row:
            rows[-1]["nearest_text"] = str(row["nearest_text"])
    noun = str(data.get("noun", "class"))[:40]
    return {**_entries(data, {"of": _count}), "rows": rows, "shown": len(rows), "noun": noun}


def _trajectory(data: Any) -> dict[str, Any]:
    points, metrics = data["points"], _mapping(data["metrics"])
    if not points or not _ascending(points):
        raise ValueError("points")
    if not all(_NAME.fullmatch(name) and _list(values, _maybe, len(points)) for name, values in metrics.items()):
        raise ValueError("metrics")
    return {"axis": str(data["axis"])[:40], "points": points, "metrics": metrics}


def _facts(data: Any) -> dict[str, Any]:
    return {str(k): v for k, v in data.items() if v is None or isinstance(v, (str, int, float, bool))}


_PARTS = {
    "scatter": _scatter, "classes": _classes, "layers": _trajectory, "checkpoints": _trajectory, "run": _facts,
}  # fmt: skip
_HISTOGRAMS = {
    "mean_norm": _histogram,
    "row_cosine": _histogram,
    "pair_cosine": partial(_histogram, more=("classes", "of")),
    "entropy": _histogram,
    "margin": partial(_histogram, more=("below", "above")),
    "reliability": partial(_histogram, per_bin=("accuracy", "confidence")),
}


def _checked(parts: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]], lost: list[str]) -> dict[str, Any]:
    """What the checks make of those parts that pass; ``lost`` gets the names of the others."""
    found = {}
    for key, check in checks.items():
        if key not in parts:
            continue
        try:
            found[key] = check(parts[key])
        except (AttributeError, KeyError, TypeError, ValueError, IndexError):
            lost.append(key)
    return found


def read_details(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a stored report that the page shows beside its numbers, checked."""
    lost: list[str] = []
    found = _checked(document, _PARTS, lost)
    found["histograms"] = _checked(_mapping(document.get("histograms")), _HISTOGRAMS, lost)
    notes = document.get("notes")
    found["notes"] = [str(note) for note in notes] if isinstance(notes, list) else []
    if lost:
        found["notes"].append(f"Not of the form that this version of ncops writes, and left out: {', '.join(lost)}.")
    return found


# -- saved statistics -------------------------------------------------------------------------------------------------


def measure_statistics(
    path: Path,
    *,
    classifier: str | os.PathLike | None = None,
    min_count: int | None = None,
    convention: Preset | Convention | None = None,
    lone: bool = True,
) -> Measured:
    """A report from saved class statistics, and from the decision statistics and the classifier beside them.

    Args:
        classifier: file with ``weight`` (C, D) and ``bias`` (C). One that does not exist as given is looked up beside
            ``path``: each checkpoint has its own.
        min_count: rows that a class needs. Default: as in the decision pass, else 1.
        convention: default: that of the decision pass, else ``"ncops"``.
        lone: no other run lies in this folder, so that decision statistics there belong to this one.

    Raises:
        ValueError: not statistics of ours, of another kind, or parts that do not fit each other.
        FileNotFoundError: no such classifier.
    """
    statistics, decisions, notes = load(path), None, []
    if not isinstance(statistics, ClassStatistics):
        raise ValueError(f"run: {path} holds {type(statistics).__name__}, expected ClassStatistics")
    beside = path.parent / DECISIONS
    if beside.is_file() and lone:
        decisions = load(beside)
        if not isinstance(decisions, DecisionStatistics):
            raise ValueError(f"run: {beside} holds {type(decisions).__name__}, expected DecisionStatistics")
    elif beside.is_file():
        notes.append(f"{DECISIONS} is not used: it lies beside several runs and can belong to one of them only.")
    if min_count is None:
        min_count = 1 if decisions is None else _min_count_of(statistics, decisions)
    geometry = statistics.compute(min_count=min_count)
    head = (None, None) if classifier is None else _classifier(Path(classifier), path.parent)
    weight, bias = in_dtype_of(geometry, *head)
    facts = {
        "model_name": path.name, **geometry_facts(geometry),
        "classifier": None if classifier is None else str(classifier),
    }  # fmt: skip
    convention = convention or ("ncops" if decisions is None else decisions.convention)
    try:
        return assemble(geometry, weight, bias, decisions, convention=convention, notes=notes, facts=facts)
    except ValueError as error:
        raise ValueError(f"run: {path}: {error}") from error


def _min_count_of(statistics, decisions) -> int:
    """The least count that leaves out the classes that the decision pass left out."""
    if decisions.kept.numel() != statistics.counts.numel():
        return 1  # they do not fit, which collapse() reports
    left_out = statistics.counts[~decisions.kept.to(statistics.counts.device)]
    return 1 + (int(left_out.max()) if left_out.numel() else 0)


def _classifier(path: Path, folder: Path) -> Classifier:
    places = [p for p in (path, folder / path) if p.is_file()]
    if not places:
        raise FileNotFoundError(f"classifier: no file {str(path)!r}, nor one of that name beside the run in {folder}")
    try:
        return read_classifier(places[0], Arrays(places[0]), None, None)
    except CommandError as error:
        raise ValueError(f"classifier: {error}") from None


def read_run(path: str | os.PathLike, name: str | None = None, **options: Any) -> Run:
    """A run from a ``report.json``, saved class statistics, or a folder with one of them.

    Args:
        options: ``classifier``, ``min_count``, ``convention`` and ``lone`` of :func:`measure_statistics`.
    """
    place = find(path)
    if place.suffix == ".safetensors":
        measured = measure_statistics(place, **options)
    else:
        measured = read_report(place)
    return Run(name or place.stem, *measured, str(place))
