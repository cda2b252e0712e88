"""Defects of the native CPU kernels and of the ops' C++ side."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
