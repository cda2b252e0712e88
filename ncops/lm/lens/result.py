"""What a lens shows of some sequences: a number per layer and token, as tensors, a table, files or a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import tables
from ...report.lens import SHOWN, document
from ...stats.files import write_file
from .columns import DIVERGENCES
from .totals import IGNORE, Totals


class Lens(NamedTuple):
    """Every layer's guess at the next token, for ``B`` sequences of ``T`` tokens; natural logarithms throughout.

    Floats are float32 (float64 of a float64 model), and on the model's device, as all tensors are. At the last token of
    a sequence, whose next token is not known, ``logprob`` is NaN and ``rank`` -1.

    Attributes:
        layers: the ``L`` layers: 0 is what enters the first block, i what leaves block i; the last of them is the
            model's own output.
        input_ids, target: ``(B, T)`` int64, the tokens read, and the true next ones (-100 where there is none).
        entropy: ``(L, B, T)``, of the layer's distribution over the vocabulary, in nats.
        kl: ``(L, B, T)``, ``KL(p_last || p_layer)`` in nats; 0 at the last layer.
        agree: ``(L, B, T)`` bool, the layer's most likely token is the last layer's.
        rank: ``(L, B, T)`` int64, how many tokens the layer finds more likely than the true next one; 0 is the best.
        logprob: ``(L, B, T)``, log-probability of the true next token.
        top: ``(L, B, T, k)`` int64, the layer's most likely tokens, the first ones first; top_logprob: theirs.
        reverse_kl, js, overlap: ``(L, B, T)``: ``KL(p_layer || p_last)``, Jensen-Shannon divergence in nats, and ``sum
            min(p_layer, p_last)``; None unless asked for.
        words: token id -> its text, for all ids above.
        vocabulary: how many tokens there are. facts: how it was made, name -> text or number.
    """

    layers: tuple[int, ...]
    input_ids: Tensor
    target: Tensor
    entropy: Tensor
    kl: Tensor
    agree: Tensor
    rank: Tensor
    logprob: Tensor
    top: Tensor
    top_logprob: Tensor
    reverse_kl: Tensor | None
    js: Tensor | None
    overlap: Tensor | None
    words: Mapping[int, str]
    vocabulary: int
    facts: Mapping[str, Any]

    def __repr__(self) -> str:
        layers, sequences, tokens = self.entropy.shape
        dtype = str(self.entropy.dtype).removeprefix("torch.")
        return (
            f"Lens(layers={layers}, sequences={sequences}, tokens={tokens}, vocabulary={self.vocabulary:,}, "
            f"{dtype} on {self.entropy.device}, through {self.facts['through']})"
        )

    @classmethod
    def joined(cls, parts: Sequence[Lens]) -> Lens:
        """One lens of the sequences of all parts, which are of one model and of one length."""

        def join(name: str, values: tuple) -> Any:
            if not isinstance(values[0], Tensor):
                return values[0]
            return torch.cat(values, -3 if name.startswith("top") else -2)

        return cls(*(join(*entry) for entry in zip(cls._fields, zip(*parts, strict=True), strict=True)))

    def columns(self) -> dict[str, Tensor]:
        """Name -> ``(L, B, T)`` of all numbers that there are."""
        names = ("entropy", "kl", "agree", "rank", "logprob", *DIVERGENCES)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def totals(self) -> Totals:
        """Its means by layer, position and frequency of the token, the latter in these sequences."""
        counts = self.input_ids.flatten().cpu().bincount(minlength=self.vocabulary)
        totals = Totals(self.layers, self.vocabulary, counts, tuple(self.columns()))
        totals.update(self)
        return totals

    def to_frame(self):
        """A ``pandas.DataFrame`` with a row per sequence, position and layer.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        layers, sequences, tokens = self.entropy.shape
        places = [(b, t, n) for b in range(sequences) for t in range(tokens) for n in range(layers)]
        ids, target = self.input_ids.tolist(), self.target.tolist()
        frame = {
            "sequence": [b for b, _, _ in places],
            "position": [t for _, t, _ in places],
            "layer": [self.layers[n] for _, _, n in places],
            "token": [ids[b][t] for b, t, _ in places],
            "target": [target[b][t] for b, t, _ in places],
        }
        for name, column in {**self.columns(), "best": self.top[..., 0]}.items():
            frame[name] = column.permute(1, 2, 0).flatten().tolist()
        for name in ("token", "target", "best"):
            frame[f"{name}_text"] = [self.words.get(index, "") for index in frame[name]]
        return tables.frame(frame)

    def document(self, shown: int = SHOWN) -> dict[str, Any]:
        """What ``lens.json`` holds: means, and the first ``shown`` tokens of the first sequence one by one."""
        return document(self.totals().document(), self.example(shown), self.facts)

    def example(self, shown: int = SHOWN) -> dict[str, Any]:
        """The first ``shown`` tokens of the first sequence, one by one, as plain lists."""

        def named(ids: list) -> list:
            return [named(part) if isinstance(part, list) else self.words.get(part, "") for part in ids]

        ids, target, top = self.input_ids[0, :shown], self.target[0, :shown], self.top[:, 0, :shown]
        return {
            "layers": list(self.layers),
            "tokens": named(ids.tolist()),
            "targets": [None if index == IGNORE else self.words.get(index, "") for index in target.tolist()],
            "ids": ids.tolist(),
            "top": named(top.tolist()),
            "top_logprob": self.top_logprob[:, 0, :shown].tolist(),
            "hit": (top[..., 0] == target).tolist(),
            **{name: column[:, 0, :shown].tolist() for name, column in self.columns().items()},
        }

    def to_html(self, path: str | Path, *, title: str = "Logit lens") -> None:
        """Writes the page."""
        from ...report.page.lens import render_lens

        write_file(path, render_lens(self.document(), title=title))

    def save(self, folder: str | Path, *, title: str = "Logit lens") -> None:
        """Writes ``lens.safetensors`` with the tensors, ``lens.json`` with the means and ``lens.html``, the page.

        The tensors are called as here; the file's metadata has layers, words and facts as JSON.
        """
        from ...report.output import write_lens

        tensors = {"input_ids": self.input_ids, "target": self.target, "top": self.top, **self.columns()}
        told = {"layers": self.layers, "words": self.words, "vocabulary": self.vocabulary, "facts": self.facts}
        write_lens(self.document(), Path(folder), title, {**tensors, "top_logprob": self.top_logprob}, told)

    def _repr_html_(self) -> str:
        """The heat map of the first tokens, for a notebook."""
        from ...report.page.lens import notebook

        return notebook(self.document(), "Logit lens")
