"""class_scatter against the centred product."""

from __future__ import annotations

import ncops

from . import class_moments
from .case import EVERYTHING, Bench, Case, Goal, full, numpy


def make(sizes, dtype, data, generator):
    """With ``data="raw"`` rows are not centred."""
    x, y, center = class_moments.make(sizes, dtype, data, generator)
    return (x, None, None) if data == "raw" else (x, y, center)


def eager(x, y, center):
    deviation = x if center is None else x - center[y]
    return (deviation.T @ deviation,)


def neural_collapse(x, y, center):
    from neural_collapse.accumulate import CovarAccumulator

    return CovarAccumulator(center.shape[0], x.shape[1]).accumulate(x, y, center)[1]


FORWARD = Bench(
    op="class_scatter", make=make, eager=eager, other="matmul",
    ours=lambda x, y, center: (ncops.class_scatter(x, y, center),),
    peers={
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
_SIZES = {"N": 50000, "D": 512, "C": 1000}
CASES = (Case(FORWARD, "1000 classes", _SIZES, goal=Goal(0.80), measures=EVERYTHING),)
