"""Several models on one text: the folder of each, and whether it holds the report of these very inputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..report.places import distinct
from ..report.stored import REPORT

INPUTS = "inputs"
"""The name of :func:`inputs_of` among the facts of a report."""


def folder_names(models: Sequence[str]) -> list[str]:
    """A name for each model, made of what tells their paths apart.

    Raises:
        CommandError: the same model twice.
    """
    names = ["-".join(parts) for parts in distinct([Path(model).absolute().parts for model in models])]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CommandError(f"MODEL: {twice} is given twice")
    return names


def inputs_of(paths: Iterable[str | os.PathLike], settings: Mapping[str, Any]) -> str:
    """A hash of names, sizes and times of the files at these paths, folders with all in them, and of the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in paths:
        for file in _files(Path(path)):
            status = file.stat()
            digest.update(f"{file.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
    else:
        yield path


def is_finished(folder: Path, inputs: str) -> bool:
    """Whether the folder holds a whole report that was made of these inputs; its page is written last."""
    if not (folder / "report.html").is_file():
        return False
    try:
        return json.loads((folder / REPORT).read_text())["run"][INPUTS] == inputs
    except (OSError, ValueError, KeyError, TypeError):
        return False
