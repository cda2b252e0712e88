"""Everything a report shows beside its numbers: histograms, the scatter, the table of classes, trajectories, run facts.

``details`` is a plain dictionary, ready for JSON, with any of the keys
``run`` (name -> text or number), ``histograms``, ``scatter``, ``classes``, ``layers``, ``checkpoints`` and ``notes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import metrics
from ..stats.decisions import MARGIN_LIMIT
from .classes import COLUMNS
from .numbers import format_value, strict

if TYPE_CHECKING:
    from .collapse import CollapseReport

PAIR_SAMPLE = 512
"""Classes drawn for the histogram of pairwise cosines: 130,816 pairs, which show its shape; nothing is K x K."""

CLASS_COLUMNS = {name: heading for name, heading in COLUMNS.items() if name not in ("class", "kept", "row_norm", "nll")}
"""The columns that a page's table of classes may have, by their name in ``details["classes"]["rows"]``."""

TABLE_ROWS = 300
SCATTER_POINTS = 4000


def histogram(values: torch.Tensor, unit: str = "classes") -> dict[str, Any] | None:
    """Counts of the finite values on 8 to 48 equal bins from the least to the largest; None when there are none."""
    values = values.detach().to("cpu", torch.float64).flatten()
    values = values[torch.isfinite(values)]
    if values.numel() == 0:
        return None
    bins = min(48, max(8, round(2 * math.sqrt(values.numel()))))
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, bins=bins, min=low, max=high)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return {"edges": edges.tolist(), "counts": [int(c) for c in counts], "mean": float(values.mean()), "unit": unit}


def row_cosines(geometry, weight: torch.Tensor | None) -> torch.Tensor | None:
    """(K,) cosine of each centred class mean with its own classifier row (not centred); None without a classifier."""
    if weight is None:
        return None
    rows = weight.detach()[geometry.classes.to(weight.device)].to(geometry.means.device)
    return metrics.row_similarity(rows, geometry.means, global_mean=geometry.global_mean)


def _pair_cosines(geometry, seed: int) -> tuple[torch.Tensor, int]:
    centred = geometry.means.double() - geometry.global_mean.double()
    total = centred.shape[0]
    if total > PAIR_SAMPLE:
        chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:PAIR_SAMPLE]
        centred = centred[chosen.to(centred.device)]
    unit = centred / centred.norm(dim=1, keepdim=True)
    size = unit.shape[0]
    upper = torch.triu_indices(size, size, offset=1, device=unit.device)
    return (unit @ unit.T)[upper[0], upper[1]], size


