"""Rows in blocks, so that temporaries stay small whatever the number of classes."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_BYTES = 8 << 20


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices over ``rows`` such that a float64 block of ``width`` columns stays within 8 MB."""
    step = max(1, BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
