"""Reports: the numbers (:mod:`.collapse`), several runs (:mod:`.comparison`), what they mean (:mod:`.explain`), plots
and pages (imported when used)."""

from .collapse import NAMES, CollapseReport, collapse
from .comparison import Comparison, compare

__all__ = ["NAMES", "CollapseReport", "Comparison", "collapse", "compare"]