def geometry_details(geometry, weight: torch.Tensor | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Distributions over the kept classes: norms, cosines with the classifier and of pairs, count against variance."""
    norms = metrics.mean_norms(geometry.means, global_mean=geometry.global_mean)
    histograms: dict[str, Any] = {"mean_norm": histogram(norms)}
    cosines = row_cosines(geometry, weight)
    if cosines is not None:
        histograms["row_cosine"] = histogram(cosines)
    if geometry.means.shape[0] >= 2:
        pairs, size = _pair_cosines(geometry, seed)
        histograms["pair_cosine"] = histogram(pairs, "pairs")
        if histograms["pair_cosine"] is not None:
            histograms["pair_cosine"].update(classes=size, of=int(geometry.means.shape[0]))
    counts, variance = geometry.counts.cpu(), geometry.class_var.double().cpu()
    shown = torch.nonzero((variance > 0) & torch.isfinite(variance))[:, 0]
    of = shown.numel()
    if of > SCATTER_POINTS:
        shown = shown[torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:SCATTER_POINTS].sort().values]
    scatter = {"count": counts[shown].tolist(), "variance": variance[shown].tolist(), "shown": shown.numel(), "of": of}
    return {"histograms": {k: v for k, v in histograms.items() if v is not None}, "scatter": scatter}


def decision_details(decisions) -> dict[str, Any]:
    """The histograms that a DecisionStatistics keeps, with their edges."""
    entropy, margin = decisions.entropy_hist.tolist(), decisions.margin_hist.tolist()
    span = math.log(decisions.num_classes) or 1.0
    inner = len(margin) - 2
    count = decisions.confidence_count
    right, sure = (metrics.per_class_share(d, count) for d in (decisions.confidence_correct, decisions.confidence_sum))
    return {
        "entropy": {"edges": _edges(0.0, span, len(entropy)), "counts": entropy, "unit": "samples"},
        "margin": {
            "edges": _edges(-MARGIN_LIMIT, MARGIN_LIMIT, inner), "counts": margin[1:-1],
            "below": margin[0], "above": margin[-1], "unit": "samples",
        },
        "reliability": {
            "edges": _edges(0.0, 1.0, len(count)), "counts": count.tolist(),
            "accuracy": strict(right.tolist()), "confidence": strict(sure.tolist()),
        },
    }  # fmt: skip


def _edges(low: float, high: float, bins: int) -> list[float]:
    return [low + (high - low) * i / bins for i in range(bins + 1)]


def class_rows(
    report: CollapseReport, text: Callable[[int], str], noun: str = "class", limit: int = TABLE_ROWS
) -> dict[str, Any]:
    """The most frequent kept classes of :meth:`ncops.CollapseReport.classes`, one row each.

    Args:
        text: the name of a class.
    """
    table = report.classes("count", descending=True).kept()
    shown = table.head(limit).to_dict()
    rows = []
    for i, index in enumerate(shown["class"]):
        row = {"id": index, "text": text(index), **{name: shown[name][i] for name in CLASS_COLUMNS if name in shown}}
        if row.get("nearest") is not None:
            row["nearest_text"] = text(row["nearest"])
        rows.append(strict(row))
    return {"rows": rows, "shown": len(rows), "of": len(table), "noun": noun}


def trajectory(
    axis: str, points: Sequence[float], reports: Sequence[Mapping[str, float]], names: Sequence[str]
) -> dict[str, Any]:
    """One list of values per metric along layers or checkpoints."""
    return {
        "axis": axis,
        "points": list(points),
        "metrics": {n: [strict(float(r[n])) for r in reports] for n in names if all(n in r for r in reports)},
    }


def document(report: CollapseReport, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``report.json`` and ``--json`` hold: metrics, coverage, convention and every detail."""
    head = report.document()
    head["metric_notes"] = head.pop("notes")
    return strict({**head, **(details or {})})


COVERAGE = {
    "classes": ("classes", ""),
    "dim": ("dimensions", ""),
    "classes_seen": ("classes seen", "classes"),
    "classes_kept": ("classes kept", "classes"),
    "min_count": ("samples a class needs", ""),
    "classes_with_10_samples": ("classes with ≥ 10 samples", ""),
    "samples": ("samples (training part)", ""),
    "samples_in_kept": ("of them in kept classes", "samples"),
    "decision_samples": ("samples (decision part)", ""),
    "decision_samples_kept": ("of them in kept classes", "decision_samples"),
}
"""What is told of the coverage even where it is 0: its label, and the number that it is a share of."""
_COVERAGE_HIDDEN = ("ignored_rows", "decision_ignored_rows", "decision_unkept_samples", "decision_unkept_share")


def coverage_items(report: CollapseReport) -> list[tuple[str, str]]:
    """(label, value) pairs of a report's coverage; counts that are zero and uninteresting are left out."""
    items = []
    coverage = report.coverage
    for name, value in coverage.items():
        if (name not in COVERAGE and not value) or name in _COVERAGE_HIDDEN:
            continue
        if name == "classes_with_10_samples" and coverage.get("min_count") == 10:
            continue
        label, whole = COVERAGE.get(name, (name.replace("_", " "), ""))
        shown = format_value(value) if isinstance(value, (int, float)) else str(value)
        if coverage.get(whole):
            shown += f" ({100 * value / coverage[whole]:.3g} %)"
        items.append((label, shown))
    return items
