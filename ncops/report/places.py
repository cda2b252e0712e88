"""Where runs stand on an axis: short names from their paths, and the number that tells them apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

from .stored import CLASSES, REPORT

_NUMBER = re.compile(
    r"(?P<word>[A-Za-z]*)[^A-Za-z0-9.]*"
    r"(?P<value>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?P<unit>[kKMB]?)(?![A-Za-z0-9])"
)
_SIZE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
_USUAL = ("step", "steps", "iter", "iteration", "global_step", "checkpoint", "ckpt", "epoch", "tokens")


class Place(NamedTuple):
    """A number in a name, and the word before it: ``step-1000`` is ``("step", 1000.0)``."""

    word: str
    value: float


def short_names(files: Sequence[Path]) -> list[str]:
    """What tells these files apart: their paths without what all of them begin and end with."""
    parts = [_parts(path) for path in files]
    return [parts[0][-1]] if len(parts) == 1 else ["/".join(own) for own in distinct(parts)]


def distinct(parts: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Paths without the parts that all of them begin and end with; one part of each is left at least."""
    shortest = min(map(len, parts))
    start = min(len(commonprefix(parts)), shortest - 1)
    stop = min(len(commonprefix([p[::-1] for p in parts])), shortest - start - 1)
    return [p[start : len(p) - stop] for p in parts]


def _parts(path: Path) -> list[str]:
    whole = path.absolute()
    own = [] if whole.name in (REPORT, CLASSES) else [whole.stem]
    return [*whole.parent.parts[1:], *own] or [whole.stem]


def numbers(name: str) -> list[Place]:
    """The numbers of a name: ``"epoch=3-step=1.5k"`` has ``epoch`` 3 and ``step`` 1500."""
    return [Place(m["word"].lower(), float(m["value"]) * _SIZE[m["unit"]]) for m in _NUMBER.finditer(name)]


def places(names: Sequence[str], axis: str | None = None) -> tuple[str, list[float]] | None:
    """The axis that the names lie on: its name and one number each; None where they name no number that differs.

    Of several numbers that do, the one after the word ``axis`` is taken, else one after a word such as ``step``, else
    the last.
    """
    found = [numbers(name) for name in names]
    if not found or len({len(places) for places in found}) != 1:
        return None
    columns = [column for column in zip(*found, strict=True) if len({p.value for p in column}) == len(names)]
    if not columns or len(names) < 2:
        return None

    def words(column: Sequence[Place]) -> set[str]:
        return {place.word for place in column}

    wanted = [axis.lower()] if axis else []
    order = [*wanted, *_USUAL]
    best = next((c for word in order for c in columns if words(c) == {word}), columns[-1])
    word = words(best).pop() if len(words(best)) == 1 else ""
    return axis or word or "run", [place.value for place in best]
