"""Measures the token collapse of a causal language model over a corpus, a batch at a time; logits are never stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import _memory
from .._errors import CommandError
from ..decisions import DecisionStatistics
from ..report.collapse import collapse
from ..report.details import Measured, class_rows, decision_details, geometry_details, trajectory
from ..statistics import ClassStatistics
from .load import LoadedModel, body, find_head
from .windows import IGNORE, Windows, leading_bos, tokenize

PROBE_TOKENS = 8
WINDOW = 256
LAYER_METRICS = ("nc1_quotient", "nc1_cdnv", "nc2_norm_cv", "nc2_cos_mean", "nc2_cos_std", "nc2_etf_error")


def parse_layers(text: str | None, count: int) -> list[int]:
    """Layer numbers from "0,6,-1" or "all": 0 is the embedding, i the output of block i, count the last block's.

    Raises:
        CommandError: for anything else.
    """
    if not text:
        return []
    if text.strip() == "all":
        return list(range(count + 1))
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"--layers: expected numbers such as 0,6,12 or all, got {text!r}") from None
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise CommandError(f"--layers: this model has layers 0 to {count}, got {layer}")
    return sorted({layer % (count + 1) for layer in layers})


def read_windows(
    loaded: LoadedModel, texts: Iterable[Iterable[str]], *, tokens: int | None, window: int | None
) -> Windows:
    """Tokenises ``texts`` (pieces per document) until ``tokens`` tokens and cuts them into windows.

    Raises:
        CommandError: if the window does not fit the model.
    """
    config = loaded.model.config.get_text_config()
    bos = leading_bos(loaded.tokenizer)
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    longest -= bos is not None
    if window is not None and window > longest:
        raise CommandError(f"--window: this model takes {longest} tokens at most, got {window}")
    window = min(WINDOW, longest) if window is None else window

    def encode(text: str) -> Sequence[int]:
        return loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    return Windows(tokenize(texts, encode, tokens), window, bos)


class LayerStatistics:
    """Class statistics of chosen hidden layers over the classes that the train part holds.

    States of all C classes would cost 12 bytes * C * D for each layer (340 MB for a vocabulary of 49,152 and D = 576);
    the classes that occur are known from the text beforehand, and only they get a row.
    """

    def __init__(self, layers: Sequence[int], labels: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.layers = list(layers)
        self.classes = len(labels)
        self._row = torch.full((vocabulary,), IGNORE, dtype=torch.int64, device=device)
        self._row[torch.tensor(labels, dtype=torch.int64, device=device)] = torch.arange(len(labels), device=device)
        self._statistics: list[ClassStatistics] = []

    def update(self, hidden: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        rows = torch.where(labels == IGNORE, labels, self._row[labels.clamp_min(0)])
        if not self._statistics:
            self._statistics = [
                ClassStatistics(num_classes=self.classes, dim=hidden[i].shape[-1], scatter=False, device=labels.device)
                for i in self.layers
            ]
        for layer, statistics in zip(self.layers, self._statistics, strict=True):
            statistics.update(hidden[layer], rows)

    def compute(self, min_count: int) -> dict[str, Any]:
        reports = [collapse(statistics.compute(min_count=min_count)) for statistics in self._statistics]
        return trajectory("layer", self.layers, reports, LAYER_METRICS)


def token_text(tokenizer) -> Callable[[int], str]:
    """Class id -> the token's text as a reader sees it, or its raw name where it is no whole character."""

    def text(index: int) -> str:
        try:
            decoded = tokenizer.decode([index], clean_up_tokenization_spaces=False)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            decoded = ""
        if decoded == "" or "\ufffd" in decoded:
            return str(tokenizer.convert_ids_to_tokens(index) or f"#{index}")
        return decoded

    return text


