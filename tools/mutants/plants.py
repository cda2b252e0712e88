"""What is planted: small defects by source file, with the tests that should see them."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("avx512_amx", "avx512_bf16", "avx512", "avx2", "generic")  # a machine that runs one runs those after it
BY_TESTS = ("csrc/cuda/", "csrc/cpu/isa/neon.h")  # compiled by their tests: for the host, for an emulator


class Plant(NamedTuple):
    """One defect: ``old``, which stands once in the file, becomes ``new``; ``equivalent`` says why no test can tell."""

    old: str
    new: str
    equivalent: str = ""


@dataclass(frozen=True)
class Source:
    """A file, pytest's arguments for the tests of what it does, and its defects, each the arguments of ``Plant``.

    ``isa``: the instruction set that the CPU kernels are built for, where it is not the machine's best. ``needs``:
    programs without which the tests are skipped.
    """

    path: str
    tests: str
    plants: tuple[tuple[str, ...], ...]
    isa: str = ""
    needs: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Plant]:
        return (Plant(*plant) for plant in self.plants)

    @property
    def native(self) -> bool:
        """Whether it is part of the extension that the tests import."""
        return self.path.startswith("csrc/") and not self.path.startswith(BY_TESTS)

    def runs_on(self, best: str) -> bool:
        """Whether its tests run on a machine whose best instruction set that is."""
        runs = not self.isa or best in ISAS and ISAS.index(self.isa) >= ISAS.index(best)
        return runs and all(map(shutil.which, self.needs))

    def arguments(self) -> list[str]:
        return shlex.split(self.tests)

    def planted(self, plant: Plant) -> str:
        """The file's text with the defect in it; ValueError where the table is older than the file."""
        text = (ROOT / self.path).read_text()
        if text.count(plant.old) != 1 or plant.old == plant.new:
            raise ValueError(f"{self.path}: {plant.old!r} stands in it {text.count(plant.old)} times, expected once")
        return text.replace(plant.old, plant.new)
