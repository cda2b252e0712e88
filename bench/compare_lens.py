"""The lens beside the plain expression, full logits of every layer in float32, on the same batch of a real model.

    python bench/compare_lens.py [--model FOLDER] [--windows 8] [--window 256] [--rounds 3]

Without ``--model`` it is SmolLM2-135M, as the demo finds it, on Python's documentation. Both read the hidden states of
a forward pass, which counts for both. They take turns, so that every ratio is one of neighbours in time; seconds are
those of the clock and, less troubled by what else the machine does, of the processor. Memory is the peak above the
loaded model, each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import ncops
from ncops import lm, memory
from ncops.demo import smollm2, text
from ncops.lm.lens.run import LayerLens
from ncops.lm.lens.stream import States
from ncops.lm.measure import probe_head, read_windows

COLUMNS = ("entropy", "kl", "agree", "rank", "logprob")


class Setting(NamedTuple):
    """A model, its lens, one batch, and the two ways to read it."""

    lens: LayerLens
    batch: lm.Batch
    features: Tensor

    def ours(self) -> dict[str, Tensor]:
        found = self.lens.read(self.batch.input_ids, self.batch.attention_mask, self.batch.labels)
        return {name: getattr(found, name) for name in COLUMNS}

    def states(self) -> tuple[Tensor, dict[int, Tensor]]:
        ids, mask = self.batch.input_ids, self.batch.attention_mask
        run = States(self.lens.stream, self.lens.layers[:-1]).run
        return run(self.lens.model, input_ids=ids, attention_mask=mask, use_cache=False)

    def plain(self) -> dict[str, Tensor]:
        """What a user writes: one layer's logits after the other, the last one's log-probabilities kept."""
        x, states = self.states()
        head, target = self.lens.model.get_output_embeddings(), self.batch.labels.clamp_min(0)[..., None]
        last = head(x)
        logp, best = last.float().log_softmax(-1), last.argmax(-1)
        found: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
        for layer in self.lens.layers:
            logits = head(x if layer == self.lens.layers[-1] else self.lens.stream.decode(states.pop(layer), x)).float()
            logq = logits.log_softmax(-1)
            found["entropy"].append(-(logq.exp() * logq).sum(-1))
            found["kl"].append((logp.exp() * (logp - logq)).sum(-1))
            found["agree"].append(logits.argmax(-1) == best)
            found["rank"].append((logits > logits.gather(-1, target)).sum(-1))
            found["logprob"].append(logq.gather(-1, target)[..., 0])
        return {name: torch.stack(values) for name, values in found.items()}

    def stats(self) -> None:
        """One product with the head."""
        head = self.lens.head
        ncops.linear_stats(
            self.features, head.weight, head.bias, self.batch.labels.reshape(-1), scale=head.scale, softcap=head.softcap
        )


@torch.no_grad()
def prepare(model: str | None, windows: int, window: int) -> Setting:
    loaded = lm.load(lm.find_source(model or smollm2.folder()))
    read = read_windows(loaded, [[text.topics()]], tokens=windows * window, window=window)
    batch = next(read.batches(range(windows), windows))
    lens = LayerLens(loaded.model, probe_head(loaded, read, False), batch.input_ids[:1, :16], "all", None, False)
    return Setting(
        lens, batch, torch.randn(batch.labels.numel(), lens.head.weight.shape[1], dtype=lens.head.weight.dtype)
    )


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def peak(arguments: tuple, name: str) -> float | None:
    """Megabytes of one contestant above the loaded model, in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, arguments, name, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


@torch.no_grad()
def _child(sender, arguments: tuple, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    setting = prepare(*arguments)
    ids, mask, labels, windows = setting.batch
    small = setting._replace(batch=lm.Batch(ids[:1, :8], mask[:1, :8], labels[:1, :8], windows[:1]))
    getattr(small, name)()  # loads code
    before = memory.resident() if memory.reset_peak() else None
    getattr(setting, name)()
    sender.send(None if before is None else (memory.peak() - before) / 1e6)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal language model")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    arguments = given.model, given.windows, given.window
    setting = prepare(*arguments)
    ours, plain = setting.ours(), setting.plain()
    known = setting.batch.labels >= 0
    layers, rows = len(setting.lens.layers), known.numel()
    name, (classes, dim) = Path(given.model or smollm2.folder()).name, setting.lens.head.weight.shape
    print(
        f"{name}: {layers} layers, {rows} tokens, V={classes}, D={dim}, {torch.get_num_threads()} threads, "
        f"{ncops.backends.choose('linear_stats', 'cpu')} kernels, torch {torch.__version__}"
    )
    for name in COLUMNS:
        a, b = (found[name][:, known].double() for found in (ours, plain))
        print(
            f"  {name:8} largest difference {float((a - b).abs().max()):.2e} of values up to {float(b.abs().max()):.3g}"
        )
    rounds = [
        {n: timed(getattr(setting, n)) for n in ("ours", "plain", "states", "stats")} for _ in range(given.rounds)
    ]
    for kind, of in (("clock", 0), ("processor", 1)):
        middle = {name: statistics.median(r[name][of] for r in rounds) for name in rounds[0]}
        faster = statistics.median(r["plain"][of] / r["ours"][of] for r in rounds)
        share = statistics.median(layers * r["stats"][of] / (r["ours"][of] - r["states"][of]) for r in rounds)
        print(
            f"  {kind:9}: ours {middle['ours']:.2f} s, plain {middle['plain']:.2f} s, the forward pass in both "
            f"{middle['states']:.2f} s: {faster:.2f}x; statistics at {share:.2f} of the rate of linear_stats"
        )
    ours_mb, plain_mb = peak(arguments, "ours"), peak(arguments, "plain")
    if ours_mb is not None and plain_mb is not None:
        print(f"  memory   : ours {ours_mb:.0f} MB, plain {plain_mb:.0f} MB: {ours_mb / plain_mb:.3f} of it")


if __name__ == "__main__":
    main()
