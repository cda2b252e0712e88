"""projected_sqnorms against centring, product and squared norm one after the other."""

from __future__ import annotations

import ncops

from . import class_moments
from .case import Bench, Case, Goal, full, numpy, randn


def make(sizes, dtype, data, generator):
    x, y, center = class_moments.make(sizes, dtype, data, generator)
    return x, randn(generator, sizes["R"], sizes["D"], dtype=center.dtype) * sizes["D"] ** -0.5, y, center


def eager(x, basis, y, center):
    return ((((x - center[y]) @ basis.T) ** 2).sum(1),)


FORWARD = Bench(
    op="projected_sqnorms", make=make, eager=eager, other="matmul",
    ours=lambda x, basis, y, center: (ncops.projected_sqnorms(x, basis, y, center),),
    peers={
        "matmul": lambda x, basis, y, center: x.to(basis.dtype) @ basis.T,
        "numpy": numpy(eager),
    },
    flops=lambda s: 2 * s["N"] * s["D"] * s["R"],
    bytes=lambda s, item: item * s["N"] * s["D"] + 4 * s["R"] * s["D"],
    base={"N": 20000, "D": 512, "R": 512, "C": 1000},
    axes={"N": (64, 1024, 20000, 100000), "D": (128, 512, 1024), "R": (10, 100, 512)},
    accuracy={"N": 2048},
)  # fmt: skip
FULL = full(
    FORWARD, lambda outputs: outputs[0].square().mean(), 0, 1,
    flops=lambda s: 8 * s["N"] * s["D"] * s["R"],  # four products, one of them recomputed
    bytes=lambda s, item: 3 * item * s["N"] * s["D"] + 8 * s["R"] * s["D"],
    axes={"N": (64, 1024, 20000), "R": (10, 100, 512)},
)  # fmt: skip
BENCHES = (FORWARD, FULL)
_SIZES = {"N": 50000, "D": 512, "R": 512, "C": 1000}
CASES = (Case(FORWARD, "full rank", _SIZES, goal=Goal(0.80)),)
