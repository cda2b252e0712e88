"""Named arrays in files of others, a classifier among them: safetensors or npz, read in parts, never pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import CommandError
from ..ops.checks import FLOATING, INTEGER
from .npz import Npz

WEIGHT, BIAS = (
    ("weight", "W", "classifier.weight", "fc.weight", "lm_head.weight"),
    ("bias", "b", "classifier.bias", "fc.bias", "lm_head.bias"),
)
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


class Arrays:
    """Named arrays of one file; rows of an array are read as they are asked for.

    Raises:
        CommandError: if the file is missing, of another format, or no whole file of it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[str, torch.Tensor] = {}
        if not self.path.is_file():
            raise CommandError(f"no file {str(path)!r}")
        if self.path.suffix not in (".safetensors", ".npz"):
            why = f" ({self.path.suffix} files are pickles, which run code)" if self.path.suffix in PICKLES else ""
            raise CommandError(f"{self.path}: expected a .safetensors or .npz file{why}")
        self._npz: Npz | None = None
        with self._reading(f"is not a readable {self.path.suffix} file"):
            if self.path.suffix == ".safetensors":
                from safetensors import safe_open

                self._file: Any = safe_open(str(self.path), framework="pt")
                self.names: list[str] = list(self._file.keys())
            else:
                self._npz = Npz(self.path)
                self.names = list(self._npz.members)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Whatever a file of others makes the readers raise is one line about that file."""
        try:
            yield
        except CommandError:
            raise
        except Exception as error:  # safetensors raises a class of its own, zip archives and headers a dozen of kinds
            why = str(error).partition("\n")[0][:300] or type(error).__name__
            raise CommandError(f"{self.path}{'' if what.startswith('is') else ':'} {what}: {why}") from None

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
        if self._npz is None:
            with self._reading(f"{name} cannot be read"):
                part = self._file.get_slice(name)
            return lambda start, stop: self._rows_of(part, name, start, stop)
        if name not in self._read:
            with self._reading(f"{name} cannot be read"):
                self._read[name] = torch.from_numpy(np.ascontiguousarray(self._npz.read(name)))
        array = self._read[name]
        return lambda start, stop: array[start:stop]

    def _rows_of(self, part: Any, name: str, start: int, stop: int) -> torch.Tensor:
        with self._reading(f"{name} cannot be read"):
            return part[start:stop]

    def shape(self, name: str) -> tuple[int, ...]:
        with self._reading(f"{name} cannot be read"):
            return self._npz.shape(name) if self._npz is not None else tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str, symbols: str) -> torch.Tensor:
        """The whole array, of as many dimensions as ``symbols`` such as ``"(C, D)"`` has.

        Raises:
            CommandError: of another number of dimensions, or complex.
        """
        shape = self.shape(name)
        if len(shape) != len(symbols.split(",")):
            raise CommandError(f"{self.path}: {name}: expected {symbols}, got {shape}")
        tensor = self.rows(name)(0, shape[0])
        if tensor.dtype not in (*FLOATING, *INTEGER):
            raise CommandError(f"{self.path}: {name}: expected real numbers, got {type_name(tensor)}")
        return tensor


def type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
    rows, shift = arrays.tensor(name, "(C, D)"), None if other is None else arrays.tensor(other, "(C)")
    if not rows.shape[0]:
        raise CommandError(f"{arrays.path}: {name}: expected at least one class, got {tuple(rows.shape)}")
    if shift is not None and shift.shape != rows.shape[:1]:
        raise CommandError(
            f"{arrays.path}: {other}: expected (C) = ({rows.shape[0]},), got {tuple(shift.shape)}"
        )
    return Classifier(rows, shift)
