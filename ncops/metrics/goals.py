"""Where metrics go when a network collapses: what K kept classes in D dimensions can reach, under a convention.

A simplex of K > D + 1 means does not fit into D dimensions, and two centred means are always one: a goal that is
shown is computed from both numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..conventions import PRESETS, Convention
from .table import meaning


class Goal(NamedTuple):
    """The goal of one metric in words, the value that is the best to be had (None: there is none), and its side."""

    text: str
    target: float | None
    better: str


def simplex_floor(classes: int, dim: int) -> float:
    """The least :func:`ncops.metrics.simplex_error` of K rows in D dimensions: 0 for K <= D + 1.

    Of Gram matrices of norm 1 and rank D at most, the nearest to the projection on K - 1 dimensions that a simplex is
    has D equal eigenvalues: the cosine of the two is ``sqrt(D / (K - 1))``.
    """
    return math.sqrt(2 - 2 * math.sqrt(min(1.0, dim / (classes - 1))))


def equal_norm_spread(classes: int, dim: int) -> float:
    """The least standard deviation of the pairwise cosines of K centred rows of equal norm in D dimensions.

    Their mean is -1 / (K - 1); that of their squares is at least that of a tight frame (Welch's bound).
    """
    return math.sqrt(max(0.0, classes * (classes - 1 - dim) / dim)) / (classes - 1)


def simplex_uniformity(classes: int) -> float:
    """``-ln |u_i - u_j|`` of the directions of a simplex; the mean over pairs of any K directions is at least that."""
    return -math.log(2 * classes / (classes - 1)) / 2


@dataclass(frozen=True)
class Goals:
    """The goals of a report's metrics.

    Attributes:
        classes, dim: K and D; None where they are not known, or differ between runs.
        settings: the convention. unkept: the share of decided rows whose class has no mean.
    """

    classes: int | None = None
    dim: int | None = None
    settings: Convention = PRESETS["ncops"]
    unkept: float = 0.0

    @classmethod
    def shared(cls, of: Iterable[Goals]) -> Goals:
        """The goals that all runs have, or those that hold for any K and D."""
        found = list(dict.fromkeys(of))
        return found[0] if len(found) == 1 else cls()

    @property
    def crowded(self) -> bool:
        """Whether K > D + 1, so that no simplex fits."""
        return self.classes is not None and self.dim is not None and self.classes > self.dim + 1

    @property
    def forced(self) -> tuple[str, ...]:
        """The metrics that have their collapsed value whatever the features: for two means, those of their shape."""
        if self.classes != 2 or self.settings.global_mean != "class":
            return ()
        shape = ["nc2_norm_cv", "nc2_log_norm_cv", "nc2_cos_std", "nc2_cos_error"]
        shape += ["nc2_cos_mean"] if self.settings.similarity == "cosine" else []
        shape += ["nc2_etf_error"] if self.settings.etf_of == "means" else []
        return (*shape, *(["gnc2_log_mean", "gnc2_log_var"] if self.settings.gnc2_centered else []))

    def __getitem__(self, name: str) -> Goal:
        entry = meaning(name)
        goal = self._computed(name) or Goal(entry.goal, entry.target, entry.better)
        return goal._replace(text=f"{goal.text}, as always for K = 2") if name in self.forced else goal

    def _computed(self, name: str) -> Goal | None:
        """What differs from the table of metrics."""
        k, d, settings = self.classes, self.dim, self.settings
        dots = {"nc2_cos_mean": settings.similarity, "nc3_cos_mean": settings.duality_similarity}
        if dots.get(name) == "dot":
            return Goal("depends on the scale", None, "")
        if name == "ncc_accuracy" and self.unkept > 0:
            most = 1 - self.unkept
            return Goal(f"{most:.4g} = most, the other rows have no class mean", most, "higher")
        if k is None or k < 2:
            return None
        if name == "nc2_cos_mean":
            return Goal(f"{-1 / (k - 1):.4g} = {'least' if self.crowded else 'simplex'}", None, "")
        if name == "gnc2_log_mean":
            simplex = f"{simplex_uniformity(k):.4g}"
            return Goal(f"above {simplex}, a simplex's" if self.crowded else f"{simplex} = simplex", None, "")
        if d is None:
            return None
        if not self.crowded:
            fits = name in ("nc2_etf_error", "nc2_cos_error", "nc2_w_cos_error") or self._gram(name)
            return Goal("0 = collapsed", 0.0, "lower") if fits else None
        if name == "nc2_etf_error" or self._gram(name):
            floor = simplex_floor(k, d)
            return Goal(f"{floor:.4g} = least for K > D + 1", floor, "lower")
        if name == "nc2_w_cos_std" or (name == "nc2_cos_std" and settings.similarity == "cosine"):
            pairs = k * (k - 1) / 2
            least = equal_norm_spread(k, d) * math.sqrt(pairs / (pairs - settings.pair_ddof))
            # Rows that do not add up to 0 can have less: all of them alike have none.
            centred = name == "nc2_cos_std" and settings.global_mean == "class"
            where = "at equal norms" if centred else "at equal norms and sum 0"
            return Goal(f"{least:.4g} = least {where} for K > D + 1", least, "lower")
        if name in ("nc2_cos_std", "nc2_cos_error", "nc2_w_cos_error", "gnc2_log_var"):
            return Goal("above 0 for K > D + 1", None, "lower")
        return None

    def _gram(self, name: str) -> bool:
        """Whether it is a duality error that compares with a simplex."""
        return name == "nc3_duality_error" and self.settings.duality_error == "gram"

    def distance(self, name: str, value: float | None) -> float | None:
        """|value - the best to be had|, or None where the metric has no such value or is NaN."""
        target = self[name].target
        return None if target is None or value is None or not math.isfinite(value) else abs(value - target)

    def direction(self, name: str) -> str:
        """The goal behind an arrow that shows which way it lies; empty where the metric has none."""
        goal = self[name]
        return {"higher": "↑ ", "lower": "↓ "}.get(goal.better, "") + goal.text
