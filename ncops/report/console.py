"""Tables in a terminal: rich where a person looks, plain aligned text where a pipe reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..metrics.table import meaning
from ..tables import plain_table
from .collapse import CollapseReport
from .details import coverage_items
from .numbers import format_value


def encodable(text: str, stream: TextIO) -> str:
    """The text, with a question mark for each character that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None)
    return text if encoding is None else text.encode(encoding, "replace").decode(encoding)


def emit(text: str = "", stream: TextIO | None = None) -> None:
    """Prints a line, on standard output by default; never fails for what it is about."""
    stream = sys.stdout if stream is None else stream
    print(encodable(text, stream), file=stream, flush=True)


def say(text: str) -> None:
    """One line of progress on standard error."""
    emit(text, sys.stderr)


class _Encodable:
    """A stream whose ``write`` replaces what its encoding lacks, for rich."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(encodable(text, self._stream))


def _rich_console():
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=_Encodable(sys.stdout))


def _rich_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (), caption: str = ""
):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=caption, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Prints a table on standard output; ``left`` names the columns that are aligned to the left."""
    console = _rich_console()
    if console is None:
        emit(f"{title}\n{plain_table(columns, rows, left)}" if title else plain_table(columns, rows, left))
        return
    console.print(_rich_table(title, columns, rows, left))


def show_report(report: CollapseReport, title: str) -> None:
    """The metrics with their direction, and under them the coverage."""
    rows = [(meaning(n).label, format_value(float(v)), report.goals[n].text, n) for n, v in report.items()]
    show_table(title, ("metric", "value", "direction", "name"), rows, left=(0, 2, 3))
    if coverage := coverage_items(report):
        emit()
        show_table("Coverage", ("what", "number"), coverage)
    for note in report.grouped_notes():
        emit(f"\n{note}")


class LiveTable:
    """A table that grows row by row: redrawn in place on a terminal, appended line by line elsewhere.

    Args:
        quiet: rows go to standard error (``--json`` keeps standard output for machines).
    """

    def __init__(self, title: str, columns: Sequence[str], quiet: bool = False) -> None:
        self.title, self.columns, self.quiet = title, list(columns), quiet
        self.rows: list[Sequence[str]] = []
        self._live, self._caption = None, ""
        self._console = None if quiet else _rich_console()

    def __enter__(self) -> LiveTable:
        if self._console is not None:
            from rich.live import Live

            self._live = Live(self._table(), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        else:
            self._print(self.title)
            self._print_row(self.columns)
        return self

    def _print(self, line: str) -> None:
        emit(line, sys.stderr if self.quiet else sys.stdout)

    def _print_row(self, row: Sequence[str]) -> None:
        self._print("  ".join(cell.rjust(max(9, len(c))) for cell, c in zip(row, self.columns, strict=True)))

    def _table(self):
        return _rich_table(self.title, self.columns, self.rows, caption=self._caption)

    def add(self, row: Sequence[str]) -> None:
        self.rows.append(row)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        else:
            self._print_row(row)

    def note(self, text: str) -> None:
        """A line under the table while it grows; a pipe does not get it."""
        self._caption = text
        if self._live is not None:
            self._live.update(self._table())

    def __exit__(self, *error) -> None:
        if self._live is not None:
            self.note("")
            self._live.__exit__(*error)
