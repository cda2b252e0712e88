"""Small runs for the tests of reports: a classifier that collapses as its ``noise`` shrinks, and files of such runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import ncops
from ncops.report import details as parts
from ncops.report.measured import Measured

CLASSES, DIM, ROWS = 30, 8, 900
LAYER_METRICS = ("nc1_quotient", "nc2_cos_mean")


def statistics(noise: float, seed: int = 3):
    """``(class statistics, decision statistics, weight, geometry)`` of one run; classes 30 to 39 are never seen."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    weight = torch.randn(CLASSES + 10, DIM, generator=generator)
    x = noise * torch.randn(ROWS, DIM, generator=generator) + weight[y]
    stats = ncops.ClassStatistics(num_classes=CLASSES + 10, dim=DIM, scatter=True)
    stats.update(x, y)
    geometry = stats.compute(min_count=5)
    decisions = ncops.DecisionStatistics(geometry, weight)
    decisions.update(x, y)
    return stats, decisions, weight, geometry


def measured(noise: float):
    """A report with every kind of detail."""
    _, decisions, weight, geometry = statistics(noise)
    report = ncops.collapse(geometry, weight, decisions=decisions)
    details = parts.geometry_details(geometry, weight)
    details["histograms"].update(parts.decision_details(decisions))
    details["classes"] = parts.class_rows(report, lambda c: f" w{c}", "token", limit=20)
    others = [ncops.collapse(statistics(noise * k)[3], weight) for k in (4.0, 2.0, 1.0)]
    details["layers"] = parts.trajectory("layer", [0, 1, 2], others, LAYER_METRICS)
    held = [{"nc1_quotient": 3.0, "nll": 5.0}, {"nc1_quotient": 2.0, "nll": float("nan")}, report]
    details["checkpoints"] = parts.trajectory("step", [0, 50, 800], held, ("nc1_quotient", "nll"))
    details["run"] = {"model_name": "a model", "data": "a text", "seconds": 1.5}
    details["notes"] = []
    return Measured(report, details)


def write_runs(folder: Path, steps=(100, 1000)) -> list[Path]:
    """``step-N/report.json`` per step, with less noise from one to the next; the folders, last step first."""
    made = []
    for number, step in enumerate(steps):
        place = folder / f"step-{step}"
        place.mkdir(parents=True)
        report, details = measured(2.0 / (1 + number) ** 1.5)
        text = json.dumps(parts.document(report, details))
        (place / "report.json").write_text(text, encoding="utf-8")
        made.append(place)
    return made[::-1]
