"""Files of statistics as the command line takes them: found, read with what they say of their model, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..report.output import check_file
from ..report.stored import CLASSES
from ..stats.files import read_origin, save_statistics
from ..stats.load import load


def describe(origin: Mapping[str, str]) -> str:
    """The model that statistics were made with, in words."""
    known = "parameters" if "parameters" in origin else "classifier"  # files of before were told apart by that
    return f"{origin['model']} in {origin['dtype']} ({known} {origin[known]})"


def same_model(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool:
    """Whether two origins have one model: all of its parameters, or what both know of them.

    What is not known, in files of one's own programs, fits everything.
    """
    known = [name for name in ("classifier", "parameters") if name in (one or {}) and name in (other or {})]
    return all(one[name] == other[name] for name in known)


def find(path: Path, option: str) -> Path:
    """The file of statistics that ``path`` is, or that the folder ``path`` holds, as --save has filled it.

    Raises:
        CommandError: no such file.
    """
    found = path / CLASSES if path.is_dir() else path
    if not found.is_file():
        raise CommandError(f"{option}: no file {found}")
    return found


def read_saved(path: Path, option: str, kind: str | None = None) -> tuple[Any, dict[str, Any] | None]:
    """The statistics in a file or folder, and what it says about the model that they were made with.

    Raises:
        CommandError: no such file, not one of ours, or not of this kind.
    """
    path = find(path, option)
    try:
        statistics, origin = load(path), read_origin(path)
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(f"{option}: {str(error).removeprefix('path: ')}") from None
    if kind is not None and type(statistics).__name__ != kind:
        raise CommandError(f"{option}: {path} holds {type(statistics).__name__}, expected {kind}")
    return statistics, origin


def add_up(places: Sequence[Path], output: Path) -> Any:
    """Writes the sum of the statistics in ``places`` to ``output``, and returns it. Memory holds two at a time.

    Raises:
        CommandError: before anything is read, an output that cannot be written, a file that is missing or given twice;
            then files that do not fit each other, of other sizes or of another model.
    """
    check_file(output, "--output")
    files = [find(path, "FILE") for path in places]
    for i, path in enumerate(files):
        if any(path.samefile(other) for other in files[:i]):
            raise CommandError(f"FILE: {path} is given twice, so that its rows would count twice")
    total, origin = read_saved(files[0], "FILE")
    for path in files[1:]:
        other, theirs = read_saved(path, "FILE", type(total).__name__)
        if not same_model(origin, theirs):
            raise CommandError(f"{path} does not fit {files[0]}: made with {describe(theirs)}, not {describe(origin)}")
        origin = origin or theirs
        try:
            total.merge(other)
        except ValueError as error:
            raise CommandError(f"{path} does not fit {files[0]}: {error}") from None
    save_statistics(output, total, origin)
    return total
