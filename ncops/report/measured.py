"""A measurement: the one place where statistics become a report with everything to show beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..conventions import Convention
from ..names import Preset
from ..stats.decisions import DecisionStatistics
from ..stats.geometry import ClassGeometry
from .collapse import CollapseReport, collapse
from .details import class_rows, decision_details, geometry_details


class Measured(NamedTuple):
    """What a measuring run hands over: the report, and details as :mod:`.details` describes them."""

    report: CollapseReport
    details: dict[str, Any]


def assemble(
    geometry: ClassGeometry,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    decisions: DecisionStatistics | None = None,
    *,
    convention: Preset | Convention = "ncops",
    text: Callable[[int], str] = "class {}".format,
    noun: str = "class",
    facts: Mapping[str, Any],
    notes: Sequence[str] | None = None,
    **parts: Any,
) -> Measured:
    """The report of a geometry, of a classifier and of its decisions, and what there is to show of them.

    Args:
        weight, bias, decisions, convention: as :func:`ncops.collapse` takes them.
        text: the name of a class. noun: what a class is called.
        facts: how it was measured, name -> text or number. notes: sentences for the reader.
        parts: ``layers`` or ``checkpoints``, see :func:`.details.trajectory`.

    Raises:
        ValueError: parts that do not fit each other.
    """
    report = collapse(geometry, weight, bias, decisions=decisions, convention=convention)
    details = geometry_details(geometry, weight)
    if decisions is not None:
        details["histograms"].update(decision_details(decisions))
    details["classes"] = class_rows(report, text, noun)
    details.update(parts)
    if notes is not None:
        details["notes"] = list(notes)
    details["run"] = dict(facts)
    report.details = details
    return Measured(report, details)


def geometry_facts(geometry: ClassGeometry) -> dict[str, Any]:
    """What a geometry says of its measurement."""
    dtype = str(geometry.input_dtype).removeprefix("torch.")
    return {"dim": geometry.dim, "dtype": dtype, "min_count": geometry.coverage["min_count"]}
