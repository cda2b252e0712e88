"""Defects of the CUDA kernels, which the host harness runs."""

from .plants import Source

SOURCES: tuple[Source, ...] = ()
