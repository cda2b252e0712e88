"""The choices in which published codes differ, and one preset per code that people quote numbers from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

from .names import Preset


@dataclass(frozen=True)
class Convention:
    """How the metrics of a report are defined. ``dataclasses.replace`` turns a preset into one of your own.

    Attributes:
        name: what reports and files call it.
        global_mean: ``"class"``, the unweighted mean of the kept class means, or ``"sample"``, the mean of all rows.
        nc1_divide: whether ``nc1_pinv`` carries the factor 1/K.
        variance_ddof: class variances over n (0) or n - 1 (1) in ``nc1_cdnv``; with 1, a class of one row gives NaN.
        cdnv_power: exponent of the squared distance in ``nc1_cdnv``.
        norm_squared: ``nc2_norm_cv``, ``nc2_log_norm_cv`` and ``nc2_w_norm_cv`` of squared norms.
        norm_ddof: ddof of the standard deviations of norms.
        similarity: ``"cosine"`` or ``"dot"`` between two centred class means, for ``nc2_cos_mean`` and ``nc2_cos_std``.
            ``nc2_cos_error`` and ``nc2_w_cos_*`` are of cosines under every convention.
        pair_ddof: ddof of the standard deviation of that similarity over pairs; of ``nc2_w_cos_std`` too.
        gnc2_centered: whether ``gnc2_*`` normalises centred means, or the means as they are.
        etf_of: ``nc2_etf_error`` of the class means (``"means"``) or of the classifier rows (``"weight"``).
        duality_similarity: ``"cosine"`` or ``"dot"`` between a classifier row and its centred class mean, for
            ``nc3_cos_*``.
        duality_ddof: ddof of its standard deviation over classes.
        duality_error: ``"gram"``, distance of W M^T from a simplex, or ``"distance"``, ``|W/|W| - M/|M||^2``.
        center_weight: whether classifier rows are centred on their mean in the ``nc3_*``.
        decision_bias: whether the classifier's bias takes part in ``nc4_agreement``.
        decision_classes: the classifier's candidates in ``nc4_agreement``: ``"all"`` classes or the ``"kept"`` ones.
        decision_rows: rows that count in the decision pass: ``"all"``, or those whose label is a ``"kept"`` class.
    """

    name: str
    global_mean: Literal["class", "sample"] = "class"
    nc1_divide: bool = True
    variance_ddof: int = 0
    cdnv_power: float = 1.0
    norm_squared: bool = False
    norm_ddof: int = 0
    similarity: Literal["cosine", "dot"] = "cosine"
    pair_ddof: int = 0
    gnc2_centered: bool = True
    etf_of: Literal["means", "weight"] = "means"
    duality_similarity: Literal["cosine", "dot"] = "cosine"
    duality_ddof: int = 0
    duality_error: Literal["gram", "distance"] = "gram"
    center_weight: bool = False
    decision_bias: bool = True
    decision_classes: Literal["all", "kept"] = "all"
    decision_rows: Literal["all", "kept"] = "all"

    def __post_init__(self) -> None:
        for field, kind in _KINDS.items():
            value = getattr(self, field)
            if type(value) not in ((float, int) if kind is float else (kind,)):
                raise ValueError(f"convention {self.name!r}: {field}: expected {kind.__name__}, got {value!r}")
            if kind is float and not math.isfinite(value):
                raise ValueError(f"convention {self.name!r}: {field}: expected a finite number, got {value!r}")
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if value not in choices:
                expected = " or ".join(repr(choice) for choice in choices)
                raise ValueError(f"convention {self.name!r}: {field}: expected {expected}, got {value!r}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_KINDS = {field: kind for field, kind in get_type_hints(Convention).items() if isinstance(kind, type)}
_CHOICES = {field: get_args(kind) for field, kind in get_type_hints(Convention).items() if get_args(kind)}

PRESETS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("ncops"),
        # The library: raw Gram matrices and dot products, torch's ddof-1 standard deviations, classifiers without bias.
        Convention(
            "neural-collapse",
            norm_ddof=1,
            similarity="dot",
            duality_similarity="dot",
            duality_ddof=1,
            decision_bias=False,
        ),
        # The paper's tables (statistics of May 2024), not what its repository's script computes today: squared distance
        # squared again, squared norms, log kernel on means that are not centred, both classifiers restricted to the
        # tokens seen in training.
        Convention(
            "linguistic-collapse",
            cdnv_power=2.0,
            norm_squared=True,
            norm_ddof=1,
            pair_ddof=1,
            gnc2_centered=False,
            duality_ddof=1,
            decision_bias=False,
            decision_classes="kept",
            decision_rows="kept",
        ),
        # What that script, analyze.py, computes (November 2024): norms as they are, raw Gram matrices, log kernel on
        # centred means, all tokens as candidates of the classifier. Its nearest mean may be that of a token never seen,
        # which is 0 there; here such a token has none.
        Convention(
            "linguistic-collapse-script",
            cdnv_power=2.0,
            norm_ddof=1,
            similarity="dot",
            duality_ddof=1,
            decision_bias=False,
            decision_rows="kept",
        ),
        # Papyan, Han and Donoho's notebook: NC1 is not divided by K; self-duality is a distance of normalised matrices.
        Convention("papyan", nc1_divide=False, norm_ddof=1, duality_error="distance"),
        # Zhu et al.: means are centred on the mean of all samples; the simplex test looks at the classifier rows.
        Convention("zhu", global_mean="sample", etf_of="weight"),
    )
}


def resolve(convention: Preset | Convention) -> Convention:
    """The preset of that name, or the convention itself.

    Raises:
        ValueError: for an unknown name. TypeError: for anything else.
    """
    if isinstance(convention, Convention):
        return convention
    if not isinstance(convention, str):
        raise TypeError(f"convention: expected a name or a Convention, got {type(convention).__name__}")
    if convention not in PRESETS:
        raise ValueError(f"convention: expected one of {', '.join(PRESETS)}, got {convention!r}")
    return PRESETS[convention]
