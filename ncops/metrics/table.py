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

NOTATION = (
    "K kept classes in D dimensions; μ_c, V_c: mean and variance (over n) of class c; μ_G: mean of the μ_c; "
    "m_c = μ_c − μ_G, the rows of M; w_c, b_c: its row of the classifier W and its bias; Σ_W: covariance of samples "
    "about their class means; Σ_B = MᵀM/K; ⁺: pseudo-inverse; pairs: c < d."
)
"""The letters of the formulas."""


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
        formula, span, moved, papers: how the convention ``"ncops"`` defines it, in the letters of ``NOTATION``; its
            range; what moves it; where it comes from, names of :data:`.papers.PAPERS`.
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
    formula: str = ""
    span: str = ""
    moved: str = ""
    papers: tuple[str, ...] = ()
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
        formula="tr(Σ_W Σ_B⁺) / K", span="0 to ∞", papers=("papyan",),
        moved="Falls as samples gather at their class means in the directions that separate classes; other "
        "directions do not count, and the weakest of these counts most. Classes of few samples look tighter than they "
        "are.",
    ),
    _to_zero(
        "nc1_quotient", "NC1", (PAIRS,), "NC1, trace ratio",
        "Spread inside classes divided by spread between class means.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc1", short="trace ratio",
        card="NC1 · variability collapse", far="NC1 trace ratio",
        formula="tr Σ_W / tr Σ_B", span="0 to ∞", papers=("tirer",),
        moved="Falls as classes tighten or their means move apart. The largest directions decide: a few huge "
        "coordinates hide all others.",
    ),
    _to_zero(
        "nc1_cdnv", "NC1", (PAIRS,), "NC1, CDNV",
        "For an average pair of classes: their variance over their squared distance.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc1", short="CDNV",
        formula="mean of (V_c + V_d) / (2 |μ_c − μ_d|²) over pairs", span="0 to ∞", papers=("galanti", "wu"),
        moved="Falls as pairs move apart against their spread. Pairs whose means nearly coincide dominate it.",
    ),
    _to_zero(
        "vci", "NC1", (PAIRS, SCATTER), "VCI",
        "Share of the variation along the class means that is noise inside classes.", shown=(OVERVIEW,),
        formula="1 − tr(Σ_T⁺ Σ_B) / rank Σ_B, Σ_T = Σ_W + Σ_B", span="0 to 1", papers=("xu",),
        moved="What a linear probe could not tell apart. No invertible linear map of the features changes it. It is "
        "0 by itself where samples are no more than dimensions.",
    ),
    _to_zero(
        "nc2_norm_cv", "NC2", (PAIRS,), "NC2, norm variation",
        "How unequal the lengths of the centred class means are.",
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc2", short="norms",
        card="NC2 · equal lengths", far="NC2 norms",
        formula="std |m_c| / mean |m_c|", span="0 to √(K − 1)", papers=("papyan",),
        moved="Rises where classes differ in frequency or difficulty, whose means then differ in length.",
    ),
    _to_zero(
        "nc2_log_norm_cv", "NC2", (PAIRS,), "NC2, log-norm variation",
        "How unequal those lengths are on a logarithmic scale.",
        formula="std ln |m_c| / |mean ln |m_c||", span="0 to ∞", papers=("wu",),
        moved="Like the norm variation, with less weight on the longest means. It depends on the unit: lengths near "
        "1 make it large.",
    ),
    Metric(
        "nc2_cos_mean", "NC2", "NC2, mean cosine", "Average cosine between two class means.",
        "-1/(K-1) = simplex", "", needs=(PAIRS,), shown=(LAYERS,),
        formula="mean of cos(m_c, m_d) over pairs", span="−1/(K − 1) to 1", papers=("papyan",),
        moved="Equal lengths alone put it at its least value, so that it says little about the angles; a few means "
        "far longer than the others raise it.",
    ),
    _to_zero(
        "nc2_cos_std", "NC2", (PAIRS,), "NC2, cosine spread", "How unequal the angles between class means are.",
        shown=(OVERVIEW, LAYERS, CHECKPOINTS), panel="nc2", short="angles",
        formula="std of cos(m_c, m_d) over pairs", span="0 to 1", papers=("papyan",),
        moved="Rises where some classes are akin. Directions drawn at random have about 1/√D.",
    ),
    _to_zero(
        "nc2_cos_error", "NC2", (PAIRS,), "NC2, angle error",
        "Mean distance of the cosine of two class means from a simplex's -1/(K-1).", SIMPLEX,
        formula="mean of |cos(m_c, m_d) + 1/(K − 1)| over pairs", span="0 to 2", papers=("papyan",),
        moved="As the cosine spread, and outliers count less. Directions drawn at random have about 0.8/√D.",
    ),
    _to_zero(
        "nc2_etf_error", "NC2", (PAIRS,), "NC2, simplex error", "Distance of the class means from a perfect simplex.",
        SIMPLEX,
        shown=(OVERVIEW, SUMMARY, LAYERS, CHECKPOINTS), panel="nc2", short="simplex error",
        formula="‖G/‖G‖ − (I − 1 1ᵀ/K)/√(K − 1)‖, G = M Mᵀ", span="0 to √2", papers=("zhu",),
        moved="Unequal lengths and unequal angles both raise it. More classes than D + 1 have a floor above 0.",
    ),
    Metric(
        "gnc2_log_mean", "NC2", "GNC2, uniformity", "How unevenly mean directions fill the sphere; lower is more even.",
        "-ln(2K/(K-1))/2 = simplex", "", needs=(PAIRS,),
        formula="mean of −ln |u_c − u_d| over pairs, u_c = m_c / |m_c|",
        span="−ln(2K/(K − 1))/2 to ∞", papers=("liu", "wu"),
        moved="Falls as directions spread over the sphere; two means of nearly one direction raise it. Has a meaning "
        "for any number of classes.",
    ),
    _to_zero(
        "gnc2_log_var", "NC2", (PAIRS,), "GNC2, uniformity spread",
        "How much that closeness differs from pair to pair.",
        formula="variance of −ln |u_c − u_d| over pairs", span="0 to ∞", papers=("wu",),
        moved="Rises where some classes are akin, as the cosine spread does.",
    ),
    _to_zero(
        "nc2_w_norm_cv", "NC2", (PAIRS, WEIGHT), "NC2 of rows, norm variation",
        "How unequal the lengths of the classifier's rows are.",
        formula="std |w_c| / mean |w_c|", span="0 to √(K − 1)", papers=("papyan",),
        moved="Rises where classes differ in frequency: rows of rare ones have another length.",
    ),
    _to_zero(
        "nc2_w_cos_std", "NC2", (PAIRS, WEIGHT), "NC2 of rows, cosine spread",
        "How unequal the angles between the classifier's rows are.",
        formula="std of cos(w_c, w_d) over pairs", span="0 to 1", papers=("papyan",),
        moved="Rows are taken as they are: a part that all of them share brings every cosine near 1 and this near 0, "
        "without a simplex.",
    ),
    _to_zero(
        "nc2_w_cos_error", "NC2", (PAIRS, WEIGHT), "NC2 of rows, angle error",
        "Mean distance of the cosine of two classifier rows from a simplex's -1/(K-1).", SIMPLEX,
        formula="mean of |cos(w_c, w_d) + 1/(K − 1)| over pairs", span="0 to 2", papers=("papyan",),
        moved="A part that all rows share raises it: rows that are all alike have 1 + 1/(K − 1).",
    ),
    _to_one(
        "nc3_cos_mean", "NC3", (PAIRS, WEIGHT), "NC3, alignment",
        "Cosine between a class mean and its own row of the classifier.",
        shown=(OVERVIEW, SUMMARY, CHECKPOINTS), panel="nc3", short="alignment",
        card="NC3 · self-duality", far="1 − NC3 alignment",
        formula="mean of cos(w_c, m_c)", span="−1 to 1", papers=("papyan", "wu"),
        moved="Rises as rows turn to their class means; a part that all rows share lowers it.",
    ),
    _to_zero(
        "nc3_cos_cv", "NC3", (PAIRS, WEIGHT), "NC3, alignment variation",
        "How unequal this alignment is from class to class.",
        formula="std of cos(w_c, m_c) / |their mean|", span="0 to ∞", papers=("wu",),
        moved="Rises where rare classes are less aligned than frequent ones, and without bound where the mean cosine "
        "is near 0.",
    ),
    _to_zero(
        "nc3_duality_error", "NC3", (PAIRS, WEIGHT), "NC3, duality error",
        "Distance of classifier rows times class means from a perfect simplex.", SIMPLEX, shown=(OVERVIEW,),
        formula="‖G/‖G‖ − (I − 1 1ᵀ/K)/√(K − 1)‖, G = W Mᵀ", span="0 to 2", papers=("zhu",),
        moved="Unequal lengths, unequal angles, and rows that do not point to their means all raise it. More classes "
        "than D + 1 have a floor above 0.",
    ),
    _to_one(
        "nc4_agreement", "NC4", (DECISIONS, NEAREST), "NC4, agreement",
        "How often the classifier picks just the nearest class mean.",
        shown=(OVERVIEW, SUMMARY, CHECKPOINTS), panel="nc4", short="agreement",
        card="NC4 · nearest mean", far="1 − NC4 agreement",
        formula="share of argmax_c (w_c·x + b_c) = argmin_c |x − μ_c|", span="0 to 1", papers=("papyan", "wu"),
        moved="Biases and row lengths that tell frequent classes from rare ones lower it, and so does every class "
        "that is not kept: it has no mean to be nearest to.",
    ),
    _to_one(
        "ncc_accuracy", "Decisions", (DECISIONS, NEAREST), "Nearest-mean accuracy",
        "Share of samples whose nearest class mean is their own.", shown=(OVERVIEW,), panel="nc4", short="nearest mean",
        formula="share of argmin_c |x − μ_c| = y", span="0 to 1", papers=("papyan",),
        moved="Samples of classes that are not kept are misses.",
    ),
    Metric(
        "accuracy", "Decisions", "Accuracy", "Share of samples that the classifier gets right.",
        "higher is better", "higher", needs=(DECISIONS,), shown=(SUMMARY, CHECKPOINTS), panel="accuracy",
        short="accuracy",
        formula="share of argmax_c (w_c·x + b_c) = y", span="0 to 1",
        moved="Ties go to the lowest class.",
    ),
    Metric(
        "nll", "Decisions", "NLL (nats)", "Mean negative log-probability of the right class.",
        "lower is better", "lower", needs=(DECISIONS,), shown=(SUMMARY, CHECKPOINTS), panel="nll", short="NLL",
        formula="mean of −ln p(y | x)", span="0 to ∞",
        moved="A blind guess among C classes has ln C; its exponential is the perplexity.",
    ),
    Metric(
        "held_out_nll", "Decisions", "Held-out NLL (nats)", "The same on data never trained on.",
        "lower is better", "lower", panel="nll", short="held out", reported=False,
        formula="mean of −ln p(y | x)", span="0 to ∞",
        moved="Rises again when a network learns its training data by heart.",
    ),
    Metric(
        "held_out_accuracy", "Decisions", "Held-out accuracy", "The same on data never trained on.",
        "higher is better", "higher", panel="accuracy", short="held out", reported=False,
        formula="share of argmax_c (w_c·x + b_c) = y", span="0 to 1",
        moved="Stays near a guess where training data are learned by heart.",
    ),
    Metric(
        "entropy", "Decisions", "Entropy (nats)", "Mean entropy of the predicted probabilities.",
        "0 = certain", "", needs=(DECISIONS,),
        formula="mean of −Σ_c p(c | x) ln p(c | x)", span="0 to ln C",
        moved="Falls as a network grows sure, rightly or not; a blind guess among C classes has ln C.",
    ),
    Metric(
        "ece", "Decisions", "Calibration error", "Gap between confidence and accuracy, 15 equal bins.",
        "0 = calibrated", "lower", needs=(DECISIONS,),
        formula="Σ_b (n_b / N) |accuracy_b − confidence_b|", span="0 to 1", papers=("guo",),
        moved="Collapse makes networks sure, of their mistakes too. Bins hide gaps of both signs that fall into one "
        "of them.",
    ),
    Metric(
        "perplexity", "Decisions", "Perplexity", "Exponential of the NLL, over the scored tokens of a language model.",
        "lower is better", "lower", reported=False,
        formula="e^(mean of −ln p(y | x))", span="1 to ∞",
        moved="Depends on the tokenizer: fewer and longer tokens raise it. More context lowers it.",
    ),
    Metric(
        "bits_per_byte", "Decisions", "Bits per byte",
        "NLL of the scored tokens in bits, over the UTF-8 bytes of their text: comparable between tokenizers.",
        "lower is better", "lower", reported=False,
        formula="Σ −log₂ p(y | x) / bytes", span="0 to ∞",
        moved="More context lowers it. Bytes of a text differ between languages and scripts.",
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
