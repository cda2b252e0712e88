"""Measures the token collapse of a causal language model over a corpus, a batch at a time; logits are never stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import memory
from ..errors import CommandError
from ..measuring.saved import describe, same_model
from ..metrics.table import LAYERS, shown_in
from ..model import identity, text_config
from ..report.collapse import CollapseReport
from ..report.measured import Measured, assemble
from ..report.stored import CLASSES, DECISIONS
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.files import save_statistics
from ..stats.state import StreamingState
from .collect import Corpus, LayerStatistics, Pass
from .head import Head, find_head
from .load import LoadedModel, words
from .progress import Progress, signature
from .ranks import Ranks
from .token_rows import token_rows
from .windows import Windows, encoder, leading_bos, separator, tokenize

PROBE_TOKENS = 16
WINDOW = 256


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
    loaded: LoadedModel,
    texts: Iterable[Iterable[str]],
    *,
    held_out: Iterable[Iterable[str]] | None = None,
    tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    documents: str = "separate",
) -> Windows:
    """Tokenises ``texts`` (pieces per document) and cuts them into windows.

    Args:
        held_out: the texts of the held-out part, all of which is read; by default it is the last windows of ``texts``.
        tokens: how many to read of ``texts``; None reads everything.
        window: tokens seen together, by default 256 or what the model takes. stride: tokens from the start of one
            window to the next, by default as many: what an earlier window has scored is context that is not scored.
        bos: whether every window gets a BOS in front: ``"auto"`` (where the tokenizer puts one), ``"always"``,
            ``"never"``.
        documents: ``"separate"``, or ``"packed"``: joined by the tokenizer's EOS, so that all windows but the last are
            full.

    Raises:
        CommandError: if the window does not fit the model, the stride the window, or a special token is missing.
    """
    config, tokenizer = text_config(loaded), loaded.tokenizer
    lead, eos = leading_bos(tokenizer, bos), separator(tokenizer, documents)
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    longest = 2**31 if longest < 0 else longest - (lead is not None)  # -1: no bound
    if window is not None and window > longest:
        raise CommandError(f"--window: this model takes {longest} tokens at most, got {window}")
    window = min(WINDOW, longest) if window is None else window
    if stride is not None and stride > window:
        raise CommandError(f"--stride: expected at most the {window} tokens of a window, got {stride}")
    encode = encoder(tokenizer)
    others = None if held_out is None else tokenize(held_out, encode)
    return Windows(tokenize(texts, encode, tokens), window, lead, stride=stride, eos=eos, held_out=others)


def token_text(tokenizer: Any, index: int) -> str:
    """A token's text as a reader sees it, or its raw name where it is no whole character."""
    try:
        decoded = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        decoded = ""
    if decoded == "" or "\ufffd" in decoded:
        return str(tokenizer.convert_ids_to_tokens(index) or f"#{index}")
    return decoded


def check_given(
    given: ClassStatistics, theirs: Mapping[str, str] | None, ours: Mapping[str, str], weight: torch.Tensor
) -> None:
    """Raises CommandError for class statistics of another model: other sizes, or parameters of other bits."""
    if (given.num_classes, given.dim) != tuple(weight.shape):
        raise CommandError(
            f"--statistics: expected {weight.shape[0]} classes in {weight.shape[1]} dimensions, as this model has, "
            f"got {given.num_classes} in {given.dim}"
        )
    if not same_model(ours, theirs):
        raise CommandError(
            f"--statistics: expected those of this model, {describe(ours)}, got those of {describe(theirs)}"
        )


