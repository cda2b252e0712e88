"""pair_stats against the K x K matrix."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

import ncops

from .case import EVERYTHING, Bench, Case, Goal, full, numpy, randn

KERNELS = ("cosine", "log_distance")


def make(sizes, dtype, data, generator):
    """Rows, and the kernel: here ``data`` names it."""
    return randn(generator, sizes["K"], sizes["D"], dtype=dtype), data if data in KERNELS else KERNELS[0]


def ours(rows, kernel):
    stats = ncops.pair_stats(rows, kernel)
    return stats.mean, stats.var, stats.min, stats.max, stats.row_max, stats.row_argmax


def eager(rows, kernel):
    if kernel == "cosine":
        unit = F.normalize(rows, dim=1)
        grid = unit @ unit.T
    else:
        rows = rows if rows.dtype == torch.float64 else rows.float()  # cdist has no half precision
        grid = torch.cdist(rows, rows).log()
    i, j = torch.triu_indices(*grid.shape, offset=1, device=grid.device)
    pairs = grid[i, j]
    every = torch.arange(len(grid), device=grid.device)
    grid[every, every] = -torch.inf  # fill_diagonal_ does not compile here
    row_max, row_argmax = grid.max(1)
    return pairs.mean(), pairs.var(correction=0), pairs.min(), pairs.max(), row_max, row_argmax


def with_numpy(rows, kernel):
    if kernel == "cosine":
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        grid = unit @ unit.T
    else:
        squares = np.square(rows).sum(1)
        grid = squares[:, None] + squares - 2 * (rows @ rows.T)
        np.fill_diagonal(grid, 1)
        grid = 0.5 * np.log(grid)
    pairs = grid[np.triu_indices(len(grid), 1)]
    np.fill_diagonal(grid, -np.inf)
    return pairs.mean(), pairs.var(), pairs.min(), pairs.max(), grid.max(1), grid.argmax(1)


def neural_collapse(rows, kernel):
    from neural_collapse.kernels import kernel_stats, log_kernel

    return kernel_stats(rows, kernel=log_kernel if kernel != "cosine" else lambda data, tile_size=None: data @ data.T)


FORWARD = Bench(
    op="pair_stats", make=make, ours=ours, eager=eager, other="matmul",
    peers={
        "matmul": lambda rows, kernel: rows @ rows.T,
        "numpy": numpy(with_numpy),
        "neural_collapse": neural_collapse,
    },
    flops=lambda s: s["K"] * (s["K"] - 1) * s["D"],  # useful ones: one triangle
    bytes=lambda s, item: item * s["K"] * s["D"],
    base={"K": 4096, "D": 512},
    axes={"K": (100, 1000, 2048, 4096, 8192), "D": (64, 256, 512, 1024)},
    accuracy={"K": 2048}, averages={0: 1}, data=KERNELS,
)  # fmt: skip
FULL = full(
    FORWARD, lambda outputs: outputs[0], 0,
    flops=lambda s: s["K"] * (s["K"] - 1) * s["D"],  # the forward's: the gradient of a mean cosine needs no pairs
    bytes=lambda s, item: 2 * item * s["K"] * s["D"],
    axes={"K": (100, 1000, 2048, 4096), "D": (64, 512)},
)  # fmt: skip
BENCHES = (FORWARD, FULL)
_GOAL = Goal(0.70, 12, 8, 3)
CASES = (
    Case(FORWARD, "cosine", {"K": 8192, "D": 512}, goal=_GOAL, measures=EVERYTHING),
    Case(FORWARD, "log distance", {"K": 8192, "D": 512}, data="log_distance", goal=_GOAL),
)
