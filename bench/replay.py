"""The statistics part of a study of language models, replayed at its size: 469.5 million rows of 50,257 classes.

    python bench/replay.py [--rows 469514249] [--dim 1024] [--classes 50257] [--batch 262144] [--dtype float32]

Class means and variances by ncops.ClassStatistics, batch after batch, as a training job would. Features are synthetic
and so cheap that making them is not the time: one block of rows in memory, larger than any cache, whose labels (Zipf)
are turned by another amount in every step. So every class's exact mean is known, and some are held against it.

The rate is that of the features' bytes, beside the rate at which this machine reads memory, measured before and after.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from tqdm import tqdm

import ncops
from ncops import memory
from ncops.bench import case
from ncops.bench.limits import limits


def read_rate() -> float:
    """Bytes a second that memory gives to a plain sum."""
    limit = limits(torch.float32)["read"]
    seconds = []
    for _ in range(9):
        begin = time.perf_counter()
        limit.run()
        seconds.append(time.perf_counter() - begin)
    return limit.work / sorted(seconds)[len(seconds) // 2]


def worst_error(geometry: ncops.ClassGeometry, x: torch.Tensor, labels: torch.Tensor, shifts: list[int]) -> float:
    """Of the means of some classes from float64 ones, relative to the spread of the class."""
    worst = 0.0
    for k in torch.linspace(0, geometry.num_kept - 1, 8).long().tolist():
        places = (labels == geometry.classes[k]).nonzero()[:, 0]
        times = torch.zeros(len(x), dtype=torch.float64)
        for shift in shifts:
            times[(places + shift) % len(x)] += 1
        rows = times.nonzero()[:, 0]
        mean = (times[rows, None] * x[rows].double()).sum(0) / times.sum()
        worst = max(worst, float((geometry.means[k] - mean).norm() / geometry.class_var[k].clamp_min(1e-30).sqrt()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=469_514_249)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=50_257)
    parser.add_argument("--batch", type=int, default=262_144)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    labels = case.labels(generator, arguments.batch, arguments.classes, "zipf")
    x = torch.empty(arguments.batch, arguments.dim, dtype=getattr(torch, arguments.dtype))
    for part in x.split(4096):
        part.copy_(torch.randn(part.shape, generator=generator) + 3)
    stats = ncops.ClassStatistics(arguments.classes, arguments.dim)
    rates = [read_rate()]
    left, shifts, resident = arguments.rows, [], None
    begin = time.perf_counter()
    with tqdm(total=arguments.rows, unit="row", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        while left > 0:
            shifts.append(int(torch.randint(arguments.batch, (), generator=generator)))
            some = min(left, arguments.batch)
            stats.update(x[:some], labels.roll(shifts[-1])[:some])
            left -= some
            bar.update(some)
            if len(shifts) == 2:
                resident = memory.resident()
                memory.reset_peak()
    seconds = time.perf_counter() - begin
    rates.append(read_rate())
    whole = arguments.rows // arguments.batch
    grown = None if resident is None or memory.peak() is None else (memory.peak() - resident) / 2**20
    geometry = stats.compute(min_count=1)
    rate, read = arguments.rows * arguments.dim * x.element_size() / seconds, sum(rates) / 2
    print(
        f"{arguments.rows:,} rows of {arguments.dim} {arguments.dtype}, {arguments.classes:,} classes, "
        f"{geometry.num_kept:,} seen: {seconds:,.1f} s, {arguments.rows / seconds / 1e6:.2f} million rows/s, "
        f"{rate / 1e9:.2f} GB/s of {read / 1e9:.1f} read, {rate / read:.0%}"
    )
    if grown is not None:
        print(f"peak memory after the second batch: {grown:+.0f} MB above what was resident then")
    if arguments.rows == whole * arguments.batch:
        print(f"means off by {worst_error(geometry, x, labels, shifts):.1e} of a class's spread, at most")
    assert int(geometry.num_samples) == arguments.rows


if __name__ == "__main__":
    main()
