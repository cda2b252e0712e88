"""Runs a lens: over sequences in memory, token by token, or over a corpus on disk, for its means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import memory
from ...model import evaluating, text_config
from ...ops import linear_topk
from ...report.lens import SHOWN, document
from ...report.provenance import provenance
from ..collect import Corpus
from ..head import Head, find_head
from ..load import LoadedModel
from ..measure import PROBE_TOKENS, parse_layers, probe_head, read_windows, token_text
from ..ranks import Ranks
from ..windows import IGNORE
from .columns import DIVERGENCES, Reference
from .result import Lens
from .stream import States, find_stream
from .totals import Totals
from .translators import read_translators, translate

TOGETHER = 2048
"""Rows that meet the head at once, of several layers where batches are small: 0.92 of the time with 512."""


class LayerLens:
    """A model, its head, its stream and its translators, ready to read sequences.

    Args:
        ids: ``(1, T)`` some tokens, T small, on which all is proved. layers, translators, divergences: as :func:`lens`
            takes them.

    Raises:
        CommandError: blocks or tail that are not found, translators that do not fit.
    """

    def __init__(
        self, model: nn.Module, head: Head, ids: Tensor, layers: str | Sequence[int], translators: str | Path | None,
        divergences: bool,
    ) -> None:  # fmt: skip
        self.model, self.head, self.divergences = model, head, divergences
        self.stream = find_stream(model, ids)
        last = len(self.stream.blocks)
        text = layers if isinstance(layers, str) else ",".join(map(str, layers))
        self.layers = tuple(sorted({*parse_layers(text, last), last}))
        self._states = States(self.stream, self.layers[:-1])
        self._translators = {}
        if translators is not None:
            _, states = States(self.stream, [last]).run(model, input_ids=ids, use_cache=False)
            self._translators = read_translators(translators, self.layers, last, states[last])
        self.facts = {
            "model_name": type(model).__name__,
            "vocabulary": head.weight.shape[0],
            "dim": head.weight.shape[1],
            "blocks": last,
            "through": self.stream.words,
            "translators": None if translators is None else str(translators),
            "logit_scale": head.scale,
            "softcap": head.softcap,
            "dtype": str(head.weight.dtype).removeprefix("torch."),
            "device": str(head.weight.device),
            **provenance(head.weight.device, head.weight.dtype),
        }

    def read(self, input_ids: Tensor, attention_mask: Tensor, target: Tensor, choices: int = 1) -> Lens:
        """All layers of one batch ``(B, T)``, whose states are held together; logits are not."""
        first, last = next(self.model.parameters()).device, self.head.weight.device  # of a model on several devices
        x, states = self._states.run(
            self.model, input_ids=input_ids.to(first), attention_mask=attention_mask.to(first), use_cache=False
        )
        flat, target = x.reshape(-1, x.shape[-1]).to(last), target.to(last)
        reference = Reference(flat, self.head, target.reshape(-1), IGNORE, self.divergences)
        columns, tops = [], []

        def entering() -> Iterator[Tensor]:
            step = max(1, TOGETHER // flat.shape[0])
            for start in range(0, len(self.layers) - 1, step):
                some = self.layers[:-1][start : start + step]
                yield torch.stack([self._entering(layer, states.pop(layer), flat) for layer in some])
            yield flat

        for y in entering():
            columns.append(reference.own() if y is flat else reference.columns(y))
            if choices > 1:
                head = self.head
                found = linear_topk(y, head.weight, head.bias, k=choices, scale=head.scale, softcap=head.softcap)
                tops.append((found.indices, found.logprob))
            else:
                tops.append((columns[-1].best[..., None], columns[-1].best_logprob[..., None]))
        shape = len(self.layers), *input_ids.shape

        def whole(name: str) -> Tensor | None:
            if getattr(columns[0], name) is None:
                return None
            return torch.cat([getattr(found, name).flatten() for found in columns]).reshape(shape)

        top, top_logprob = (
            torch.cat([part.flatten(0, -2) for part in parts]).reshape(*shape, -1) for parts in zip(*tops, strict=True)
        )
        return Lens(
            layers=self.layers, input_ids=input_ids, target=target, top=top, top_logprob=top_logprob, words={},
            vocabulary=self.head.weight.shape[0], facts=self.facts,
            **{name: whole(name) for name in ("entropy", "kl", "agree", "rank", "logprob", *DIVERGENCES)},
        )  # fmt: skip

    def _entering(self, layer: int, state: Tensor, like: Tensor) -> Tensor:
        """What enters the head where ``layer`` is the last one: rows (B T, D)."""
        if layer in self._translators:
            state = translate(state, self._translators[layer])
        return self.stream.decode(state, like).reshape(like.shape)


def lens(
    model: nn.Module,
    text: str | Tensor,
    *,
    tokenizer: Any = None,
    layers: str | Sequence[int] = "all",
    translators: str | Path | None = None,
    divergences: bool = False,
    top: int = 5,
    batch_size: int = 8,
) -> Lens:
    """What every layer of a causal language model would say next, read through its own last norm and unembedding.

    Where the layers are, which modules lie between the last of them and the head, and that the head is linear in what
    they make (up to a soft cap), is found on the first tokens and proved against the model's own logits. Nothing N x V
    exists: beside the model, memory holds the states of ``batch_size`` sequences.

    Args:
        model: a causal language model as transformers has them, on any device, in any dtype; its mode is left as it is.
        text: a text, or token ids ``(T,)`` or ``(B, T)``, B sequences of equal length without padding.
        tokenizer: the model's, which a text needs, and the names of tokens in tables and on the page.
        layers: ``"all"`` or numbers: 0 is what enters the first block, i what leaves block i, -1 the last, which is
            always among them.
        translators: a file with the affine maps of a tuned lens (docs/lens.md).
        divergences: form reverse KL, Jensen-Shannon divergence and overlap too, and the KL with all its digits, for two
            more products with the head per layer.
        top: how many of each layer's most likely tokens to keep; from 2 on they take one more product per layer.
        batch_size: sequences at a time.

    Returns:
        :class:`ncops.Lens`.

    Raises:
        ValueError: ids of another shape, a text without a tokenizer, an empty one; a ``top`` outside [1, V].
        CommandError: a model whose head is not linear, or whose layers cannot be read like its last one; translators or
            layers that it does not have.
    """
    ids = _ids(model, text, tokenizer)
    with evaluating(model):
        probe = ids[:1, :PROBE_TOKENS]
        made = LayerLens(model, find_head(model, probe), probe, layers, translators, divergences)
        if not 1 <= top <= made.head.weight.shape[0]:
            raise ValueError(f"top: expected 1 to {made.head.weight.shape[0]}, got {top}")
        parts = []
        for rows in ids.split(batch_size):
            target = torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], IGNORE)], 1)
            parts.append(made.read(rows, torch.ones_like(rows), target, top))
    found = Lens.joined(parts)
    shown = {*ids.flatten().tolist(), *found.top.flatten().tolist()}
    words = {i: f"#{i}" if tokenizer is None else token_text(tokenizer, i) for i in sorted(shown) if i >= 0}
    return found._replace(words=words)


def _ids(model: nn.Module, text: str | Tensor, tokenizer: Any) -> Tensor:
    """Token ids (B, T) on the model's device."""
    if isinstance(text, str):
        if tokenizer is None:
            raise ValueError("tokenizer: expected the model's for a text, got None; token ids need none")
        text = torch.tensor([tokenizer(text)["input_ids"]], dtype=torch.int64)
    if not isinstance(text, Tensor) or text.is_floating_point() or text.ndim not in (1, 2) or text.numel() == 0:
        got = f"{text.dtype} of shape {tuple(text.shape)}" if isinstance(text, Tensor) else type(text).__name__
        raise ValueError(f"text: expected a text or integer token ids (T,) or (B, T), at least one, got {got}")
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if int(text.min()) < 0 or rows is not None and int(text.max()) >= rows:
        raise ValueError(f"text: expected token ids from 0 to {rows - 1}, got {int(text.min())} to {int(text.max())}")
    return text.reshape(-1, text.shape[-1]).to(next(model.parameters()).device, torch.int64)


