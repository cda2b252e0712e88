"""Text files to fixed windows of tokens, and windows to batches with next-token labels."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CommandError

IGNORE = -100
CHUNK_CHARACTERS = 1 << 20
"""Text is tokenised a mebibyte at a time, cut after a line, so that a corpus is never held as strings."""


class Batch(NamedTuple):
    """``labels[b, t]`` is the token at t + 1 of its window: IGNORE at a last token and an added BOS."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


class Windows:
    """Token ids cut into windows: consecutive, not overlapping, never across two files.

    Args:
        documents: one sequence of token ids per file.
        size: tokens per window. The last window of a file may be shorter; one with fewer than two tokens is dropped.
        bos: id put in front of every window where the tokenizer does that with a text, else None. It gets no label, so
            that the position of this token, an attention sink in many models, is no sample.
    """

    def __init__(self, documents: Iterable[Sequence[int]], size: int, bos: int | None = None) -> None:
        self.size, self.bos = size, bos
        self._ids = array("i")
        self._spans: list[tuple[int, int]] = []
        for ids in documents:
            start = len(self._ids)
            self._ids.extend(ids)
            end = len(self._ids)
            self._spans += [(a, min(a + size, end)) for a in range(start, end, size) if min(a + size, end) - a >= 2]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> list[int]:
        start, end = self._spans[index]
        return self._ids[start:end].tolist()

    def fingerprint_bytes(self) -> bytes:
        """The same bytes for the same windows."""
        return self._ids.tobytes() + repr((self._spans, self.bos)).encode()

    @property
    def largest(self) -> int:
        """The largest token id."""
        return max(max(self._ids, default=0), self.bos or 0)

    @property
    def tokens(self) -> int:
        """Tokens in all windows, an added BOS not counted."""
        return sum(end - start for start, end in self._spans)

    def split(self, held_out: float = 0.2) -> tuple[range, range]:
        """Indices of the train part and of the held-out part, which is the last ``held_out`` of the windows.

        Raises:
            CommandError: with fewer than two windows.
        """
        if len(self) < 2:
            raise CommandError(
                f"--text: {self.tokens} tokens make {len(self)} window(s) of {self.size}; two are needed, one of them "
                "held out: give more text or a smaller --window"
            )
        last = min(max(1, round(held_out * len(self))), len(self) - 1)
        return range(len(self) - last), range(len(self) - last, len(self))

    def labels_seen(self, indices: Iterable[int]) -> list[int]:
        """The distinct labels of these windows, ascending."""
        return sorted(set().union(*(self[i][1:] for i in indices)))

    def by_length(self, indices: Iterable[int]) -> list[int]:
        """These windows with the long ones first, those of one length in their order."""
        return sorted(indices, key=self._length, reverse=True)

    def _length(self, index: int) -> int:
        start, end = self._spans[index]
        return end - start

    def batches(
        self, indices: Sequence[int], batch_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Batches in order, of windows of one length each: nothing is padded, which no model can be confused by."""
        lead = [] if self.bos is None else [self.bos]
        for _, alike in groupby(indices, key=self._length):
            alike = list(alike)
            for first in range(0, len(alike), batch_size):
                rows = [self[i] for i in alike[first : first + batch_size]]
                ids = torch.tensor([[*lead, *row] for row in rows])
                labels = torch.tensor([[IGNORE for _ in lead] + row[1:] + [IGNORE] for row in rows])
                yield Batch(ids.to(device), torch.ones_like(ids).to(device), labels.to(device))


def read_chunks(path: Path) -> Iterator[str]:
    """The text of a file in pieces of about CHUNK_CHARACTERS, cut after a line.

    Raises:
        CommandError: if the file cannot be read as UTF-8 text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            while piece := file.read(CHUNK_CHARACTERS):
                yield piece + file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--text: {path} cannot be read as UTF-8 text: {error}") from None


def tokenize(
    texts: Iterable[Iterable[str]], encode: Callable[[str], Sequence[int]], limit: int | None
) -> Iterator[array]:
    """Token ids per document until ``limit`` tokens (None: all) have been read over all documents."""
    left = limit
    for pieces in texts:
        ids = array("i")
        for piece in pieces:
            ids.extend(encode(piece))
            if left is not None and len(ids) >= left:
                break
        if left is not None:
            ids = ids[:left]
            left -= len(ids)
        yield ids
        if left == 0:
            return


def leading_bos(tokenizer) -> int | None:
    """The BOS id if this tokenizer puts one in front of every text, else None."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bos if bos is not None and len(ids) > 0 and ids[0] == bos else None
