"""What ``import ncops`` gives, imported at once.

Names stand one by one: mypy follows no ``__all__`` that is put together from those of other modules.
"""

from . import conventions, metrics
from ._version import __version__
from .backends import use_backend
from .measuring.tensors import measure
from .ops import (
    ClassMoments,
    LinearDivergence,
    LinearLoss,
    LinearStats,
    LinearTopk,
    NearestClassMean,
    NearestNeighbors,
    PairStats,
    accumulate_class_moments_,
    class_moments,
    class_scatter,
    linear_divergence,
    linear_loss,
    linear_stats,
    linear_topk,
    logit_divergence,
    logit_stats,
    nearest_class_mean,
    nearest_neighbors,
    pair_stats,
    pinv_trace,
    projected_sqnorms,
    solve_trace,
)
from .report.collapse import CollapseReport, collapse
from .stats.classes import ClassStatistics
from .stats.decisions import DecisionStatistics
from .stats.geometry import ClassGeometry
from .stats.load import load

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
    "__version__",
    "ClassGeometry",
    "ClassStatistics",
    "CollapseReport",
    "DecisionStatistics",
    "collapse",
    "conventions",
    "load",
    "measure",
    "metrics",
    "use_backend",
]