@torch.no_grad()
def measure(
    loaded: LoadedModel,
    texts: Iterable[Iterable[str]],
    *,
    batch_size: int = 8,
    layers: str | None = None,
    min_count: int = 10,
    ignore_softcap: bool = False,
    progress: bool | None = None,
    facts: dict[str, Any] | None = None,
    given: ClassStatistics | None = None,
    given_origin: Mapping[str, str] | None = None,
    save: Path | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
    tokens_csv: Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008
    **reading: Any,
) -> Measured | None:
    """One pass over the train part for the class statistics, one over the held-out part for the decisions.

    Args:
        texts: pieces of text per document; each token that a window scores is one sample, its class is its id.
        layers: hidden layers to measure too, see `parse_layers`.
        min_count: samples in the train part that a class needs to be kept.
        progress: False hides the progress bars; None shows them on a terminal.
        given: class statistics of an earlier pass; then there is no train part, all of the text is held out.
        given_origin: the model they were made with, as their file says; None where it does not.
        save: folder for the statistics of both parts, as files that ``ncops merge`` and ``ncops.load`` read.
        checkpoint: folder that keeps the place every ``every`` batches; a run that finds its own place there goes on.
        tokens_csv: file for a row of each scored token of the held-out part, see :mod:`.token_rows`; that part is then
            read from its beginning, whatever ``checkpoint`` holds.
        ranks: the processes of this run; windows are dealt out to them, statistics are summed.
        reading: ``held_out``, ``tokens``, ``window``, ``stride``, ``bos``, ``documents`` of :func:`read_windows`.

    Memory above the model: a batch, 12 bytes * V * D of class states, 8 * D * D of scatter, the kernels' workspace.

    Returns:
        The report, on rank 0; None on the others.

    Raises:
        CommandError: statistics of another model, text or a window that does not fit, no linear classifier.
    """
    depth = text_config(loaded).num_hidden_layers
    chosen = parse_layers(layers, depth)
    if tokens_csv is not None and ranks.size > 1:
        raise CommandError(f"--tokens-csv: written by one process, got {ranks.size}: run it without torchrun")
    windows = read_windows(loaded, texts, **reading)
    train, held_out = windows.split() if given is None else (range(0), range(len(windows)))
    model = loaded.model  # loaded only now that what is cheap to check has been checked
    cost = memory.Cost()
    head = probe_head(loaded, windows, ignore_softcap)
    corpus = Corpus(loaded, head, windows, batch_size, ranks, progress)
    run = signature(
        {
            "window": windows.size, "stride": windows.stride, "BOS": windows.bos, "separator of documents": windows.eos,
            "text": windows.fingerprint_bytes(), "model": identity(model).encode(), "batch size": batch_size,
            "layers": chosen, "min count": min_count, "number of processes": ranks.size,
            "--ignore-softcap": ignore_softcap, "statistics": None if given is None else given.sqnorms,
        }
    )  # fmt: skip
    place = Progress(checkpoint, every, run, ranks)
    model_name = (facts or {}).get("model_name", type(model).__name__)
    dtype = str(head.weight.dtype).removeprefix("torch.")
    origin = {"model": model_name, "dtype": dtype, "parameters": run["model"], **signature({"classifier": head.weight})}

    def keep(name: str, statistics: StreamingState) -> None:
        if save is not None and ranks.speaks:
            save_statistics(save / name, statistics, origin)

    parts = {}
    if given is None:
        given, hidden = _train_part(corpus, head, train, chosen, place)
        keep(CLASSES, given)
        if hidden is not None and ranks.speaks:
            parts["layers"] = hidden.compute(min_count, shown_in(LAYERS))
    else:
        check_given(given, given_origin, origin, head.weight)
    geometry = given.to(corpus.device).compute(min_count=min_count)
    del given  # 340 MB for SmolLM2, not needed while the held-out part runs
    decisions = DecisionStatistics(geometry, head.weight, head.bias, scale=head.scale, softcap=head.softcap)
    text = partial(token_text, loaded.tokenizer)
    with token_rows(tokens_csv, windows, text) as rows:
        place = place if rows is None else Progress(None, every, run, ranks)
        corpus.run(held_out, Pass("held-out", "decisions", decisions, rows=rows), place)
    keep(DECISIONS, decisions)
    if not ranks.speaks:
        return None
    num_bytes = windows.num_bytes(held_out)
    measured = assemble(
        geometry, head.weight, head.bias, decisions, text=text, noun="token", **parts,
        notes=head.remarks() or None,
        facts={
            **(facts or {}),
            **loaded.facts(),
            "vocabulary": head.weight.shape[0],
            "dim": geometry.dim,
            "layers": depth,
            "dtype": dtype,
            "device": str(corpus.device),
            "tokens": windows.tokens,
            "window": windows.size,
            "stride": windows.stride,
            "bos": reading.get("bos", "auto"),
            "bos_token": None if windows.bos is None else text(windows.bos),
            "documents": reading.get("documents", "separate"),
            "train_windows": len(train),
            "train_documents": windows.num_documents(train),
            "held_out_windows": len(held_out),
            "held_out_documents": windows.num_documents(held_out),
            "scored_tokens": windows.num_scored(held_out),
            "scored_bytes": num_bytes,
            "decisions_on": "held-out windows",
            "processes": ranks.size,
            "min_count": min_count,
            "logit_scale": head.scale,
            "soft_cap": head.softcap,
            "soft_cap_ignored": head.ignored,
            "stated_nowhere": ", ".join(head.fitted) or None,
            "features": head.features,
        },
    )  # fmt: skip
    add_text_metrics(measured.report, num_bytes)
    measured.details["run"] |= cost.facts()
    return measured


