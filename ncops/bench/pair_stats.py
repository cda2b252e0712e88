"""pair_stats against the K x K matrix."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

import ncops

from .case import EVERYTHING, Bench, Case, Goal, full, numpy, randn

KERNELS = ("cosine", "log_distance", "angle")
BY_CLASS = "cosine by class"
CLASS_ROWS = 16  # of each class, where the pairs of one class are apart


def make(sizes, dtype, data, generator):
    """Rows, the kernel, which ``data`` names, and the labels or None."""
    rows = randn(generator, sizes["K"], sizes["D"], dtype=dtype)
    labels = torch.randint(0, max(2, sizes["K"] // CLASS_ROWS), (sizes["K"],), generator=generator)
    return rows, data if data in KERNELS else KERNELS[0], labels if data == BY_CLASS else None


def ours(rows, kernel, labels):
    stats = ncops.pair_stats(rows, kernel, labels=labels)
    return stats.mean, stats.var, stats.min, stats.max, stats.row_max, stats.row_argmax


def eager(rows, kernel, labels):
    if kernel != "log_distance":
        unit = F.normalize(rows, dim=1)
        grid = unit @ unit.T
        grid = grid if kernel == "cosine" else grid.clamp(-1, 1).acos()
    else:
        rows = rows if rows.dtype == torch.float64 else rows.float()  # cdist has no half precision
        grid = torch.cdist(rows, rows).log()
    i, j = torch.triu_indices(*grid.shape, offset=1, device=grid.device)
    every = torch.arange(len(grid), device=grid.device)
    pairs = grid[i, j]
    grid[every, every] = -torch.inf  # fill_diagonal_ does not compile here
    if labels is None:
        sides = [(pairs, grid)]
    else:
        same, of_pair = labels[:, None] == labels, labels[i] == labels[j]
        sides = [(pairs[of], grid.where(of_grid, -torch.inf)) for of, of_grid in ((of_pair, same), (~of_pair, ~same))]
    columns = [(p.mean(), p.var(correction=0), p.min(), p.max(), *grid.max(1)) for p, grid in sides]
    return columns[0] if labels is None else tuple(map(torch.stack, zip(*columns, strict=True)))


def with_numpy(rows, kernel, labels):
    if kernel != "log_distance":
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        grid = unit @ unit.T
        grid = grid if kernel == "cosine" else np.arccos(grid.clip(-1, 1))
    else:
        squares = np.square(rows).sum(1)
        grid = squares[:, None] + squares - 2 * (rows @ rows.T)
        np.fill_diagonal(grid, 1)
        grid = 0.5 * np.log(grid)
    upper = np.triu_indices(len(grid), 1)
    same = np.ones(grid.shape, bool) if labels is None else labels[:, None] == labels
    columns = []
    for of in (same,) if labels is None else (same, ~same):
        pairs = grid[upper][of[upper]]
        side = np.where(of, grid, -np.inf)
        np.fill_diagonal(side, -np.inf)
        columns.append((pairs.mean(), pairs.var(), pairs.min(), pairs.max(), side.max(1), side.argmax(1)))
    return columns[0] if labels is None else tuple(map(np.stack, zip(*columns, strict=True)))


def neural_collapse(rows, kernel, labels):
    if kernel == "angle" or labels is not None:
        raise NotImplementedError("angles, pairs by class")
    from neural_collapse.kernels import kernel_stats, log_kernel

    return kernel_stats(rows, kernel=log_kernel if kernel != "cosine" else lambda data, tile_size=None: data @ data.T)


FORWARD = Bench(
    op="pair_stats", make=make, ours=ours, eager=eager, other="matmul",
    peers={
        "matmul": lambda rows, kernel, labels: rows @ rows.T,
        "numpy": numpy(with_numpy),
        "neural_collapse": neural_collapse,
    },
    flops=lambda s: s["K"] * (s["K"] - 1) * s["D"],  # useful ones: one triangle
    bytes=lambda s, item: item * s["K"] * s["D"],
    base={"K": 4096, "D": 512},
    axes={"K": (100, 1000, 2048, 4096, 8192), "D": (64, 256, 512, 1024)},
    accuracy={"K": 2048}, averages={0: 1}, data=(*KERNELS, BY_CLASS),
)  # fmt: skip
FULL = full(
    FORWARD, lambda outputs: outputs[0], 0,
    flops=lambda s: s["K"] * (s["K"] - 1) * s["D"],  # the forward's: the gradient of a mean cosine needs no pairs
    bytes=lambda s, item: 2 * item * s["K"] * s["D"],
    axes={"K": (100, 1000, 2048, 4096), "D": (64, 512)},
)  # fmt: skip
BENCHES = (FORWARD, FULL)
_GOAL = Goal(0.80)
CASES = (
    Case(FORWARD, "cosine", {"K": 8192, "D": 512}, goal=_GOAL, measures=EVERYTHING),
    Case(FORWARD, "log distance", {"K": 8192, "D": 512}, data="log_distance", goal=_GOAL),
    Case(FORWARD, "angle", {"K": 8192, "D": 512}, data="angle", goal=_GOAL),
    Case(FORWARD, BY_CLASS, {"K": 8192, "D": 512}, data=BY_CLASS, goal=_GOAL),
)
