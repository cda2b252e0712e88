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
from typing import Any, NamedTuple

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


class Step(NamedTuple):
    seconds: float
    scaled: bool = False  # from the time of fewer classes


def measure(
    package: Any, data: list, d: int, k: int, weight: torch.Tensor, grid: int
) -> tuple[dict[str, Step], dict[str, Any]]:  # fmt: skip
    """Every step with one package, and what it gave; K x K grids of at most ``grid`` classes."""
    steps: dict[str, Step] = {}

    def timed(name: str, run: Callable[[], Any], scale: float = 1.0) -> Any:
        begin = time.perf_counter()
        result = run()
        steps[name] = Step((time.perf_counter() - begin) * scale, scale != 1)
        return result

    def accumulate(name: str, *more: torch.Tensor) -> Any:
        accumulator = getattr(package.accumulate, f"{name}Accumulator")(k, d)
        timed(f"{name}Accumulator pass", lambda: [accumulator.accumulate(x, y, *more) for x, y in data])
        return accumulator

    means, center = accumulate("Mean").compute()
    variances = accumulate("VarNorm", means).compute()[0]
    sigma = accumulate("Covar", means).compute()
    hits = accumulate("Dec", weight, means).totals
    results = {"means": means, "variances": variances, "covariance": sigma, "NC4 hits": hits}
    seen = means.norm(dim=1) > 0
    means, variances = means[seen], variances[seen]
    few, few_variances = means[:grid], variances[:grid]
    m, kernels, tile = package.measure, package.kernels, None if package is ours else 64
    scale = (len(means) / len(few)) ** 2
    ratio = timed("covariance_ratio, pinv", lambda: m.covariance_ratio(sigma, means, center))
    cdnv = timed("variability_cdnv", lambda: m.variability_cdnv(few_variances, few, 1.0, tile), scale)
    logs = timed("kernel_stats, log", lambda: kernels.kernel_stats(few, center, kernels.log_kernel, tile)[1], scale)
    etf = timed("simplex_etf_error", lambda: m.simplex_etf_error(few, center), scale)
    results["covariance_ratio"] = ratio
    if scale == 1:
        results |= {"CDNV": cdnv, "variance of log kernel": logs, "ETF error": etf}
    return steps, results


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
    for package in (ours, library):  # code is loaded, threads are started
        measure(package, data[:1], d, k, weight, GRID)
    mine, our_results = measure(ours, data, d, k, weight, k)
    theirs, their_results = measure(library, data, d, k, weight, GRID)
    three = "means, variances, covariance"
    mine[three] = Step(one_pass(data, d, k))
    sum_of = [theirs[f"{name}Accumulator pass"].seconds for name in ("Mean", "VarNorm", "Covar")]
    theirs = {three: Step(sum(sum_of)), **theirs}
    print(f"\nN={n} D={d} K={k}, batches of {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'step':28} {'library':>10} {'ncops':>10} {'faster':>9}")
    for name, (seconds, scaled) in theirs.items():
        about, own = "~" if scaled else "", mine[name].seconds
        print(f"{name:28} {about + f'{seconds:.2f} s':>10} {own:>8.2f} s {about + f'{seconds / own:.1f}x':>9}")
    for name, result in their_results.items():
        print(f"agreement, {name:28} {difference(our_results[name], result):.1e}")


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