def add_text_metrics(report: CollapseReport, num_bytes: int | None) -> None:
    """Perplexity and bits per byte from the mean NLL; ``num_bytes`` of text have the tokens that it is of."""
    nll, rows, note = report["nll"], report.coverage["decision_samples"], report.notes.get("nll")
    report.add("perplexity", math.exp(nll) if nll < 709 else nll + math.inf, note)
    if report.coverage["decision_skipped_rows"]:
        num_bytes, note = None, "NaN: some tokens have logits that are not finite, and no NLL"
    elif num_bytes is None:
        note = "NaN: this tokenizer does not tell which text a token stands for"
    elif num_bytes == 0:
        note = "NaN: the scored tokens stand for no text"
    report.add("bits_per_byte", nll * rows / (math.log(2) * num_bytes) if num_bytes else math.nan, note)


def probe_head(loaded: LoadedModel, windows: Windows, ignore_softcap: bool) -> Head:
    """The classifier of the model, proved on the first tokens of the text.

    Raises:
        CommandError: as :func:`find_head`; also where the model has no row for a token, or does not run.
    """
    model = loaded.model
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and windows.largest >= rows:
        raise CommandError(
            f"MODEL: its tokenizer gives the id {windows.largest}, and its embedding has {rows} rows: tokenizer and "
            "model do not belong together"
        )
    tokens = ([windows.bos] if windows.bos is not None else []) + windows[0][:PROBE_TOKENS]
    parameter = next(model.parameters())
    try:
        return find_head(model, torch.tensor([tokens], device=parameter.device), ignore_softcap=ignore_softcap)
    except CommandError:
        raise
    except Exception as error:  # of any kind: what runs is not ours
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise CommandError(
            f"MODEL: {type(model).__name__} does not run on {len(tokens)} tokens in {dtype}: {words(error)}"
        ) from error


def _train_part(
    corpus: Corpus, head: Head, train: range, chosen: Sequence[int], place: Progress
) -> tuple[ClassStatistics, LayerStatistics | None]:
    vocabulary, dim = head.weight.shape
    statistics = ClassStatistics(num_classes=vocabulary, dim=dim, scatter=True, device=corpus.device)
    layers = None
    if chosen:
        _, hidden = corpus.features(next(corpus.windows.batches(range(1), 1, corpus.device)), True)
        other = next((state for state in hidden or () if state.dim() != 3), None)
        if not hidden or other is not None:
            got = "none" if not hidden else f"shape {tuple(other.shape)}"
            raise CommandError(f"--layers: expected hidden states of shape (batch, tokens, dim), got {got}")
        layers = LayerStatistics(chosen, corpus.windows.labels_seen(train), vocabulary, hidden)
    corpus.run(train, Pass("train", "classes", statistics, layers), place)
    return statistics, layers
