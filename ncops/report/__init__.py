"""Reports: the numbers (:mod:`.collapse`), a measurement (:mod:`.measured`), several runs (:mod:`.comparison`), plots
and pages (imported when used)."""

from typing import TYPE_CHECKING

from ..metrics.table import NAMES
from .classes import ClassTable
from .collapse import CollapseReport, collapse

if TYPE_CHECKING:
    from .comparison import Comparison as Comparison
    from .comparison import compare as compare

__all__ = ["NAMES", "ClassTable", "CollapseReport", "Comparison", "collapse", "compare"]


def __getattr__(name: str):
    if name in ("Comparison", "compare"):
        from . import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
