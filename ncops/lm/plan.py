"""What a job of any size will take, found by running a few batches of it: time, memory, traffic and disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import memory
from ..errors import CommandError
from ..model import identity, text_config
from ..report.measured import assemble
from ..stats.classes import ClassStatistics
from ..stats.decisions import DecisionStatistics
from ..stats.state import StreamingState
from .collect import Corpus, Pass
from .head import Head
from .load import LoadedModel
from .measure import probe_head, read_windows
from .ranks import Ranks
from .windows import HELD_OUT, Batch, Windows, encoder, leading_bos

SAMPLE_TOKENS = 1 << 19
"""Text for the batches that are run, at most."""


@dataclass(frozen=True)
class Plan:
    """What a job takes. Seconds are those of one rank, all of which run side by side; bytes are those of one rank.

    Attributes:
        tokens, ranks, window, batch_size: the job. kept: classes that will be kept, as far as the text tells.
        seconds: by part: ``"load"``, ``"tokenize"`` (every rank reads all of the text), ``"prove"`` the model, the
            ``"train"`` pass and the ``"held-out"`` pass, ``"report"``. Starting Python and the network are not in it.
        tokens_per_second: of one rank, by pass.
        memory: ``"model"``, ``"statistics"``, ``"batch"`` (what comes and goes), ``"text"`` (token ids).
        traffic: sent by each rank over the whole job. disk: ``"save"`` and ``"checkpoint"``, of all ranks, the latter
            twice while a checkpoint takes the place of the one before.
        writes: checkpoints that each rank writes.
    """

    tokens: int
    ranks: int
    window: int
    batch_size: int
    kept: int
    seconds: dict[str, float]
    tokens_per_second: dict[str, float]
    memory: dict[str, int]
    traffic: int
    disk: dict[str, int]
    writes: int

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_seconds": self.total_seconds, "total_memory": sum(self.memory.values())}


class Clock:
    """Seconds of calls; on a GPU until they have run."""

    def __init__(self, device: torch.device) -> None:
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __call__(self, run: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        begin = time.perf_counter()
        result = run()
        self._wait()
        return time.perf_counter() - begin, result

    def per_token(self, run: Callable[[Batch], Any], batches: Iterator[Batch], budget: float) -> float:
        """Of batches until the budget is spent, three at least, after one that warms up."""
        run(next(batches))
        spent, tokens, count = 0.0, 0, 0
        for batch in batches:
            seconds, _ = self(lambda batch=batch: run(batch))
            spent, tokens, count = spent + seconds, tokens + batch.input_ids.numel(), count + 1
            if count >= 3 and spent >= budget:
                break
        return spent / tokens


def zipf_documents(vocabulary: int, tokens: int) -> list[list[int]]:
    """Token ids as frequent as words are, the c-th in proportion to 1 / (c + 2.7), where there is no text."""
    frequencies = 1 / (torch.arange(vocabulary, dtype=torch.float64) + 2.7)
    ids = torch.multinomial(frequencies, tokens, replacement=True, generator=torch.Generator().manual_seed(0))
    return [ids.tolist()]


def expected_kept(frequencies: Tensor, tokens: float, min_count: int) -> int:
    """How many classes will be seen ``min_count`` times and more among so many tokens: Poisson counts."""
    expected = frequencies.double() / frequencies.sum() * tokens
    least = torch.full_like(expected, float(min_count))
    return max(1, round(float(torch.special.gammainc(least, expected.clamp_min(1e-30)).sum())))


def operations(model: nn.Module, head: Head, window: int, kept: int) -> dict[str, float]:
    """Floating-point operations of products per token, by pass; experts count as if all of them ran."""
    config, (vocabulary, dim) = text_config(model), head.weight.shape
    tables = {p.data_ptr(): p.numel() for p in (model.get_input_embeddings().weight, head.weight)}
    body = sum(p.numel() for p in model.parameters()) - sum(tables.values())
    attention = 2 * config.num_hidden_layers * config.hidden_size * window  # two products with half of a window
    forward = 2.0 * body + attention
    return {"train": forward + 2 * dim * dim, "held-out": forward + 2 * (vocabulary + kept) * dim}


def _bytes(states: Iterable[StreamingState]) -> int:
    return sum(t.nbytes for state in states for t in state.tensors().values())


@torch.no_grad()
def plan(
    loaded: LoadedModel,
    tokens: int,
    *,
    texts: Iterable[Iterable[str]] | None = None,
    ranks: int = 1,
    window: int | None = None,
    batch_size: int = 8,
    min_count: int = 10,
    every: int = 100,
    seconds: float = 20.0,
    flops: float | None = None,
) -> Plan:
    """Predicts what :func:`measure` takes for ``tokens`` tokens on ``ranks`` machines like this one.

    The model is loaded, and a few batches of both passes run. What grows with the tokens is scaled up; the report is
    made once, of as many classes as will be kept.

    Args:
        texts: a sample of the text; None takes token ids that are as frequent as words are.
        window, batch_size, min_count, every: as :func:`measure` takes them. ranks: processes.
        seconds: to spend on the two passes, about.
        flops: operations that the products of another machine do in a second, by which :func:`operations` are divided
            instead of measuring the passes.

    Raises:
        CommandError: as :func:`measure` raises it.
    """
    begin = time.perf_counter()
    resident = memory.resident() or 0
    model = loaded.model
    parts = {"load": time.perf_counter() - begin}
    model_bytes = sum(p.nbytes for p in model.parameters())
    clock = Clock(next(model.parameters()).device)

    sample = read_windows(loaded, texts or [], tokens=SAMPLE_TOKENS, window=window)
    if texts is None:
        vocabulary = model.get_input_embeddings().num_embeddings
        documents = zipf_documents(vocabulary, SAMPLE_TOKENS)
        sample = Windows(documents, sample.size, leading_bos(loaded.tokenizer))
    if len(sample) < 8:
        raise CommandError(f"--text: expected 8 windows of {sample.size} tokens for a sample, got {len(sample)}")
    parts["tokenize"] = _tokenize_seconds(loaded, sample) * tokens
    parts["prove"], head = clock(lambda: probe_head(loaded, sample, False))
    parts["prove"] += clock(lambda: identity(model))[0]
    corpus = Corpus(loaded, head, sample, batch_size, Ranks(), False)
    size, dim = head.weight.shape
    frequencies = sample.counts(size)
    train = tokens * (1 - HELD_OUT)
    kept = expected_kept(frequencies, train, min_count)

    def batches() -> Iterator[Batch]:
        while True:
            yield from (batch for _, batch in corpus.batches(range(len(sample)), "sample"))

    before = memory.resident() or 0
    memory.reset_peak()
    classes = ClassStatistics(size, dim, scatter=True, device=corpus.device)
    into = Pass("train", "classes", classes)
    rates = {"train": clock.per_token(lambda b: into.update(*corpus.features(b, False), b), batches(), seconds / 2)}
    most_frequent = frequencies.argsort(descending=True)[:kept].to(corpus.device)
    classes.reset()
    features = torch.randn(kept, dim, generator=torch.Generator().manual_seed(0)).to(corpus.device, head.weight.dtype)
    classes.update(features, most_frequent)
    closing, geometry = clock(lambda: classes.compute(min_count=1))
    decisions = DecisionStatistics(geometry, head.weight, head.bias, scale=head.scale, softcap=head.softcap)
    into = Pass("held-out", "decisions", decisions)
    rates["held-out"] = clock.per_token(lambda b: into.update(*corpus.features(b, False), b), batches(), seconds / 2)
    report, _ = clock(lambda: assemble(geometry, head.weight, head.bias, decisions, facts={}))
    state, saved = _bytes((classes,)), _bytes((classes, decisions))
    states = saved + sum(t.nbytes for t in vars(geometry).values() if isinstance(t, Tensor))
    if flops is not None:
        rates = {name: work / flops for name, work in operations(model, head, sample.size, kept).items()}
    peak = (memory.peak() or before) - before
    share = {"train": train, "held-out": tokens * HELD_OUT}
    parts |= {name: rate * share[name] / ranks for name, rate in rates.items()}
    parts["report"] = closing + report
    batches_of_rank = train / ranks / (batch_size * sample.size)
    moved = (2 * (ranks - 1) / ranks) * saved
    return Plan(
        tokens=tokens,
        ranks=ranks,
        window=sample.size,
        batch_size=batch_size,
        kept=kept,
        seconds=parts,
        tokens_per_second={name: 1 / rate for name, rate in rates.items()},
        memory={
            "model": max(model_bytes, before - resident),
            "statistics": states,
            "batch": max(0, peak - states),
            "text": round(4 * tokens + 40 * tokens / sample.size),
        },
        traffic=round(moved),
        disk={"save": saved, "checkpoint": state * ranks},
        writes=max(1, round(batches_of_rank / every)),
    )


def _tokenize_seconds(loaded: LoadedModel, sample: Windows) -> float:
    """Per token, of text that these windows stand for."""
    texts: Sequence[str] = [loaded.tokenizer.decode(sample[i]) for i in range(min(64, len(sample)))]
    encode, text = encoder(loaded.tokenizer), "\n".join(texts)
    encode(text[:1000])
    begin = time.perf_counter()
    read = len(encode(text).ids)
    return (time.perf_counter() - begin) / max(1, read)