@torch.no_grad()
def measure_lens(
    loaded: LoadedModel,
    texts: Iterable[Iterable[str]],
    *,
    batch_size: int = 8,
    layers: str = "all",
    translators: Path | None = None,
    divergences: bool = False,
    examples: int = SHOWN,
    top: int = 5,
    progress: bool | None = None,
    facts: Mapping[str, Any] | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """The means over a corpus, and the first ``examples`` tokens of it one by one, as ``lens.json`` has them.

    Memory above the model: the states of a batch at the chosen layers, 8 bytes * layers * V of ranks, the kernels'
    workspace.

    Args:
        texts, batch_size, progress, facts: as :func:`ncops.lm.measure` takes them.
        layers, translators, divergences, top: as :func:`lens` takes them.
        reading: ``tokens``, ``window``: how the text is read and cut, as :func:`ncops.lm.measure` takes it.

    Raises:
        CommandError: as :func:`lens`; text or a window that does not fit.
    """
    depth = getattr(text_config(loaded), "num_hidden_layers", None)
    if depth is not None:
        parse_layers(layers, depth)  # before minutes are spent on loading
    windows = read_windows(loaded, texts, **{"tokens": None, "window": None, **reading})
    model = loaded.model
    cost = memory.Cost()
    head = probe_head(loaded, windows, False)
    corpus = Corpus(loaded, head, windows, batch_size, Ranks(), progress)
    first = next(windows.batches(range(1), 1, corpus.device))
    made = LayerLens(model, head, first.input_ids[:, :PROBE_TOKENS], layers, translators, divergences)
    cut = (part[:, :examples] for part in (first.input_ids, first.attention_mask, first.labels))
    shown = made.read(*cut, min(top, head.weight.shape[0]))
    named = {*shown.input_ids.flatten().tolist(), *shown.target.flatten().tolist(), *shown.top.flatten().tolist()}
    words = {i: token_text(loaded.tokenizer, i) for i in named if i >= 0}
    vocabulary = head.weight.shape[0]
    totals = Totals(made.layers, vocabulary, windows.counts(vocabulary), tuple(shown.columns()))
    for _, batch in corpus.batches(range(len(windows)), "lens"):
        totals.update(made.read(batch.input_ids, batch.attention_mask, batch.labels))
    run = {
        **made.facts,
        **(facts or {}),
        **loaded.facts(),
        "tokens": windows.tokens,
        "window": windows.size,
        "windows": len(windows),
        **cost.facts(),
    }
    return document(totals.document(), shown._replace(words=words).example(examples), run)
