"""Every fact about every metric of a report, one row each; what shows, selects or explains metrics reads it here.

A new metric is a function of this package, a row below and, in :func:`ncops.collapse`, the line that calls it.
"""

from __future__ import annotations

from dataclasses import dataclass

PAIRS, SCATTER, WEIGHT, DECISIONS, NEAREST = "pairs", "scatter", "weight", "decisions", "nearest"
"""What a metric needs: two kept classes, the D x D scatter, the classifier's rows, a decision pass, a nearest mean."""

OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS = "overview", "summary", "layers", "checkpoints"
"""Where metrics are shown: among the distances from collapse of one report, in the table of runs in a terminal, for
hidden layers, for checkpoints of a training."""

SIMPLEX = "0 = collapsed, where K <= D + 1"
"""The goal of what compares with a simplex, which needs K - 1 dimensions."""


@dataclass(frozen=True)
class Metric:
    """One number of a report.

    Attributes:
        group: its heading; groups stand together. needs: what has to be there, else it is NaN.
        label, sentence: what it is called, and what it says.
        goal: where it goes when a network collapses, in words. target: its value at full collapse; None where it has
            none (it is then read on its own). better: ``"lower"``, ``"higher"``, or nothing. All three for any number
            of classes and dimensions; :mod:`.goals` has those of a report.
        shown: where it is shown. panel, short: the plot of runs that has its line, and the line's name there.
        card, far: of the one metric per property at the top of a report: its heading there, and the name of its
            distance from full collapse.
        reported: whether :func:`ncops.collapse` gives it; others come with checkpoints or of language models only.
    """

    name: str
    group: str
    label: str
    sentence: str
    goal: str
    better: str
    target: float | None = None
    needs: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    panel: str = ""
    short: str = ""
    card: str = ""
    far: str = ""
    reported: bool = True


def _to_zero(
    name: str, group: str, needs: tuple[str, ...], label: str, sentence: str, goal: str = "0 = collapsed", **more
) -> Metric:
    return Metric(name, group, label, sentence, goal, "lower", 0.0, needs, **more)


def _to_one(name: str, group: str, needs: tuple[str, ...], label: str, sentence: str, **more) -> Metric:
    return Metric(name, group, label, sentence, "1 = collapsed", "higher", 1.0, needs, **more)


