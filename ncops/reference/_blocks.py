"""Row blocks that keep the reference's temporaries small."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_BYTES = 64 << 20


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices over ``rows`` such that a float64 block of ``width`` columns stays within 64 MB; one empty for no rows."""
    step = max(1, BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, max(1, rows), step):
        yield slice(start, min(rows, start + step))
