"""class_scatter against the centred product."""

from __future__ import annotations

import ncops

from . import class_moments
from .case import Bench, Case, Goal, compiled, full, numpy


def ours(x, y, center):
    return (ncops.class_scatter(x, y, center),)


def eager(x, y, center):
    deviation = x - center[y]
    return (deviation.T @ deviation,)


def neural_collapse(x, y, center):
    from neural_collapse.accumulate import CovarAccumulator

    return CovarAccumulator(center.shape[0], x.shape[1]).accumulate(x, y, center)[1]


FORWARD = Bench(
    op="class_scatter", mode="forward", make=class_moments.make, other="matmul",
    contestants={
        "ncops": ours,
        "eager": eager,
        "compile": compiled(eager),
        "matmul": lambda x, y, center: x.T @ x,
        "numpy": numpy(eager),
        "neural_collapse": neural_collapse,
    },
    flops=lambda s: s["N"] * s["D"] * (s["D"] + 1),  # useful ones: one triangle
    bytes=lambda s, item: item * s["N"] * s["D"],
    base={"N": 20000, "D": 512, "C": 1000},
    axes={"N": (1000, 5000, 20000, 100000), "D": (64, 256, 512, 1024, 2048), "C": (10, 1000, 50257)},
    accuracy={"N": 20000}, data=("uniform", "zipf"),
)  # fmt: skip
FULL = full(
    FORWARD, lambda outputs: outputs[0].square().mean(), 0,
    flops=lambda s: s["N"] * s["D"] * (3 * s["D"] + 1),  # one triangle, and a product
    bytes=lambda s, item: 3 * item * s["N"] * s["D"],
    axes={"N": (1000, 5000, 20000), "D": (64, 256, 1024)},
)  # fmt: skip
BENCHES = (FORWARD, FULL)
CASES = (
    Case(
        FORWARD, "1000 classes", {"N": 50000, "D": 512, "C": 1000}, goal=Goal(0.75, 4, 4),
        measures=("speed", "memory", "accuracy"),
    ),
)  # fmt: skip
