"""Results as tables: aligned text, the HTML that a notebook shows, and a pandas data frame where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def short_repr(result: Any, fields: Mapping[str, Any]) -> str:
    """The name of a result's class with the shapes of its tensors, whose numbers may be thousands."""
    shown = (f"{name}={tuple(v.shape) if getattr(v, 'ndim', 0) else v!r}" for name, v in fields.items())
    return f"{type(result).__name__}({', '.join(shown)})"


def frame(columns: Mapping[str, Sequence[Any]], index: Sequence[Any] | None = None) -> Any:
    """A ``pandas.DataFrame``.

    Raises:
        ModuleNotFoundError: without pandas, which nothing else here needs.
    """
    try:
        from pandas import DataFrame
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise ModuleNotFoundError("to_frame: needs the package pandas: pip install pandas", name="pandas") from None
    return DataFrame(dict(columns), index=index)


def html_table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", notes: Sequence[str] = ()
) -> str:
    """A plain HTML table, everything escaped; the notebook's own sheet styles it."""
    lines = ["<table>", *([f"<caption>{escape(caption)}</caption>"] if caption else []), "<thead>"]
    lines.append("<tr>" + "".join(f"<th>{escape(str(head))}</th>" for head in heads) + "</tr></thead><tbody>")
    lines += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table>", *(f"<p>{escape(note)}</p>" for note in notes)])


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Text in columns, those of ``left`` aligned to the left, the others to the right."""
    widths = [max(len(str(r[i])) for r in (columns, *rows)) for i in range(len(columns))]
    lines = []
    for row in (columns, *rows):
        cells = [
            str(c).ljust(w) if i in left else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
