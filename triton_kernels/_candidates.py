"""Which of two implementations of an op runs: the second stays off until a GPU has measured both; then one goes.

Nothing here needs Triton.
"""

from collections.abc import Iterator
from contextlib import contextmanager

CHOSEN: set[str] = set()


@contextmanager
def candidate(name: str) -> Iterator[None]:
    """Inside, the implementation of that name runs where it can."""
    before = name in CHOSEN
    CHOSEN.add(name)
    try:
        yield
    finally:
        if not before:
            CHOSEN.discard(name)
