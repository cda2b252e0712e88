"""The library neural-collapse beside ncops.compat.neural_collapse, on the same batches: agreement and time.

    python bench/compare_neural_collapse.py [--library FOLDER] [--small] [--only 1000]

Needs the library (it is not on the package index): installed, or a checkout of its repository named by ``--library``.
Steps whose K x K grids would take the library half an hour are timed on fewer classes and scaled by (K / K')^2; such
times are marked with a ~. Each step is timed once, warm, the library's and ours one after the other.
The first line holds the library's three accumulators against one pass of ncops.ClassStatistics.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import ncops
import ncops.compat.neural_collapse as ours

SIZES = {"1000": (200_000, 512, 1000), "32000": (100_000, 512, 32_000)}
BATCH = 4096
GRID = 4000  # classes that the library's grids are timed with


def batches(n: int, d: int, k: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Features about class means."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(k, d, generator=generator)
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        labels = torch.randint(0, k, (size,), generator=generator)
        yield means[labels] + 0.5 * torch.randn(size, d, generator=generator), labels


class Run:
    """All steps with one package; ``seconds`` and ``results`` by step."""

    def __init__(self, package: Any, data: list, d: int, k: int, weight: torch.Tensor) -> None:
        self.package, self.data, self.k, self.d, self.weight = package, data, k, d, weight
        self.seconds: dict[str, float] = {}
        self.results: dict[str, Any] = {}
        self.scaled: set[str] = set()

    def timed(self, name: str, run: Callable[[], Any], scale: float = 1.0) -> Any:
        begin = time.perf_counter()
        result = run()
        self.seconds[name] = (time.perf_counter() - begin) * scale
        if scale != 1:
            self.scaled.add(name)
        return result

    def accumulate(self, name: str, *more: torch.Tensor) -> Any:
        accumulator = getattr(self.package.accumulate, f"{name}Accumulator")(self.k, self.d)

        def run() -> Any:
            for x, y in self.data:
                accumulator.accumulate(x, y, *more)
            return accumulator

        return self.timed(f"{name}Accumulator pass", run)

    def passes(self) -> None:
        means, center = self.accumulate("Mean").compute()
        seen = means.norm(dim=1) > 0
        variances = self.accumulate("VarNorm", means).compute()[0]
        sigma = self.accumulate("Covar", means).compute()
        hits = self.accumulate("Dec", self.weight, means)
        self.results |= {"means": means, "variances": variances, "covariance": sigma, "NC4 hits": hits.totals}
        self.kept = (means[seen], variances[seen], center)
        self.sigma = sigma

    def measures(self, grid: int | None) -> None:
        """``grid``: at most so many classes where the package builds K x K grids; None takes all."""
        means, variances, center = self.kept
        k = len(means)
        few = k if grid is None else min(k, grid)
        scale = (k / few) ** 2
        m, kernels = self.package.measure, self.package.kernels
        tile = None if grid is None else 64
        self.results["covariance_ratio"] = self.timed(
            "covariance_ratio, pinv", lambda: m.covariance_ratio(self.sigma, means, center)
        )
        cdnv = self.timed(
            "variability_cdnv", lambda: m.variability_cdnv(variances[:few], means[:few], 1.0, tile), scale
        )
        logs = self.timed(
            "kernel_stats, log",
            lambda: kernels.kernel_stats(means[:few], center, kernels.log_kernel, tile)[1], scale,
        )  # fmt: skip
        etf = self.timed("simplex_etf_error", lambda: m.simplex_etf_error(means[:few], center), scale)
        if few == k:
            self.results |= {"CDNV": cdnv, "variance of log kernel": logs, "ETF error": etf}


def one_pass(data: list, d: int, k: int) -> float:
    """Seconds of ClassStatistics for what three passes of accumulators give."""
    for batches in (data[:1], data):  # the first makes it warm
        stats = ncops.ClassStatistics(k, d, scatter=True)
        begin = time.perf_counter()
        for x, y in batches:
            stats.update(x, y)
        stats.compute()
    return time.perf_counter() - begin


def difference(a: Any, b: Any) -> float:
    """Largest difference over the largest value."""
    a, b = (torch.as_tensor(t, dtype=torch.float64) for t in (a, b))
    return ((a - b).abs().max() / b.abs().max()).item()


def compare(library: Any, n: int, d: int, k: int) -> None:
    data = list(batches(n, d, k))
    weight = torch.randn(k, d, generator=torch.Generator().manual_seed(1))
    runs = []
    for package in (ours, library):  # code is loaded, threads are started
        Run(package, data[:1], d, k, weight).passes()
    for package, grid in ((ours, None), (library, GRID)):
        run = Run(package, data, d, k, weight)
        run.passes()
        run.measures(grid)
        runs.append(run)
    mine, theirs = runs
    three = [f"{name}Accumulator pass" for name in ("Mean", "VarNorm", "Covar")]
    theirs.seconds = {"means, variances, covariance": sum(theirs.seconds[name] for name in three)} | theirs.seconds
    mine.seconds["means, variances, covariance"] = one_pass(data, d, k)
    print(f"\nN={n} D={d} K={k}, batches of {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'step':28} {'library':>10} {'ncops':>10} {'faster':>9}")
    for name, seconds in theirs.seconds.items():
        about = "~" if name in theirs.scaled else ""
        ratio = seconds / mine.seconds[name]
        print(f"{name:28} {about + f'{seconds:.2f} s':>10} {mine.seconds[name]:>8.2f} s {about + f'{ratio:.1f}x':>9}")
    for name in theirs.results:
        print(f"agreement, {name:28} {difference(mine.results[name], theirs.results[name]):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="folder that holds the package neural_collapse")
    parser.add_argument("--small", action="store_true", help="a hundredth of the rows, fewer classes: a trial run")
    parser.add_argument("--only", choices=SIZES, help="one of the two problems")
    options = parser.parse_args()
    if options.library:
        sys.path.insert(0, options.library)
    try:
        import neural_collapse
    except ImportError:
        sys.exit("the library neural_collapse is not installed; --library names a checkout of its repository")
    for name, (n, d, k) in SIZES.items():
        if options.only in (None, name):
            compare(neural_collapse, *((n // 100, 64, k // 20) if options.small else (n, d, k)))


if __name__ == "__main__":
    main()
