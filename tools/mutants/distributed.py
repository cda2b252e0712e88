"""Defects of reductions over ranks and shards of a vocabulary."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
