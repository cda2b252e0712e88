"""Why a metric of a report is NaN or infinite, or what it means under a convention that changes its meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..conventions import Convention
from ..metrics.goals import Goals
from ..metrics.table import DECISIONS, NEAREST, PAIRS, SCATTER, WEIGHT, needing
from ..stats.decisions import DecisionStatistics
from ..stats.geometry import ClassGeometry
from .quantities import origin_of


def notes(
    values: Mapping[str, float], taken: Mapping[str, int], geometry: ClassGeometry, rows: Tensor | None,
    decisions: DecisionStatistics | None, settings: Convention,
) -> dict[str, str]:  # fmt: skip
    """Metric name -> note; every value that is NaN or infinite has one.

    Args:
        values, rows, decisions: as in :func:`.quantities.quantities`. taken: as ``taken_by_rounding`` counts it.
    """
    told = _of_rounding(taken, geometry, settings) | _of_arguments(geometry, rows, decisions, settings)
    features = _of_features(geometry)
    undefined = features or "undefined for these classes: means coincide, or one lies where all are centred"
    infinite = features or "class means coincide"
    for name, value in values.items():
        if math.isnan(value):
            of_rows = name.startswith("nc2_w_")
            told.setdefault(name, f"NaN: {'a classifier row is 0 or not finite' if of_rows else undefined}")
        elif math.isinf(value):
            told.setdefault(name, f"infinite: {infinite}")
    return told


def _of_features(geometry: ClassGeometry) -> str | None:
    """What is wrong with features whose sums are not finite, in words; None where all are."""
    if not torch.isfinite(geometry.means).all():
        return "some features are NaN or infinite; with nonfinite set to skip such rows are left out"
    if not torch.isfinite(geometry.within_trace):
        return "some features are so large that their squares overflow"
    return None


def _of_arguments(
    geometry: ClassGeometry, rows: Tensor | None, decisions: DecisionStatistics | None, settings: Convention
) -> dict[str, str]:
    """Why a metric is NaN, or what it means under this convention; of two notes on one metric the later counts."""
    under = f"under convention {settings.name!r}"
    scatter, weight, of_rows = geometry.within_cov is not None, rows is not None, settings.etf_of == "weight"
    decided = decisions is not None and decisions.num_samples > 0
    lone = int((geometry.counts <= settings.variance_ddof).sum())
    pairs = geometry.num_kept * (geometry.num_kept - 1) // 2
    goals = Goals(geometry.num_kept, geometry.dim, settings)
    told = [
        (goals.forced, True, "two centred means are always opposite: its collapsed value whatever the features"),
        (
            ["nc1_cdnv"], settings.variance_ddof > 0 and lone > 0,
            f"NaN: {lone} kept {'class has' if lone == 1 else 'classes have'} too few samples for a variance over "
            f"n - {settings.variance_ddof} {under}; keep classes with more",
        ),
        (
            ["nc2_cos_std", "nc2_w_cos_std"], pairs <= settings.pair_ddof,
            f"NaN: too few pairs of classes ({pairs}) for a spread over n - {settings.pair_ddof} {under}",
        ),
        (needing(SCATTER), not scatter, "NaN: needs the D x D scatter, which was not kept"),
        (["nc1_pinv"], scatter and not settings.nc1_divide, f"not divided by the number of classes {under}"),
        (["nc2_cos_mean", "nc2_cos_std"], settings.similarity == "dot", f"raw inner products, not cosines, {under}"),
        (["nc2_etf_error"], of_rows, f"of the classifier rows {under}"),
        (["nc2_etf_error"], of_rows and not weight, f"NaN: of the classifier rows {under}, which were not given"),
        (needing(WEIGHT), not weight, "NaN: needs the classifier's weight, which was not given"),
        (
            ["nc3_cos_mean", "nc3_cos_cv"], weight and settings.duality_similarity == "dot",
            f"inner products, not cosines, {under}",
        ),
        (
            ["nc3_duality_error"], weight and settings.duality_error == "distance",
            f"squared distance of normalised matrices {under}",
        ),
        (
            ["entropy"], decided and bool(decisions.entropy.isnan().any()),
            "NaN: the decisions are from a file of before it was kept",
        ),
        (needing(DECISIONS), decisions is None, "NaN: needs a decision pass"),
        (needing(DECISIONS), decisions is not None and not decided, "NaN: the decision pass counted no row"),
        (needing(NEAREST), decided and not decisions.kept.any(), "NaN: no class is kept, so there is no nearest mean"),
        (needing(PAIRS), geometry.num_kept < 2, f"NaN: needs two kept classes, there are {geometry.num_kept}"),
    ]  # fmt: skip
    return {name: note for names, holds, note in told if holds for name in names}


def _of_rounding(taken: Mapping[str, int], geometry: ClassGeometry, settings: Convention) -> dict[str, str]:
    dim, dtype = geometry.dim, str(geometry.input_dtype).removeprefix("torch.")
    between = min(dim, geometry.num_kept - (origin_of(geometry, settings) is None))
    told = [
        ("dropped_directions", f"of {between} directions of the class means are no more than rounding, and left out"),
        ("lost_directions", f"of {dim} directions of the within-class covariance are no more than rounding"),
    ]
    parts = [f"{taken[name]} {what}" for name, what in told if taken.get(name)]
    if not parts:
        return {}
    remedy = "" if dtype == "float64" else f" ({dtype} features; float64 ones keep more)"
    return dict.fromkeys(needing(SCATTER), "; ".join(parts) + remedy)
