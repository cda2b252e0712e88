"""What keeps a reader from taking a number for more than it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metrics.goals import Goals, simplex_uniformity

UNKEPT, FEW_KEPT, FEW_ROWS = 0.02, 0.1, 5
"""A caveat from this share of decided rows without a class mean on, below this share of classes kept, and below this
number of rows for an average kept class."""


def caveats(coverage: Mapping[str, Any], goals: Goals) -> list[str]:
    """Sentences about what the numbers rest on, and about goals that cannot be reached."""
    found = []
    share = goals.unkept
    if share > UNKEPT:
        found.append(
            f"{100 * share:.3g} % of the decision samples have a label without a kept class mean: there the "
            f"nearest mean is wrong by necessity, which caps the nearest-mean accuracy at {1 - share:.3f} and lowers "
            "the NC4 agreement."
        )
    kept, classes, samples = (coverage.get(name) for name in ("classes_kept", "classes", "samples_in_kept"))
    if kept is None:
        return found
    if kept < 2:
        found.append(
            f"Only {kept} class has enough samples: every number between classes is undefined. "
            "Give more data, or ask for fewer samples per class."
        )
        return found
    if classes and kept < FEW_KEPT * classes:
        found.append(
            f"Only {kept:,} of {classes:,} classes ({100 * kept / classes:.3g} %) are kept: NC1, NC2 and NC3 say "
            "nothing about the others."
        )
    if samples is not None and samples < FEW_ROWS * kept:
        found.append(
            f"A kept class has {samples / kept:.3g} samples on average: variances about the mean of so few are too "
            "small, and NC1 with them."
        )
    if goals.forced:
        found.append(
            "Two classes are kept. Two centred means are always opposite and of one length, so NC2 reads as collapsed "
            "whatever the features; NC1, NC3 and NC4 say whether they are."
        )
    if goals.crowded:
        found.append(
            f"{kept:,} classes in {goals.dim:,} dimensions (K > D + 1): a simplex does not fit, so NC2 is measured "
            "against the best that can be had, and GNC2 (a mean above "
            f"{simplex_uniformity(kept):.4g}, a spread above 0) takes the simplex's place."
        )
    return found
