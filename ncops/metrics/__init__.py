"""Neural-collapse metrics as pure functions of class statistics: one paper's quantity, one function.

They take tensors (class means, class variances, covariances, classifier rows of the kept classes, counts), return
float64 scalars and name every convention in which published codes differ as an argument. :func:`ncops.collapse` calls
them all.
"""

from .configuration import (
    PairMoments,
    etf_error,
    log_uniformity,
    mean_norms,
    norm_variation,
    pair_similarity,
    simplex_error,
)
from .decisions import expected_calibration_error, mean_nll, per_class_share, share
from .duality import Alignment, alignment, duality_distance, duality_error, row_similarity
from .variability import (
    dropped_directions,
    lost_directions,
    nc1_basis,
    nc1_cdnv,
    nc1_pinv,
    nc1_quotient,
    rounding_rtol,
    vci,
)

__all__ = [
    "Alignment",
    "PairMoments",
    "alignment",
    "dropped_directions",
    "duality_distance",
    "duality_error",
    "etf_error",
    "expected_calibration_error",
    "log_uniformity",
    "lost_directions",
    "mean_nll",
    "mean_norms",
    "nc1_basis",
    "nc1_cdnv",
    "nc1_pinv",
    "nc1_quotient",
    "norm_variation",
    "pair_similarity",
    "per_class_share",
    "rounding_rtol",
    "row_similarity",
    "share",
    "simplex_error",
    "vci",
]
