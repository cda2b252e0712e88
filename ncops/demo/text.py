"""Real English prose that every Python has: the language reference behind ``help()``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

NAME = "pydoc_data.topics (the Python language reference)"


def topics() -> str:
    """About 0.47 MB of text, the same for one version of Python."""
    from pydoc_data.topics import topics as pages

    return "\n\n".join(pages.values())


class Vocabulary(NamedTuple):
    """A small tokenizer: text to ids, id to text."""

    encode: Callable[[str], list[int]]
    name: Callable[[int], str]
    size: int
    kind: str


def byte_pairs(text: str, size: int) -> Vocabulary:
    """A byte-level BPE of ``size`` tokens trained on ``text``; without ``tokenizers``, frequent words and letters."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        return frequent_pieces(text, size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text], trainer)
    return Vocabulary(
        lambda t: tokenizer.encode(t).ids,
        lambda i: tokenizer.decode([i]),
        tokenizer.get_vocab_size(),
        "byte-pair encoding",
    )


def frequent_pieces(text: str, size: int) -> Vocabulary:
    """Every character of ``text`` and its most frequent words; other words are spelled out."""
    pattern = re.compile(r" ?\w+|\s+|[^\w\s]+")
    characters = [c for c, _ in Counter(text).most_common(size // 2)]
    words = [
        w for w, _ in Counter(w for w in pattern.findall(text) if len(w) > 1).most_common(size - len(characters) - 1)
    ]
    names = ["�", *characters, *words]
    ids = {name: i for i, name in enumerate(names)}

    def encode(part: str) -> list[int]:
        out: list[int] = []
        for piece in pattern.findall(part):
            out += [ids[piece]] if piece in ids else [ids.get(c, 0) for c in piece]
        return out

    return Vocabulary(encode, names.__getitem__, len(names), "frequent words and characters")
