"""Neural-collapse metrics as pure functions of class statistics: one paper's quantity, one function.

They take tensors (class means, class variances, covariances, classifier rows of the kept classes, counts), return
float64 scalars and name every convention in which published codes differ as an argument. :func:`ncops.collapse` calls
them all.
"""

from .calibration import (
    adaptive_calibration_error,
    brier_score,
    expected_calibration_error,
    fit_temperature,
)
from .configuration import (
    PairMoments,
    angle_error,
    etf_error,
    log_uniformity,
    mean_norms,
    norm_variation,
    pair_similarity,
    simplex_error,
)
from .decisions import mean_nll, per_class_share, share
from .diffusion import diffusion_spectral_entropy, diffusion_spectral_information
from .duality import Alignment, alignment, duality_distance, duality_error, row_similarity
from .frames import (
    frame_error,
    hierarchy_similarity,
    similarity_frame,
    simplex_etf,
    unconstrained_features,
    unconstrained_singular_values,
)
from .neighbors import lid_mle, lid_moments, two_nn
from .ood import (
    PrincipalSpace,
    mahalanobis_score,
    neco_score,
    residual_norm,
    vim_score,
    virtual_logit_scale,
    whitening,
)
from .regression import nrc1, nrc2, nrc3
from .separability import ConeEffect, class_separation, cone_effect, energy_confusion, fisher_ratio, tolerance
from .similarity import linear_cka
from .spectrum import (
    effective_rank,
    participation_ratio,
    power_law,
    spectral_entropy,
    stable_rank,
    top_energy,
)
from .thresholds import OperatingPoints, operating_points
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
    "ConeEffect",
    "OperatingPoints",
    "PairMoments",
    "PrincipalSpace",
    "adaptive_calibration_error",
    "alignment",
    "angle_error",
    "brier_score",
    "class_separation",
    "cone_effect",
    "diffusion_spectral_entropy",
    "diffusion_spectral_information",
    "dropped_directions",
    "duality_distance",
    "duality_error",
    "effective_rank",
    "energy_confusion",
    "etf_error",
    "expected_calibration_error",
    "fisher_ratio",
    "fit_temperature",
    "frame_error",
    "hierarchy_similarity",
    "lid_mle",
    "lid_moments",
    "linear_cka",
    "log_uniformity",
    "lost_directions",
    "mahalanobis_score",
    "mean_nll",
    "mean_norms",
    "nc1_basis",
    "nc1_cdnv",
    "nc1_pinv",
    "nc1_quotient",
    "neco_score",
    "norm_variation",
    "nrc1",
    "nrc2",
    "nrc3",
    "operating_points",
    "pair_similarity",
    "participation_ratio",
    "per_class_share",
    "power_law",
    "residual_norm",
    "rounding_rtol",
    "row_similarity",
    "share",
    "similarity_frame",
    "simplex_error",
    "simplex_etf",
    "spectral_entropy",
    "stable_rank",
    "tolerance",
    "top_energy",
    "two_nn",
    "unconstrained_features",
    "unconstrained_singular_values",
    "vci",
    "vim_score",
    "virtual_logit_scale",
    "whitening",
]
