"""Named arrays in files of others, a classifier among them: safetensors or npz, read in parts, never pickle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import CommandError

WEIGHT, BIAS = (
    ("weight", "W", "classifier.weight", "fc.weight", "lm_head.weight"),
    ("bias", "b", "classifier.bias", "fc.bias", "lm_head.bias"),
)


class Arrays:
    """Named arrays of one file; rows of an array are read as they are asked for.

    Raises:
        CommandError: if the file is missing, of another format, or holds Python objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[str, np.ndarray] = {}
        if not self.path.is_file():
            raise CommandError(f"no file {str(path)!r}")
        if self.path.suffix not in (".safetensors", ".npz"):
            raise CommandError(f"{self.path}: expected a .safetensors or .npz file")
        try:
            if self.path.suffix == ".safetensors":
                from safetensors import safe_open

                self._file: Any = safe_open(str(self.path), framework="pt")
                self.names: list[str] = list(self._file.keys())
            else:
                self._file = np.load(self.path, allow_pickle=False)
                self.names = list(self._file.files)
        except Exception as error:  # safetensors raises a class of its own, derived from Exception only
            why = str(error).partition("\n")[0]
            raise CommandError(f"{self.path} is not a readable {self.path.suffix} file: {why}") from None

    def find(self, wanted: str | None, usual: Sequence[str], option: str) -> str | None:
        """The array that ``wanted`` names, else the first usual name that is there, else None.

        Raises:
            CommandError: if ``wanted`` is not in the file.
        """
        if wanted is not None:
            if wanted not in self.names:
                raise CommandError(
                    f"{option}: {self.path} has no array {wanted!r}, it has {', '.join(self.names) or 'none'}"
                )
            return wanted
        return next((name for name in usual if name in self.names), None)

    def require(self, wanted: str | None, usual: Sequence[str], what: str, option: str) -> str:
        name = self.find(wanted, usual, option)
        if name is None:
            raise CommandError(
                f"{self.path}: no {what}: expected an array named {' or '.join(usual)}, "
                f"got {', '.join(self.names) or 'none'} ({option} names it)"
            )
        return name

    def rows(self, name: str) -> Callable[[int, int], torch.Tensor]:
        """A function (start, stop) -> rows of the array as a tensor. One in a zip archive is read once, as a whole."""
        if self.path.suffix == ".safetensors":
            part = self._file.get_slice(name)
            return lambda start, stop: part[start:stop]
        array = self._array(name)
        return lambda start, stop: torch.from_numpy(np.ascontiguousarray(array[start:stop]))

    def _array(self, name: str) -> np.ndarray:
        if name not in self._read:
            try:
                self._read[name] = self._file[name]
            except ValueError as error:
                raise CommandError(f"{self.path}: {name} cannot be read without pickle: {error}") from None
        return self._read[name]

    def shape(self, name: str) -> tuple[int, ...]:
        if self.path.suffix == ".safetensors":
            return tuple(self._file.get_slice(name).get_shape())
        return tuple(self._array(name).shape)

    def tensor(self, name: str) -> torch.Tensor:
        """The whole array."""
        return self.rows(name)(0, self.shape(name)[0])


class Classifier(NamedTuple):
    """Rows (C, D) and bias (C) of a linear classifier."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def read_classifier(path: Path | None, features: Arrays, weight: str | None, bias: str | None) -> Classifier | None:
    """The classifier from its own file, or from the features file where that holds one, or None.

    Raises:
        CommandError: if the file that was named has no weight.
    """
    arrays = features if path is None else Arrays(path)
    name = arrays.find(weight, WEIGHT, "--weight-key")
    if name is None and path is None:
        return None
    name = name or arrays.require(weight, WEIGHT, "classifier weight", "--weight-key")
    other = arrays.find(bias, BIAS, "--bias-key")
    tensor = arrays.tensor(name)
    if tensor.dim() != 2:
        raise CommandError(f"{arrays.path}: {name}: expected (C, D), got {tuple(tensor.shape)}")
    return Classifier(tensor, None if other is None else arrays.tensor(other))
