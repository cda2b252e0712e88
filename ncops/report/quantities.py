"""Every metric of a report from a geometry, a classifier and its decisions, as a convention defines it."""

from __future__ import annotations

import math

from torch import Tensor

from .. import metrics
from ..conventions import Convention
from ..metrics.common import centred
from ..metrics.table import NAMES, NEAREST, needing
from ..ops import PairStats, pair_stats
from ..stats.decisions import DecisionStatistics
from ..stats.geometry import ClassGeometry


def quantities(
    geometry: ClassGeometry, rows: Tensor | None, decisions: DecisionStatistics | None, settings: Convention,
    cosines: PairStats | None,
) -> dict[str, float]:  # fmt: skip
    """All of ``NAMES``, NaN where ``rows`` (the classifier's, of the kept classes) or decisions would be needed.

    ``cosines`` as :func:`mean_cosines` has them.
    """
    values = dict.fromkeys(NAMES, math.nan)
    values.update(_variability(geometry, settings))
    if cosines is not None:
        values.update(_configuration(geometry, rows, settings, cosines))
        values.update(_row_configuration(rows, settings))
    values.update(_duality(geometry, rows, settings))
    values.update(_decisions(decisions))
    return {name: float(values[name]) for name in NAMES}


def taken_by_rounding(geometry: ClassGeometry, settings: Convention) -> dict[str, int]:
    """What the traces with pseudo-inverses go without, as part of the coverage; nothing without scatter."""
    if geometry.within_cov is None:
        return {}
    origin, dtype = origin_of(geometry, settings), geometry.input_dtype
    return {
        "dropped_directions": metrics.dropped_directions(geometry.means, global_mean=origin, input_dtype=dtype),
        "lost_directions": metrics.lost_directions(geometry.within_cov),
    }


def origin_of(geometry: ClassGeometry, settings: Convention) -> Tensor | None:
    """The point that means are centred on; None is the unweighted mean of the kept means."""
    return geometry.sample_mean if settings.global_mean == "sample" else None


def mean_cosines(geometry: ClassGeometry, settings: Convention) -> PairStats | None:
    """Cosines of the centred class means over all pairs, and the nearest of each; None for fewer than two classes."""
    if geometry.num_kept < 2:
        return None
    return pair_stats(centred(geometry.means, origin_of(geometry, settings)), "cosine")


def _variability(geometry: ClassGeometry, settings: Convention) -> dict[str, Tensor]:
    means, origin = geometry.means, origin_of(geometry, settings)
    values = {
        "nc1_quotient": metrics.nc1_quotient(geometry.within_trace, means, global_mean=origin),
        "nc1_cdnv": metrics.nc1_cdnv(
            geometry.class_var, means, power=settings.cdnv_power, counts=geometry.counts, ddof=settings.variance_ddof
        ),
    }
    if geometry.within_cov is not None:
        rounded = {"global_mean": origin, "input_dtype": geometry.input_dtype}
        values["nc1_pinv"] = metrics.nc1_pinv(geometry.within_cov, means, divide=settings.nc1_divide, **rounded)
        values["vci"] = metrics.vci(geometry.within_cov, means, **rounded)
    return values


def _configuration(
    geometry: ClassGeometry, rows: Tensor | None, settings: Convention, cosines: PairStats
) -> dict[str, Tensor]:
    means, origin = geometry.means, origin_of(geometry, settings)
    norms = {"global_mean": origin, "squared": settings.norm_squared, "ddof": settings.norm_ddof}
    similarity = metrics.PairMoments.of(cosines, settings.pair_ddof)
    if settings.similarity == "dot":
        similarity = metrics.pair_similarity(means, global_mean=origin, similarity="dot", ddof=settings.pair_ddof)
    uniformity = metrics.log_uniformity(means, global_mean=origin, center=settings.gnc2_centered)
    values = {
        "nc2_norm_cv": metrics.norm_variation(means, **norms),
        "nc2_log_norm_cv": metrics.norm_variation(means, log=True, **norms),
        "nc2_cos_mean": similarity.mean,
        "nc2_cos_std": similarity.std,
        "nc2_cos_error": metrics.angle_error(means, global_mean=origin),
        "gnc2_log_mean": uniformity.mean,
        "gnc2_log_var": uniformity.var,
    }
    if settings.etf_of == "means":
        values["nc2_etf_error"] = metrics.etf_error(means, global_mean=origin)
    elif rows is not None:
        values["nc2_etf_error"] = metrics.simplex_error(rows, rows)
    return values


def _row_configuration(rows: Tensor | None, settings: Convention) -> dict[str, Tensor]:
    """NC2 of the classifier's rows as they are."""
    if rows is None:
        return {}
    zero = rows.new_zeros(rows.shape[1])
    return {
        "nc2_w_norm_cv": metrics.norm_variation(
            rows, global_mean=zero, squared=settings.norm_squared, ddof=settings.norm_ddof
        ),
        "nc2_w_cos_std": metrics.pair_similarity(rows, global_mean=zero, ddof=settings.pair_ddof).std,
        "nc2_w_cos_error": metrics.angle_error(rows, global_mean=zero),
    }


def _duality(geometry: ClassGeometry, rows: Tensor | None, settings: Convention) -> dict[str, Tensor]:
    if rows is None:
        return {}
    shared = {"global_mean": origin_of(geometry, settings), "center_weight": settings.center_weight}
    cosines = metrics.alignment(
        rows, geometry.means, similarity=settings.duality_similarity, ddof=settings.duality_ddof, **shared
    )
    error = metrics.duality_error if settings.duality_error == "gram" else metrics.duality_distance
    return {
        "nc3_cos_mean": cosines.mean,
        "nc3_cos_cv": cosines.cv,
        "nc3_duality_error": error(rows, geometry.means, **shared),
    }


def _decisions(decisions: DecisionStatistics | None) -> dict[str, Tensor | float]:
    if decisions is None:
        return {}
    d = decisions
    values = {
        "nc4_agreement": metrics.share(d.agree, d.count),
        "ncc_accuracy": metrics.share(d.ncc_hit, d.count),
        "accuracy": metrics.share(d.hit, d.count),
        "nll": metrics.mean_nll(d.nll, d.count),
        "entropy": metrics.mean_nll(d.entropy, d.count),
        "ece": metrics.expected_calibration_error(d.confidence_count, d.confidence_correct, d.confidence_sum),
    }
    if not d.kept.any():
        values.update(dict.fromkeys(needing(NEAREST), math.nan))
    return values
