"""What each number of a report means in one sentence, and where it goes when a network collapses."""

from __future__ import annotations

import math
from typing import NamedTuple


class Meaning(NamedTuple):
    """``target`` is the value at full collapse; None where the number has none (it is then read on its own)."""

    label: str
    group: str
    sentence: str
    target: float | None
    goal: str


def _zero(label: str, group: str, sentence: str) -> Meaning:
    return Meaning(label, group, sentence, 0.0, "0 = collapsed")


def _one(label: str, group: str, sentence: str) -> Meaning:
    return Meaning(label, group, sentence, 1.0, "1 = collapsed")


MEANINGS: dict[str, Meaning] = {
    "nc1_pinv": _zero(
        "NC1, pseudo-inverse", "NC1", "Spread inside classes, seen in the directions that separate them."
    ),
    "nc1_quotient": _zero("NC1, trace ratio", "NC1", "Spread inside classes divided by spread between class means."),
    "nc1_cdnv": _zero(
        "NC1, CDNV", "NC1", "For an average pair of classes: their variance over their squared distance."
    ),
    "vci": _zero("VCI", "NC1", "Share of the variation along the class means that is noise inside classes."),
    "nc2_norm_cv": _zero("NC2, norm variation", "NC2", "How unequal the lengths of the centred class means are."),
    "nc2_log_norm_cv": _zero("NC2, log-norm variation", "NC2", "How unequal those lengths are on a logarithmic scale."),
    "nc2_cos_mean": Meaning(
        "NC2, mean cosine",
        "NC2",
        "Average cosine between two class means; a simplex has -1/(K-1).",
        None,
        "-1/(K-1) = simplex",
    ),
    "nc2_cos_std": _zero("NC2, cosine spread", "NC2", "How unequal the angles between class means are."),
    "nc2_etf_error": _zero("NC2, simplex error", "NC2", "Distance of the class means from a perfect simplex."),
    "gnc2_log_mean": Meaning(
        "GNC2, uniformity",
        "NC2",
        "How unevenly mean directions fill the sphere; lower is more even.",
        None,
        "about -0.35 = simplex",
    ),
    "gnc2_log_var": _zero("GNC2, uniformity spread", "NC2", "How much that closeness differs from pair to pair."),
    "nc3_cos_mean": _one("NC3, alignment", "NC3", "Cosine between a class mean and its own row of the classifier."),
    "nc3_cos_cv": _zero("NC3, alignment variation", "NC3", "How unequal this alignment is from class to class."),
    "nc3_duality_error": _zero(
        "NC3, duality error", "NC3", "Distance of classifier rows times class means from a perfect simplex."
    ),
    "nc4_agreement": _one("NC4, agreement", "NC4", "How often the classifier picks just the nearest class mean."),
    "ncc_accuracy": Meaning(
        "Nearest-mean accuracy",
        "Decisions",
        "Share of samples whose nearest class mean is their own.",
        1.0,
        "1 = collapsed",
    ),
    "accuracy": Meaning(
        "Accuracy", "Decisions", "Share of samples that the classifier gets right.", None, "higher is better"
    ),
    "nll": Meaning(
        "NLL (nats)", "Decisions", "Mean negative log-probability of the right class.", None, "lower is better"
    ),
    "held_out_nll": Meaning(
        "Held-out NLL (nats)", "Decisions", "The same on data never trained on.", None, "lower is better"
    ),
    "held_out_accuracy": Meaning(
        "Held-out accuracy", "Decisions", "The same on data never trained on.", None, "higher is better"
    ),
    "ece": Meaning(
        "Calibration error", "Decisions", "Gap between confidence and accuracy, 15 equal bins.", None, "0 = calibrated"
    ),
}

HEADLINES = ("nc1_quotient", "nc2_norm_cv", "nc3_cos_mean", "nc4_agreement")
"""One number per property, the four cards at the top of a report."""

HEADLINE_TITLES = {
    "nc1_quotient": "NC1 · variability collapse",
    "nc2_norm_cv": "NC2 · equal lengths",
    "nc3_cos_mean": "NC3 · self-duality",
    "nc4_agreement": "NC4 · nearest mean",
}


def meaning(name: str) -> Meaning:
    """The entry of ``name``; a metric that this table does not know gets its own name and no direction."""
    return MEANINGS.get(name, Meaning(name, "Other", "", None, ""))


def distance(name: str, value: float) -> float | None:
    """|value - value at full collapse|, or None where the metric has no such value or is NaN."""
    target = meaning(name).target
    if target is None or not math.isfinite(value):
        return None
    return abs(value - target)


def format_value(value: float) -> str:
    """Four significant digits, integers as they are, NaN as a dash."""
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    digits = 4 if abs(value) < 10 else 3 if abs(value) < 100 else 2 if abs(value) < 1000 else 1
    return f"{value:.{digits}f}"
