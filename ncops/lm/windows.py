"""Documents to windows of tokens, and windows to batches with next-token labels."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import CommandError

IGNORE = -100
HELD_OUT = 0.2
"""Share of the windows that decisions are measured on, where no text is given for them."""
UNKNOWN = -1


class Tokens(NamedTuple):
    """Token ids, and the UTF-8 bytes of text that each stands for: :func:`byte_sizes`; None where nothing tells."""

    ids: Sequence[int]
    sizes: Sequence[int] | None = None


class Batch(NamedTuple):
    """``labels[b, t]`` is the token at t + 1 of its window, IGNORE where that is not scored or t is an added BOS.

    ``windows`` has the index of each window.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    windows: Sequence[int]


class Windows:
    """Token ids cut into windows that start every ``stride`` tokens of a document.

    A token is scored, as the label of the token before it, by the first window that holds both: where windows overlap
    what an earlier one has scored is context, and where they do not the first of each is never scored.

    Args:
        documents: :class:`Tokens` of each, or its ids alone.
        size: tokens per window; the last of a document may be shorter. A window that scores nothing is left out.
        bos: id put in front of every window, beyond ``size``, or None. It gets no label, so that the position of this
            token, an attention sink in many models, is no sample.
        stride: at most ``size``, which is the default.
        eos: id put between documents, which are then cut as one; by default no window crosses from one to the next.
        held_out: the documents of the held-out part; by default it is the last windows.

    Attributes:
        tokens: those in windows, each counted once; an added BOS is not, an EOS between documents is.
    """

    def __init__(
        self,
        documents: Iterable[Tokens | Sequence[int]],
        size: int,
        bos: int | None = None,
        *,
        stride: int | None = None,
        eos: int | None = None,
        held_out: Iterable[Tokens | Sequence[int]] | None = None,
    ) -> None:
        self.size, self.bos, self.stride, self.eos = size, bos, stride or size, eos
        self.tokens = 0
        self._ids, self._begins = array("i"), array("q")
        self._starts, self._firsts, self._ends, self._sizes = (array("q") for _ in range(4))
        self._read(documents)
        self._train: tuple[int, int] | None = None
        if held_out is not None:
            self._train = len(self), len(self._begins)
            self._read(held_out)

    def _read(self, documents: Iterable[Tokens | Sequence[int]]) -> None:
        begin, sizes = len(self._ids), array("q")
        for document in documents:
            ids, of_each = document if isinstance(document, Tokens) else Tokens(document)
            if self.eos is None:
                self._cut(begin, sizes)
                begin, sizes = len(self._ids), array("q")
            elif len(ids) and len(self._ids) > begin:
                self._ids.append(self.eos)
                sizes.append(0)
            self._begins.append(len(self._ids))
            self._ids.extend(ids)
            sizes.extend(array("q", [UNKNOWN]) * len(ids) if of_each is None else of_each)
        self._cut(begin, sizes)

    def _cut(self, begin: int, sizes: Sequence[int]) -> None:
        """Windows of what has been read from ``begin`` on, ``sizes`` being the bytes of each of these tokens."""
        seen, last = begin, len(self._ids)
        for start in range(begin, last, self.stride):
            first, end = max(seen, start + 1), min(start + self.size, last)
            if first < end:
                of_each = sizes[first - begin : end - begin]
                self._starts.append(start)
                self._firsts.append(first)
                self._ends.append(end)
                self._sizes.append(UNKNOWN if min(of_each) < 0 else sum(of_each))
                self.tokens += end - max(seen, start)
                seen = end

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> list[int]:
        return self._ids[self._starts[index] : self._ends[index]].tolist()

    def fingerprint_bytes(self) -> bytes:
        """The same bytes for the same windows."""
        arrays = (self._ids, self._begins, self._starts, self._firsts, self._ends)
        return b"".join(part.tobytes() for part in arrays) + repr((len(self), self.bos, self._train)).encode()

    @property
    def largest(self) -> int:
        """The largest token id."""
        return max(max(self._ids, default=0), self.bos or 0)

    def scored(self, index: int) -> list[int]:
        """The tokens that a window scores."""
        return self._ids[self._firsts[index] : self._ends[index]].tolist()

    def places(self, index: int) -> Iterator[tuple[int, int]]:
        """``(document, position in it)`` of each of them, from 0 on; documents of ``held_out`` are counted anew.

        An EOS between documents is the one after the last token of the first.
        """
        for at in range(self._firsts[index], self._ends[index]):
            document = bisect_right(self._begins, at) - 1
            before = 0 if self._train is None or document < self._train[1] else self._train[1]
            yield document - before, at - self._begins[document]

    def num_scored(self, indices: Iterable[int]) -> int:
        """How many tokens these windows score."""
        return sum(self._ends[i] - self._firsts[i] for i in indices)

    def num_bytes(self, indices: Iterable[int]) -> int | None:
        """The UTF-8 bytes of text of the tokens that these windows score; None where nothing tells."""
        sizes = [self._sizes[i] for i in indices]
        return None if UNKNOWN in sizes else sum(sizes)

    def num_documents(self, indices: Iterable[int]) -> int:
        """How many documents these windows, in order, score tokens of."""
        begins, count, counted = sorted(set(self._begins)), 0, 0
        for i in indices:
            low, high = (bisect_right(begins, at) for at in (self._firsts[i], self._ends[i] - 1))
            count += high - max(low - 1, counted) if high > counted else 0
            counted = max(high, counted)
        return count

    def split(self, held_out: float = HELD_OUT) -> tuple[range, range]:
        """Indices of the train part and of the held-out part: as it was given, else the last of the windows.

        Raises:
            CommandError: a part without a window.
        """
        if self._train is not None:
            train = self._train[0]
            for option, count in (("--text", train), ("--held-out", len(self) - train)):
                if not count:
                    raise CommandError(f"{option}: no document of two tokens or more, of which a window could be made")
            return range(train), range(train, len(self))
        if len(self) < 2:
            raise CommandError(
                f"--text: {self.tokens} tokens make {len(self)} window(s) of {self.size}; two are needed, one of them "
                "held out: give more text or a smaller --window"
            )
        last = min(max(1, round(held_out * len(self))), len(self) - 1)
        return range(len(self) - last), range(len(self) - last, len(self))

    def counts(self, vocabulary: int) -> torch.Tensor:
        """``(vocabulary,) int64``, how often each token is scored."""
        total = torch.zeros(vocabulary, dtype=torch.int64)
        for index in range(len(self)):
            tokens = torch.tensor(self.scored(index), dtype=torch.int64)
            total.index_add_(0, tokens, torch.ones_like(tokens))
        return total

    def labels_seen(self, indices: Iterable[int]) -> list[int]:
        """The distinct labels of these windows, ascending."""
        return sorted(set().union(*(self.scored(i) for i in indices)))

    def by_length(self, indices: Iterable[int]) -> list[int]:
        """These windows with the long ones first, those of one length in their order."""
        return sorted(indices, key=self._length, reverse=True)

    def _length(self, index: int) -> int:
        return self._ends[index] - self._starts[index]

    def batches(self, indices: Sequence[int], batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches in order, of windows of one length each: nothing is padded, which no model can be confused by."""
        lead = [] if self.bos is None else [self.bos]
        for length, alike in groupby(indices, key=self._length):
            alike = list(alike)
            for first in range(0, len(alike), batch_size):
                chosen = alike[first : first + batch_size]
                ids = torch.tensor([[*lead, *self[i]] for i in chosen])
                labels = torch.full_like(ids, IGNORE)
                for row, i in zip(labels, chosen, strict=True):
                    scored = self.scored(i)
                    row[len(lead) + length - 1 - len(scored) : -1] = torch.tensor(scored)
                yield Batch(ids.to(device), torch.ones_like(ids).to(device), labels.to(device), chosen)


def byte_sizes(text: str, ends: Sequence[int]) -> array:
    """The UTF-8 bytes of each token of ``text``, which sum up to all of it.

    Those of a token go from the end of the tokens before it to its own: what a tokenizer drops, such as spaces, counts
    with the token after it, at the end with the last, and a character in several tokens with the first of them.

    Args:
        ends: how many characters a token and those before it reach over.
    """
    reached = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))
    reached[-1:] = len(text)
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        lengths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        reached = np.concatenate([[0], lengths.cumsum()])[reached]
    return array("q", np.diff(reached, prepend=0).tobytes())


def encoder(tokenizer: Any) -> Callable[[str], Tokens]:
    """Text to :class:`Tokens`, without special tokens; the sizes are known of tokenizers that map tokens to text."""
    maps = bool(getattr(tokenizer, "is_fast", False))

    def encode(text: str) -> Tokens:
        found = tokenizer(
            text, add_special_tokens=False, verbose=False, return_attention_mask=False, return_offsets_mapping=maps
        )
        ids = found["input_ids"]
        return Tokens(ids, byte_sizes(text, [end for _, end in found["offset_mapping"]]) if maps else None)

    return encode


def tokenize(
    texts: Iterable[Iterable[str]], encode: Callable[[str], Tokens], limit: int | None = None
) -> Iterator[Tokens]:
    """The tokens of each document until ``limit`` tokens (None: all) have been read over all documents."""
    left = limit
    for pieces in texts:
        ids, sizes, dropped = array("i"), array("q"), 0
        for piece in pieces:
            found = encode(piece)
            ids.extend(found.ids)
            if found.sizes is None:
                sizes = None
            elif not len(found.ids):
                dropped += len(piece.encode())
            elif sizes is not None:
                at = len(sizes)
                sizes.extend(found.sizes)
                sizes[at] += dropped
                dropped = 0
            if left is not None and len(ids) >= left:
                break
        if sizes:
            sizes[-1] += dropped
        if left is not None:
            ids, sizes = ids[:left], None if sizes is None else sizes[:left]
            left -= len(ids)
        yield Tokens(ids, sizes)
        if left == 0:
            return


def leading_bos(tokenizer: Any, choice: str = "auto") -> int | None:
    """The id to put in front of every window, or None: ``"auto"`` does what the tokenizer does with a text.

    Raises:
        CommandError: ``"always"``, and the tokenizer has no BOS.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if choice == "never":
        return None
    if choice == "always":
        if bos is None:
            raise CommandError("--bos always: the tokenizer of this model has no BOS token")
        return bos
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bos if bos is not None and len(ids) > 0 and ids[0] == bos else None


def separator(tokenizer: Any, documents: str) -> int | None:
    """The id that joins documents, the tokenizer's EOS, for ``"packed"``; None for ``"separate"``.

    Raises:
        CommandError: the tokenizer has no EOS.
    """
    if documents == "separate":
        return None
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise CommandError("--documents packed: the tokenizer of this model has no EOS token to join documents with")
    return eos
