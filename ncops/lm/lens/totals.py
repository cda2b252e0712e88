"""Means of what a lens shows: per layer, by position in the sequence, and by frequency of the true next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..windows import IGNORE

if TYPE_CHECKING:
    from .result import Lens

POSITIONS = 40
"""Bins of positions: 0, 1, 2 to 3, 4 to 7, ... which no sequence gets out of."""
FREQUENCIES = 20
"""Bins of counts: 0, 1 to 9, 10 to 99, ..."""


class Totals:
    """Sums over tokens that have a next one, in float64, and how often each rank was met.

    Memory: 8 bytes * layers * (vocabulary + the bins), whatever the text.

    Args:
        counts: ``(vocabulary,)`` how often each token stands in the text. names: the columns to add up.
    """

    def __init__(self, layers: Sequence[int], vocabulary: int, counts: Tensor, names: Sequence[str]) -> None:
        self.layers, self.names = tuple(layers), [*(name for name in names if name != "rank"), "accuracy"]
        self._frequency = _decade(counts)
        self._ranks = torch.zeros(len(layers), vocabulary, dtype=torch.int64)
        shape = len(self.names), len(layers)
        self._sums = {
            "by_position": torch.zeros(*shape, POSITIONS, dtype=torch.float64),
            "by_frequency": torch.zeros(*shape, FREQUENCIES, dtype=torch.float64),
        }
        self._tokens = {name: torch.zeros(sums.shape[2], dtype=torch.int64) for name, sums in self._sums.items()}
        self.nonfinite = 0

    def update(self, lens: Lens) -> None:
        """Adds the tokens of some sequences; one with a NaN at any layer is left out, and counted."""
        columns = {**lens.columns(), "accuracy": lens.rank == 0}
        values = torch.stack([columns[name].double() for name in self.names]).cpu()  # (names, L, B, T)
        rank, target = lens.rank.cpu(), lens.target.cpu()
        known = target != IGNORE
        finite = known & ~values.isnan().any(0).any(0) & (rank >= 0).all(0)
        self.nonfinite += int((known & ~finite).sum())
        position = torch.arange(target.shape[1]).expand_as(target)[finite]
        bins = {"by_position": _octave(position), "by_frequency": self._frequency[target[finite]]}
        for name, index in bins.items():
            self._sums[name].index_add_(2, index, values[:, :, finite])
            self._tokens[name] += index.bincount(minlength=len(self._tokens[name]))
        for row, ranks in zip(self._ranks, rank[:, finite], strict=True):
            row += ranks.bincount(minlength=len(row))

    @property
    def tokens(self) -> int:
        return int(self._tokens["by_position"].sum())

    def document(self) -> dict[str, Any]:
        """The means as plain lists, one number per layer, None where no token was met."""
        whole = self._sums["by_position"].sum(2) / self.tokens
        position = [(0, 0), *((2**i, 2 ** (i + 1) - 1) for i in range(POSITIONS - 1))]
        frequency = [(0, 0), *((10**i, 10 ** (i + 1) - 1) for i in range(FREQUENCIES - 1))]
        return {
            "layers": list(self.layers),
            "tokens": self.tokens,
            "nonfinite": self.nonfinite,
            "means": dict(zip(self.names, whole.tolist(), strict=True)),
            "median_rank": self._median_ranks(),
            "by_position": self._binned("by_position", position),
            "by_frequency": self._binned("by_frequency", frequency),
        }

    def _binned(self, name: str, edges: Sequence[tuple[int, int]]) -> dict[str, Any]:
        tokens = self._tokens[name]
        held = tokens.nonzero()[:, 0]
        means = (self._sums[name][..., held] / tokens[held]).transpose(1, 2)  # (names, bins, L)
        return {
            "bins": [list(edges[i]) for i in held.tolist()],
            "tokens": tokens[held].tolist(),
            "means": dict(zip(self.names, means.tolist(), strict=True)),
        }

    def _median_ranks(self) -> list[int | None]:
        """The lower median, exactly."""
        half = (self.tokens + 1) // 2
        return [int((row.cumsum(0) < half).sum()) if self.tokens else None for row in self._ranks]


def _octave(position: Tensor) -> Tensor:
    """0, 1, 2 to 3, 4 to 7, ... -> 0, 1, 2, 3, ..."""
    return torch.frexp(position.double()).exponent.long()


def _decade(counts: Tensor) -> Tensor:
    """0, 1 to 9, 10 to 99, ... -> 0, 1, 2, ..."""
    bounds = torch.tensor([10**i for i in range(FREQUENCIES - 2)])
    return torch.bucketize(counts, bounds, right=True)
