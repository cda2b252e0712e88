"""Fast geometry kernels for trained networks: neural collapse and large-vocabulary logit statistics."""

from . import conventions, metrics
from ._version import __version__
from .backends import use_backend
from .ops import *  # noqa: F403
from .ops import __all__ as _ops
from .report.collapse import CollapseReport, collapse
from .stats.classes import ClassStatistics
from .stats.decisions import DecisionStatistics
from .stats.geometry import ClassGeometry
from .stats.load import load

__all__ = [
    *_ops,
    "__version__",
    "ClassGeometry",
    "ClassStatistics",
    "CollapseReport",
    "DecisionStatistics",
    "collapse",
    "conventions",
    "load",
    "metrics",
    "use_backend",
]
