"""A two-layer causal language model trained from nothing until it knows its text by heart: collapse, live."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CommandError
from ..report.measured import Measured
from . import text as corpus
from .checkpoints import Watch, schedule

VOCABULARY, DIM, HEADS, LAYERS, WINDOW, BATCH = 1024, 128, 4, 2, 64, 32
PEAK_RATE = 3e-3
MIN_COUNT = 1  # nothing is left out: the nearest mean can be right on every training token
HELD_OUT_TOKENS = 4096


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, DIM))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TinyLM(nn.Module):
    """Token ids (B, T) to features (B, T, DIM); ``head`` is its classifier, untied and without bias."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, DIM), nn.Embedding(WINDOW, DIM)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.tokens(ids) + self.places.weight[: ids.shape[1]]))


def _windows(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and next tokens (n, WINDOW)."""
    count = (len(ids) - 1) // WINDOW
    data = torch.tensor(ids[: count * WINDOW + 1])
    return data[:-1].view(count, WINDOW), data[1:].view(count, WINDOW)


def run(*, tokens: int = 16384, steps: int = 800, seed: int = 0, quiet: bool = False) -> tuple[Measured, str]:
    """Trains and measures; returns the last checkpoint's report and its title.

    Raises:
        CommandError: if the text has fewer tokens than asked for.
    """
    started = time.perf_counter()
    prose = corpus.topics()
    vocabulary = corpus.byte_pairs(prose, VOCABULARY)
    ids = vocabulary.encode(prose)
    if len(ids) < tokens + 1 + HELD_OUT_TOKENS:
        raise CommandError(
            f"--tokens: the text has {len(ids) - HELD_OUT_TOKENS - 1:,} tokens to train on, got {tokens:,}"
        )
    inputs, targets = _windows(ids[: tokens + 1])
    held = _windows(ids[tokens + 1 : tokens + 1 + HELD_OUT_TOKENS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLM(vocabulary.size)
        watch = Watch(
            f"A tiny language model learns {inputs.numel():,} tokens by heart", "step",
            lambda: _features(model, inputs, targets), lambda: _features(model, *held),
            lambda: (model.head.weight.detach(), None),
            vocabulary.size, MIN_COUNT, quiet,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
        batches = _batches(len(inputs))

        def losses() -> Iterator[torch.Tensor]:
            rows = next(batches)
            logits = model.head(model(inputs[rows]))
            yield F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())

        watch.fit(optimizer, rates, losses, schedule(steps))
    facts = {
        "model_name": f"{LAYERS} layers, width {DIM}, {HEADS} heads, trained here from random weights",
        "data": corpus.NAME,
        "vocabulary": vocabulary.size,
        "tokenizer": vocabulary.kind,
        "train_tokens": inputs.numel(),
        "held_out_tokens": held[0].numel(),
        "steps": steps,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return watch.measured(vocabulary.name, "token", facts), "Token collapse of a tiny language model, step by step"


@torch.no_grad()
def _features(
    model: TinyLM, inputs: torch.Tensor, targets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, len(inputs), BATCH):
        yield model(inputs[start : start + BATCH]), targets[start : start + BATCH]


def _batches(count: int) -> Iterator[torch.Tensor]:
    while True:
        yield from torch.randperm(count).split(BATCH)
