"""What a GPU would need at least, on paper: bytes and operations of every case over a data sheet's rates.

A model, not a measurement: ``ncops bench --device cuda`` measures. ``python -m ncops.bench.roofline`` prints the table
of docs/gpu.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .case import Case
from .gpu import CASES

# Data sheet of the H100 SXM5, per second: dense products, those of float32 as three of tf32, which has half the rate of
# bfloat16; float32 products on the ordinary units, other instructions, bytes.
PRODUCTS = {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 165e12, torch.float64: 67e12}
ORDINARY, INSTRUCTIONS, MEMORY = 67e12, 33.5e12, 3.35e12
# What there is of logits, distances, elements or pairs, and the instructions that each costs beside its product.
EPILOGUE = {
    "linear_stats": (lambda s: s["N"] * s["V"], 34),  # counted in Triton's SASS; 55 in the compiled kernel's
    "linear_loss": (lambda s: s["N"] * s["V"], 34),
    "logit_stats": (lambda s: s["N"] * s["V"], 34),
    # Of both passes per pair of logits, counted in Triton's SASS for sm_90; their gradients are not counted.
    "linear_divergence": (lambda s: s["N"] * s["V"], 242),
    "logit_divergence": (lambda s: s["N"] * s["V"], 242),
    "class_moments": (lambda s: s["N"] * s["D"], 4),
    "pair_stats": (lambda s: s["K"] * (s["K"] - 1) / 2, 16),
    "nearest_class_mean": (lambda s: s["N"] * s["C"], 4),
}
STREAMING = ("logit_stats", "logit_divergence", "class_moments")  # no products: what they add up is in the epilogue
BY_ORDINARY = "class_scatter"  # multiplies centred rows in float32, whatever their dtype; raw ones in theirs


class Estimate(NamedTuple):
    """Seconds by term; the largest binds."""

    products: float
    epilogue: float
    memory: float

    @property
    def bound(self) -> str:
        return self._fields[self.index(max(self))]


def estimate(case: Case) -> Estimate:
    """The least time of a case."""
    op = case.bench.op
    count, instructions = EPILOGUE.get(op, (lambda sizes: 0, 0))
    products = ORDINARY if op == BY_ORDINARY and case.data != "raw" else PRODUCTS[case.dtype]
    return Estimate(
        0.0 if op in STREAMING else case.flops / products,
        count(case.sizes) * instructions / INSTRUCTIONS,
        case.bytes / MEMORY,
    )


def table() -> str:
    """Markdown."""
    lines = [
        "| case | products | epilogue | memory | at least, H100 SXM | bound by |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for case in CASES:
        e = estimate(case)
        terms = " | ".join("" if t == 0 else f"{t * 1e3:.3g} ms" for t in e)
        what = f"{case.title}, {case.shape}" + (f", {case.dtype_name}" if case.dtype_name not in case.name else "")
        lines.append(f"| {what} | {terms} | {max(e) * 1e3:.3g} ms | {e.bound} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
