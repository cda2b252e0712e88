"""Reports: the numbers (:mod:`.collapse`), a measurement (:mod:`.measured`), several runs (:mod:`.comparison`), plots
and pages (imported when used)."""

from ..metrics.table import NAMES
from .classes import ClassTable
from .collapse import CollapseReport, collapse

__all__ = ["NAMES", "ClassTable", "CollapseReport", "Comparison", "collapse", "compare"]


def __getattr__(name: str):
    if name in ("Comparison", "compare"):
        from . import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
