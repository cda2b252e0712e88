"""Fast geometry kernels for trained networks: neural collapse and large-vocabulary logit statistics."""

import importlib

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

_LAZY = ("compat", "distributed", "integrations", "lm", "report")


def __getattr__(name: str):
    """The packages that most programs do not need, imported when they are named."""
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