METRICS: dict[str, Metric] = {metric.name: metric for metric in (
    _to_zero(
        "nc1_pinv", "NC1", (PAIRS, SCATTER), "NC1, pseudo-inverse",
        "Spread inside classes, seen in the directions that separate them.",
        shown=(OVERVIEW,), panel="nc1", short="pseudo-inverse",
    ),
    _to_zero(
        "nc1_quotient", "NC1", (PAIRS,), "NC1, trace ratio",
        "Spread inside classes divided by spread between class means.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc1", short="trace ratio",
        card="NC1 · variability collapse", far="NC1 trace ratio",
    ),
    _to_zero(
        "nc1_cdnv", "NC1", (PAIRS,), "NC1, CDNV",
        "For an average pair of classes: their variance over their squared distance.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc1", short="CDNV",
    ),
    _to_zero(
        "vci", "NC1", (PAIRS, SCATTER), "VCI",
        "Share of the variation along the class means that is noise inside classes.", shown=(OVERVIEW,),
    ),
    _to_zero(
        "nc2_norm_cv", "NC2", (PAIRS,), "NC2, norm variation",
        "How unequal the lengths of the centred class means are.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc2", short="norms",
        card="NC2 · equal lengths", far="NC2 norms",
    ),
    _to_zero(
        "nc2_log_norm_cv", "NC2", (PAIRS,), "NC2, log-norm variation",
        "How unequal those lengths are on a logarithmic scale.",
    ),
    Metric(
        "nc2_cos_mean", "NC2", "NC2, mean cosine", "Average cosine between two class means.",
        "-1/(K-1) = simplex", "", needs=(PAIRS,), shown=(LAYERS,),
    ),
    _to_zero(
        "nc2_cos_std", "NC2", (PAIRS,), "NC2, cosine spread", "How unequal the angles between class means are.",
        shown=(OVERVIEW, LAYERS, CHECKPOINTS), panel="nc2", short="angles",
    ),
    _to_zero(
        "nc2_cos_error", "NC2", (PAIRS,), "NC2, angle error",
        "Mean distance of the cosine of two class means from a simplex's -1/(K-1).", SIMPLEX,
    ),
    _to_zero(
        "nc2_etf_error", "NC2", (PAIRS,), "NC2, simplex error", "Distance of the class means from a perfect simplex.",
        SIMPLEX,
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc2", short="simplex error",
    ),
    Metric(
        "gnc2_log_mean", "NC2", "GNC2, uniformity", "How unevenly mean directions fill the sphere; lower is more even.",
        "-ln(2K/(K-1))/2 = simplex", "", needs=(PAIRS,),
    ),
    _to_zero(
        "gnc2_log_var", "NC2", (PAIRS,), "GNC2, uniformity spread",
        "How much that closeness differs from pair to pair.",
    ),
    _to_zero(
        "nc2_w_norm_cv", "NC2", (PAIRS, WEIGHT), "NC2 of rows, norm variation",
        "How unequal the lengths of the classifier's rows are.",
    ),
    _to_zero(
        "nc2_w_cos_std", "NC2", (PAIRS, WEIGHT), "NC2 of rows, cosine spread",
        "How unequal the angles between the classifier's rows are.",
    ),
    _to_zero(
        "nc2_w_cos_error", "NC2", (PAIRS, WEIGHT), "NC2 of rows, angle error",
        "Mean distance of the cosine of two classifier rows from a simplex's -1/(K-1).", SIMPLEX,
    ),
    _to_one(
        "nc3_cos_mean", "NC3", (PAIRS, WEIGHT), "NC3, alignment",
        "Cosine between a class mean and its own row of the classifier.",
        shown=(OVERVIEW, SUMMARY, CHECKPOINTS), panel="nc3", short="alignment",
        card="NC3 · self-duality", far="1 − NC3 alignment",
    ),
    _to_zero(
        "nc3_cos_cv", "NC3", (PAIRS, WEIGHT), "NC3, alignment variation",
        "How unequal this alignment is from class to class.",
    ),
    _to_zero(
        "nc3_duality_error", "NC3", (PAIRS, WEIGHT), "NC3, duality error",
        "Distance of classifier rows times class means from a perfect simplex.", SIMPLEX, shown=(OVERVIEW,),
    ),
    _to_one(
        "nc4_agreement", "NC4", (DECISIONS, NEAREST), "NC4, agreement",
        "How often the classifier picks just the nearest class mean.",
        shown=(OVERVIEW, SUMMARY, CHECKPOINTS), panel="nc4", short="agreement",
        card="NC4 · nearest mean", far="1 − NC4 agreement",
    ),
    _to_one(
        "ncc_accuracy", "Decisions", (DECISIONS, NEAREST), "Nearest-mean accuracy",
        "Share of samples whose nearest class mean is their own.", shown=(OVERVIEW,), panel="nc4", short="nearest mean",
    ),
    Metric(
        "accuracy", "Decisions", "Accuracy", "Share of samples that the classifier gets right.",
        "higher is better", "higher", needs=(DECISIONS,), shown=(SUMMARY, CHECKPOINTS), panel="accuracy",
        short="accuracy",
    ),
    Metric(
        "nll", "Decisions", "NLL (nats)", "Mean negative log-probability of the right class.",
        "lower is better", "lower", needs=(DECISIONS,), shown=(SUMMARY, CHECKPOINTS), panel="nll", short="NLL",
    ),
    Metric(
        "held_out_nll", "Decisions", "Held-out NLL (nats)", "The same on data never trained on.",
        "lower is better", "lower", panel="nll", short="held out", reported=False,
    ),
    Metric(
        "held_out_accuracy", "Decisions", "Held-out accuracy", "The same on data never trained on.",
        "higher is better", "higher", panel="accuracy", short="held out", reported=False,
    ),
    Metric(
        "entropy", "Decisions", "Entropy (nats)", "Mean entropy of the predicted probabilities.",
        "0 = certain", "", needs=(DECISIONS,),
    ),
    Metric(
        "ece", "Decisions", "Calibration error", "Gap between confidence and accuracy, 15 equal bins.",
        "0 = calibrated", "lower", needs=(DECISIONS,),
    ),
    Metric(
        "perplexity", "Decisions", "Perplexity", "Exponential of the NLL, over the scored tokens of a language model.",
        "lower is better", "lower", reported=False,
    ),
    Metric(
        "bits_per_byte", "Decisions", "Bits per byte",
        "NLL of the scored tokens in bits, over the UTF-8 bytes of their text: comparable between tokenizers.",
        "lower is better", "lower", reported=False,
    ),
)}  # fmt: skip

NAMES = tuple(metric.name for metric in METRICS.values() if metric.reported)
"""The metrics of a report, in its order."""

HEADLINES = tuple(metric.name for metric in METRICS.values() if metric.card)
"""One number per property, the four cards at the top of a report."""


def meaning(name: str) -> Metric:
    """The row of ``name``; a metric that the table does not know gets its own name and no direction."""
    return METRICS.get(name) or Metric(name, "Other", name, "", "", "")


def needing(need: str) -> tuple[str, ...]:
    """The metrics of a report that need it."""
    return tuple(name for name in NAMES if need in METRICS[name].needs)


def shown_in(place: str) -> tuple[str, ...]:
    """The metrics shown there, in the order of the table."""
    return tuple(metric.name for metric in METRICS.values() if place in metric.shown)


def takes_log(name: str) -> bool:
    """Whether a metric may be drawn logarithmically: not one that grows to a bound, such as accuracy."""
    return meaning(name).better != "higher"
