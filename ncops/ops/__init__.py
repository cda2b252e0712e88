"""The ops: one file each, one name each."""

from .class_moments import ClassMoments, accumulate_class_moments_, class_moments
from .class_scatter import class_scatter
from .columns import LinearStats
from .divergences import LinearDivergence
from .linear_divergence import linear_divergence
from .linear_loss import LinearLoss, linear_loss
from .linear_stats import linear_stats
from .linear_topk import LinearTopk, linear_topk
from .logit_divergence import logit_divergence
from .logit_stats import logit_stats
from .nearest_class_mean import NearestClassMean, nearest_class_mean
from .nearest_neighbors import NearestNeighbors, nearest_neighbors
from .pair_stats import PairStats, pair_stats
from .pinv_trace import between_spectrum as between_spectrum
from .pinv_trace import between_svd as between_svd
from .pinv_trace import pinv_trace, solve_trace
from .projected_sqnorms import projected_sqnorms

__all__ = [
    "ClassMoments",
    "LinearDivergence",
    "LinearLoss",
    "LinearStats",
    "LinearTopk",
    "NearestClassMean",
    "NearestNeighbors",
    "PairStats",
    "accumulate_class_moments_",
    "class_moments",
    "class_scatter",
    "linear_divergence",
    "linear_loss",
    "linear_stats",
    "linear_topk",
    "logit_divergence",
    "logit_stats",
    "nearest_class_mean",
    "nearest_neighbors",
    "pair_stats",
    "pinv_trace",
    "projected_sqnorms",
    "solve_trace",
]