@torch.no_grad()
def measure(
    loaded: LoadedModel,
    texts: Iterable[Iterable[str]],
    *,
    tokens: int | None = None,
    window: int | None = None,
    batch_size: int = 8,
    layers: str | None = None,
    min_count: int = 10,
    ignore_softcap: bool = False,
    progress: bool | None = None,
    facts: dict[str, Any] | None = None,
) -> Measured:
    """One pass over the train part for the class statistics, one over the held-out part for the decisions.

    Args:
        texts: pieces of text per document.
        tokens: tokens to read, train and held-out part together; None reads everything.
        window: tokens seen together, by default 256 or what the model takes; each token but the first of a window is
            one sample, its class is its id.
        layers: hidden layers to measure too, see `parse_layers`.
        min_count: samples in the train part that a class needs to be kept.
        progress: False hides the progress bars; None shows them on a terminal.

    Memory above the model: a batch, 12 bytes * V * D of class states, 8 * D * D of scatter, the kernels' workspace.
    """
    started = time.perf_counter()
    model, device = loaded.model, next(loaded.model.parameters()).device
    _memory.reset_peak()
    before = _memory.resident()
    depth = loaded.model.config.get_text_config().num_hidden_layers
    chosen = parse_layers(layers, depth)
    windows = read_windows(loaded, texts, tokens=tokens, window=window)
    train, held_out = windows.split()
    probe = ([windows.bos] if windows.bos is not None else []) + windows[0][:PROBE_TOKENS]
    head = find_head(model, torch.tensor([probe], device=device), ignore_softcap=ignore_softcap)
    run = body(model, head)
    vocabulary, dim = head.weight.shape
    pad = getattr(loaded.tokenizer, "pad_token_id", None) or 0

    def passes(indices: range, what: str) -> Iterable:
        bar = tqdm(total=len(indices), desc=what, unit="window", disable=None if progress is None else not progress)
        with bar:
            for batch in windows.batches(indices, batch_size, pad, device):
                yield batch
                bar.update(batch.input_ids.shape[0])

    statistics = ClassStatistics(num_classes=vocabulary, dim=dim, scatter=True, device=device)
    hidden_statistics = LayerStatistics(chosen, windows.labels_seen(train), vocabulary, device) if chosen else None
    for batch in passes(train, "train part"):
        features, hidden = run(batch.input_ids, batch.attention_mask, bool(chosen))
        statistics.update(features, batch.labels)
        if hidden_statistics is not None:
            hidden_statistics.update(hidden, batch.labels)
        del features, hidden
    geometry = statistics.compute(min_count=min_count)
    del statistics  # 340 MB for SmolLM2, not needed while the held-out part runs
    decisions = DecisionStatistics(geometry, head.weight, head.bias, scale=head.scale)
    for batch in passes(held_out, "held-out part"):
        features, _ = run(batch.input_ids, batch.attention_mask)
        decisions.update(features, batch.labels)
        del features
    report = collapse(geometry, head.weight, head.bias, decisions=decisions)
    details = geometry_details(geometry, head.weight)
    details["histograms"].update(decision_details(decisions))
    details["classes"] = class_rows(geometry, head.weight, decisions, token_text(loaded.tokenizer), noun="token")
    if hidden_statistics is not None:
        details["layers"] = hidden_statistics.compute(min_count)
    top, now = _memory.peak(), time.perf_counter()
    details["run"] = {
        **(facts or {}),
        "vocabulary": vocabulary,
        "dim": dim,
        "layers": depth,
        "dtype": str(head.weight.dtype).removeprefix("torch."),
        "device": str(device),
        "tokens": windows.tokens,
        "window": windows.size,
        "train_windows": len(train),
        "held_out_windows": len(held_out),
        "min_count": min_count,
        "logit_scale": head.scale,
        "soft_cap_ignored": head.softcap,
        "features": head.features,
        "seconds": round(now - started, 2),
        "peak_mb_above_model": None if top is None or before is None else round((top - before) / 2**20, 1),
    }
    return Measured(report, details)
