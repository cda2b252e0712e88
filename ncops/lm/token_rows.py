"""A table with a row for each scored token, as a CSV file."""

from __future__ import annotations

import csv
import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import torch

from ..ops import LinearStats
from ..stats.files import replacing
from .windows import Windows

COLUMNS = (
    "document", "position", "token_id", "token", "nll", "entropy", "rank", "argmax_id", "argmax", "margin",
)  # fmt: skip
"""``nll`` and ``entropy`` in nats; ``rank`` is the number of tokens with a larger logit, ``margin`` the token's logit
less the largest of the others, ``argmax`` the likeliest token; the places are those of :meth:`Windows.places`."""


class TokenRows:
    """Takes windows in any order, and their rows come to stand in that of the text: memory holds where they are."""

    def __init__(self, windows: Windows, text: Callable[[int], str], scratch: BinaryIO) -> None:
        self._windows, self._text, self._scratch = windows, functools.lru_cache(1 << 16)(text), scratch
        self._parts: dict[int, tuple[int, int]] = {}

    def add(self, windows: Sequence[int], stats: LinearStats) -> None:
        """The rows of these windows, of whose scored tokens ``stats`` has the columns, one after the other."""
        digits = ".17g" if stats.nll.dtype == torch.float64 else ".9g"
        columns = (stats.nll, stats.entropy, stats.target_rank, stats.argmax, stats.margin)
        rows = zip(*(column[stats.valid].tolist() for column in columns), strict=True)
        for window in windows:
            buffer = io.StringIO()
            write = csv.writer(buffer).writerow
            places = self._windows.places(window)
            for token, place, row in zip(self._windows.scored(window), places, rows, strict=False):
                nll, entropy, rank, argmax, margin = row
                nats = [format(value, digits) for value in (nll, entropy)]
                best = self._text(argmax) if argmax >= 0 else ""
                write([*place, token, self._text(token), *nats, rank, argmax, best, format(margin, digits)])
            data = buffer.getvalue().encode("utf-8", "backslashreplace")
            self._parts[window] = self._scratch.tell(), len(data)
            self._scratch.write(data)

    def copy(self, file: BinaryIO) -> None:
        """Writes all rows in order, under the names of their columns."""
        file.write((",".join(COLUMNS) + "\r\n").encode())
        for window in sorted(self._parts):
            at, length = self._parts[window]
            self._scratch.seek(at)
            file.write(self._scratch.read(length))


@contextmanager
def token_rows(
    path: str | os.PathLike | None, windows: Windows, text: Callable[[int], str]
) -> Iterator[TokenRows | None]:
    """Rows that become the file ``path`` when the block has ended, whole or not at all; None without a path.

    Args:
        text: of a token.
    """
    if path is None:
        yield None
        return
    with replacing(path) as name:
        folder = os.path.dirname(os.path.realpath(name)) if os.path.isfile(name) else None
        with tempfile.TemporaryFile(dir=folder) as scratch:
            rows = TokenRows(windows, text, scratch)
            yield rows
            with open(name, "wb") as file:
                rows.copy(file)
