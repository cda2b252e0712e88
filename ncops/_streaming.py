"""What streaming states share: a dictionary of tensors, a file, a device."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .storage import save_state

BLOCK_BYTES = 8 << 20


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices over ``rows`` such that a float64 block of ``width`` columns stays within 8 MB."""
    step = max(1, BLOCK_BYTES // (8 * max(1, width)))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def stateful(method: Callable) -> Callable:
    """Makes a method that allocates or writes state keep no graph and make ordinary tensors.

    What is allocated inside ``torch.inference_mode`` could never be updated or merged outside of it.
    """

    @functools.wraps(method)
    def run(*args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run


class StreamingState:
    """Subclasses name their tensors in ``_TENSORS`` (one may be None) and describe themselves in ``_config``."""

    _TENSORS: tuple[str, ...] = ()

    def _config(self) -> dict[str, Any]:
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._TENSORS if getattr(self, name) is not None}

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name and, under ``"config"``, plain values. The tensors are not copied."""
        return {**self._tensors(), "config": self._config()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the state to a safetensors file, whole or not at all; :func:`ncops.load` reads it."""
        save_state(path, type(self).__name__, self._config(), self._tensors())

    @stateful
    def to(self, device: torch.device | str):
        """Moves the state's tensors to ``device``; returns self."""
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.to(device))
        return self

    def _check_tensors(
        self, tensors: dict[str, Tensor], expected: dict[str, tuple[tuple[int, ...], torch.dtype]]
    ) -> None:
        """Raises ValueError unless ``tensors`` has exactly these names, shapes and dtypes."""
        if set(tensors) != set(expected):
            raise ValueError(
                f"state: expected the tensors {', '.join(sorted(expected))}, got {', '.join(sorted(tensors))}"
            )
        for name, (shape, dtype) in expected.items():
            if tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype:
                got = f"{tensors[name].dtype} {tuple(tensors[name].shape)}"
                raise ValueError(f"state: {name}: expected {dtype} {shape}, got {got}")
