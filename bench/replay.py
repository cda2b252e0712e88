"""The statistics part of a study of language models, replayed at its size: 469.5 million rows of 50,257 classes.

    python bench/replay.py [--rows 469514249] [--dim 1024] [--classes 50257] [--batch 1048576] [--dtype float32]

Class means and variances by ncops.ClassStatistics, batch after batch, as a training job would. An update reads, keeps
and writes the sums of every class in it, 8 bytes a number: with so many classes, batches are large. Features are
synthetic and so cheap that making them is not the time: one block of rows in memory, larger than any cache, whose
labels (Zipf) are turned by another amount in every step. So every class's exact mean is known, and some are held
against it.

The rate is that of the features' bytes, beside the rate at which this machine reads memory, measured in between.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm

import ncops
from ncops import memory
from ncops.backends import native
from ncops.bench import case
from ncops.bench.limits import limits

READ_EVERY = 16
"""Updates between measurements of the rate of reading, which moves by a third within minutes where others read too."""


def seconds_of(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def worst_error(
    geometry: ncops.ClassGeometry, x: torch.Tensor, labels: torch.Tensor, parts: list[tuple[int, int]]
) -> float:
    """Of the means of some classes from float64 ones, relative to the spread of the class.

    ``parts``: by how much labels were turned, for how many rows.
    """
    worst = 0.0
    for k in torch.linspace(0, geometry.num_kept - 1, 8).long().tolist():
        places = (labels == geometry.classes[k]).nonzero()[:, 0]
        times = torch.zeros(len(x), dtype=torch.float64)
        for shift, count in parts:
            at = (places + shift) % len(x)
            times[at[at < count]] += 1
        rows = times.nonzero()[:, 0]
        mean = sum(times[some] @ x[some].double() for some in rows.split(8192)) / times.sum()
        worst = max(worst, float((geometry.means[k] - mean).norm() / geometry.class_var[k].clamp_min(1e-30).sqrt()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=469_514_249)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=50_257)
    parser.add_argument("--batch", type=int, default=1_048_576)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    labels = case.labels(generator, arguments.batch, arguments.classes, "zipf")
    x = torch.empty(arguments.batch, arguments.dim, dtype=getattr(torch, arguments.dtype))
    if (advise := native.op("prefer_huge_pages")) is not None:
        advise(x)  # as GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for all memory: rows lie anywhere in it, 1.17x the rate
    for part in x.split(4096):
        part.copy_(torch.randn(part.shape, generator=generator) + 3)
    stats = ncops.ClassStatistics(arguments.classes, arguments.dim)
    limit = limits(torch.float32)["read"]
    left, parts, resident = arguments.rows, [], None
    seconds, reads = 0.0, []
    with tqdm(total=arguments.rows, unit="row", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        while left > 0:
            if len(parts) % READ_EVERY == 0:
                reads += [seconds_of(limit.run) for _ in range(3)]
            shift, some = int(torch.randint(arguments.batch, (), generator=generator)), min(left, arguments.batch)
            parts.append((shift, some))
            turned = labels.roll(shift)[:some]
            seconds += seconds_of(partial(stats.update, x[:some], turned))
            left -= some
            bar.update(some)
            if len(parts) == 2:
                resident = memory.resident()
                memory.reset_peak()
    grown = None if resident is None or memory.peak() is None else (memory.peak() - resident) / 2**20
    geometry = stats.compute(min_count=1)
    rate, read = arguments.rows * arguments.dim * x.element_size() / seconds, limit.work / statistics.median(reads)
    print(
        f"{arguments.rows:,} rows of {arguments.dim} {arguments.dtype}, {arguments.classes:,} classes, "
        f"{geometry.num_kept:,} seen: {seconds:,.1f} s, {arguments.rows / seconds / 1e6:.2f} million rows/s, "
        f"{rate / 1e9:.2f} GB/s of {read / 1e9:.1f} read, {rate / read:.0%}"
    )
    if grown is not None:
        print(f"peak memory after the second batch: {grown:+.0f} MB above what was resident then")
    print(f"means off by {worst_error(geometry, x, labels, parts):.1e} of a class's spread, at most")
    assert int(geometry.num_samples) == arguments.rows


if __name__ == "__main__":
    main()
