"""Numbers as text for people and as JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def format_value(value: float) -> str:
    """Four significant digits, integers as they are, NaN as a dash."""
    if isinstance(value, int):
        return f"{value:,}"
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    digits = 4 if abs(value) < 10 else 3 if abs(value) < 100 else 2 if abs(value) < 1000 else 1
    return f"{value:.{digits}f}"


def strict(value: Any) -> Any:
    """The same structure with NaN and infinities as None, so that any JSON reader takes it."""
    if isinstance(value, Mapping):
        return {str(name): strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(document: Any, indent: int | None) -> str:
    """JSON in ASCII, which any output takes and any reader gives back; NaN and infinities are null."""
    return json.dumps(strict(document), indent=indent, allow_nan=False)
