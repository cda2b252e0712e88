"""Tables in a terminal: rich where a person looks, plain aligned text where a pipe reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..metrics.table import meaning
from .collapse import CollapseReport
from .details import coverage_items
from .numbers import format_value


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def _rich_console():
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console()


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(len(str(r[i])) for r in (columns, *rows)) for i in range(len(columns))]
    lines = []
    for row in (columns, *rows):
        cells = [
            str(c).ljust(w) if i in left else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


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
        print(f"{title}\n{plain_table(columns, rows, left)}" if title else plain_table(columns, rows, left))
        return
    console.print(_rich_table(title, columns, rows, left))


def show_report(report: CollapseReport, title: str) -> None:
    """The metrics with their direction, and under them the coverage."""
    rows = [(meaning(n).label, format_value(float(v)), meaning(n).goal, n) for n, v in report.items()]
    show_table(title, ("metric", "value", "direction", "name"), rows, left=(0, 2, 3))
    if coverage := coverage_items(report):
        print()
        show_table("Coverage", ("what", "number"), coverage)
    for note in report.grouped_notes():
        print(f"\n{note}")


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
        print(line, file=sys.stderr if self.quiet else sys.stdout, flush=True)

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
