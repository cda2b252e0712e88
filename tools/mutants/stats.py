"""Defects of the statistics: updates, decisions, saved state."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
