"""Reports: the numbers (:mod:`.collapse`), what they mean (:mod:`.explain`), plots and pages (imported when used)."""

from .collapse import NAMES, CollapseReport, collapse

__all__ = ["NAMES", "CollapseReport", "collapse"]
