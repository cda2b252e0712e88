"""Where a measured report goes: the terminal, standard output as JSON, a folder with report.json and report.html."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from .._errors import CommandError
from .console import say, show_report
from .details import Measured, caveats, document
from .html import render


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a file of that name is never half a report."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_folder(folder: Path | None, option: str = "--output") -> None:
    """Fails before the work starts, not after it, when the output folder cannot be had.

    Raises:
        CommandError: if ``folder`` cannot be made or is a file.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{option}: {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{option}: {folder} is not writable")


def deliver(
    measured: Measured, *, title: str, folder: Path | None = None, html: Path | None = None, as_json: bool = False
) -> None:
    """Prints the report (or its JSON) and writes the files that were asked for."""
    text = json.dumps(document(measured.report, measured.details), indent=1, ensure_ascii=False)
    written = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "report.json", text + "\n")
        written.append(folder / "report.json")
        html = html or folder / "report.html"
    if html is not None:
        _write(html, render(measured.report, title=title, details=measured.details))
        written.append(html)
    if as_json:
        print(text)
    else:
        show_report(measured.report, title)
        for note in [*measured.details.get("notes", []), *caveats(measured.report)]:
            print(f"\n{note}")
    if written:
        say("wrote " + ", ".join(str(path) for path in written))
