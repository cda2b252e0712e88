"""Defects of the op layer: checks, columns, dispatch, references."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
