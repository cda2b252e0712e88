"""The figures of Papyan, Han and Donoho 2020 (PNAS 117:24652), their 2 to 7, over the checkpoints of a training."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from ...conventions import Convention
from ...metrics.goals import Goals
from .curves import Axis, Line, draw, has_values
from .panels import Metrics, panel_figure


class Panel(NamedTuple):
    """One figure of the paper: its title, what it measures, and its lines by the names of their metrics."""

    title: str
    formula: str
    lines: dict[str, str]


MISMATCH = "ncc_mismatch"
"""One minus ``nc4_agreement``, which the paper draws so that it falls too."""

PANELS = (
    Panel("Equinorm", "std / mean of norms", {"means": "nc2_norm_cv", "rows": "nc2_w_norm_cv"}),
    Panel("Equiangularity", "std of cosines", {"means": "nc2_cos_std", "rows": "nc2_w_cos_std"}),
    Panel("Maximal angle", "mean |cos + 1/(K−1)|", {"means": "nc2_cos_error", "rows": "nc2_w_cos_error"}),
    Panel("Self-duality", "‖W/‖W‖ − M/‖M‖‖²", {"": "nc3_duality_error"}),
    Panel("Variability collapse", "tr Σ_W Σ_B⁺", {"": "nc1_pinv"}),
    Panel("NCC mismatch", "classifier against nearest mean", {"": MISMATCH}),
)


def differs(settings: Convention) -> str:
    """What a convention has that the paper has not, in words; empty where they agree."""
    found = [
        ("squared norms", settings.norm_squared),
        ("inner products for cosines", settings.similarity != "cosine"),
        ("a self-duality that compares with a simplex", settings.duality_error != "distance"),
    ]
    return ", ".join(what for what, holds in found if holds)


def plot_papyan(axis: Axis, metrics: Metrics, goals: Goals):
    """The panels that ``metrics`` has values for, in the order of the paper; returns the figure and its axes."""
    agreement = metrics.get("nc4_agreement", ())
    metrics = {**metrics, MISMATCH: [None if value is None else 1 - value for value in agreement]}
    shown = []
    for panel in PANELS:
        lines = [Line(label, metrics[name]) for label, name in panel.lines.items() if has_values(metrics.get(name))]
        if lines:
            target = goals[panel.lines.get("means", "")].target or 0.0
            least = f"{target:.3g}" if target else "0"
            formula = panel.formula + ("/K" if "nc1_pinv" in panel.lines.values() and goals.settings.nc1_divide else "")
            shown.append((panel.title, f"{formula} ↓ {least}", partial(draw, axis=axis, lines=lines, target=target)))
    return panel_figure(axis, shown)
