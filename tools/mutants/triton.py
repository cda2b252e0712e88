"""Defects of the Triton kernels, which Triton's interpreter runs."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
