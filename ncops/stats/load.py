"""Statistics from a file, of the class that wrote them."""

from __future__ import annotations

import os
import reprlib

import torch

from .classes import ClassStatistics
from .decisions import DecisionStatistics
from .files import read_state

KINDS = {cls.__name__: cls for cls in (ClassStatistics, DecisionStatistics)}


def load(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> ClassStatistics | DecisionStatistics:
    """Reads statistics written by ``save``: a :class:`ClassStatistics` or a :class:`DecisionStatistics`.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, written by another program or by a newer ncops.
    """
    name = os.fspath(path)
    try:
        kind, config, tensors = read_state(path, device)
    except ValueError as error:
        if str(error).startswith("path: "):
            raise
        raise ValueError(f"path: {name} is damaged: {error}") from error
    if kind not in KINDS:
        raise ValueError(f"path: {name} holds {reprlib.repr(kind)}, expected one of {', '.join(KINDS)}")
    try:
        statistics = KINDS[kind].from_state(config, tensors)
        statistics.check_values()
    except ValueError as error:
        raise ValueError(f"path: {name} is damaged: {error}") from error
    return statistics
