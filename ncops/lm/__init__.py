"""Token collapse of causal language models: load from disk, cut text into windows, measure."""

from .head import Head, find_head
from .load import LoadedModel, Source, find_source, load
from .measure import measure, read_windows
from .text import read_texts
from .windows import Batch, Windows

__all__ = [
    "Batch",
    "Head",
    "LoadedModel",
    "Source",
    "Windows",
    "find_head",
    "find_source",
    "load",
    "measure",
    "read_texts",
    "read_windows",
]
