"""What a lens tells, layer by layer: its document, its numbers and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .numbers import strict

SCHEMA = 1
"""Version of the form of lens.json."""
SHOWN = 32
"""Tokens of a heat map, unless another number is asked for."""


class Quantity(NamedTuple):
    """A number of a layer: its name where a person reads it, its unit, and what it says."""

    label: str
    unit: str
    sentence: str


QUANTITIES = {
    "entropy": Quantity("Entropy", "nats", "How unsure the layer is of the next token."),
    "kl": Quantity("KL to the last layer", "nats", "KL(last || layer): how far the layer is from the model's answer."),
    "agree": Quantity("Agreement", "", "Share of tokens at which the layer's first choice is the last layer's."),
    "logprob": Quantity("Log-probability", "nats", "Of the true next token."),
    "accuracy": Quantity("Accuracy", "", "Share of tokens whose true next one is the layer's first choice."),
    "median_rank": Quantity("Median rank", "", "How many tokens the layer prefers to the true one; 0 is the best."),
    "reverse_kl": Quantity("Reverse KL", "nats", "KL(layer || last)."),
    "js": Quantity("Jensen-Shannon", "nats", "Between the layer's distribution and the last layer's; ln 2 at most."),
    "overlap": Quantity("Overlap", "", "Sum of the lesser probabilities of both layers."),
}
"""All numbers that a lens may have, in the order they are shown."""


def document(totals: Mapping[str, Any], example: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What lens.json and ``--json`` hold."""
    return strict({"schema": SCHEMA, "kind": "lens", **totals, "example": example, "run": facts})


def by_layer(lens: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Name -> one number per layer, in the order they are shown."""
    found = {**lens["means"], "median_rank": lens["median_rank"]}
    return {name: found[name] for name in QUANTITIES if name in found}


def heading(name: str) -> str:
    quantity = QUANTITIES[name]
    return f"{quantity.label} ({quantity.unit})" if quantity.unit else quantity.label


def notes(lens: Mapping[str, Any]) -> list[str]:
    """What to know before reading on."""
    run = lens["run"]
    told = [
        f"Means over {lens['tokens']:,} tokens that have a next one, each layer read through {run['through']} and the "
        "model's own unembedding" + (f", translated by {run['translators']}." if run.get("translators") else ".")
    ]
    if lens["nonfinite"]:
        told.append(f"{lens['nonfinite']:,} tokens with a NaN at some layer are left out.")
    return told
