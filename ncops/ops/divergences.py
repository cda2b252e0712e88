"""What linear_divergence and logit_divergence share: the result and the planes that ops pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from ..backends.planes import DIVERGENCE_PLANES, DIVERGENCES
from .checks import check_number, check_softcap


class LinearDivergence(NamedTuple):
    """How far two distributions p and q over V classes are from each other, row by row. Natural logarithms throughout.

    Shapes are those of the rows. Floats are float32 (float64 for float64 inputs). A row with a NaN or +inf logit, or
    without a class that is not masked, has NaN floats and does not agree.

    Attributes:
        kl: ``KL(p || q) = sum p (log p - log q)``; infinite where q masks a class of p.
        reverse_kl: ``KL(q || p)``.
        js: ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``: for ``beta = 0.5`` the
            Jensen-Shannon divergence.
        overlap: ``sum min(p, q)``: 1 minus the total variation distance, and the rate at which speculative decoding
            accepts; where p = q its gradient is that of the mean of the two.
        agree: bool, the largest logit of both is that of the same class, the lowest index on ties.
        entropy, other_entropy: of p and of q.
        lse, other_lse: the log-sum-exp of the logits of p and of q.

    ``kl``, ``reverse_kl`` and ``js`` are sums of terms that are never negative, and keep their digits down to the
    smallest numbers where the difference of the logits does.
    """

    kl: Tensor
    reverse_kl: Tensor
    js: Tensor
    overlap: Tensor
    agree: Tensor
    entropy: Tensor
    other_entropy: Tensor
    lse: Tensor
    other_lse: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


RESULTS = "(Tensor floats, Tensor agree)"


def result(found: tuple[Tensor, Tensor], rows: tuple[int, ...]) -> LinearDivergence:
    floats, agree = found
    if len(rows) != 1:
        floats, agree = floats.reshape(floats.shape[0], *rows), agree.reshape(rows)
    planes = dict(zip(DIVERGENCE_PLANES, floats.unbind(), strict=True))
    return LinearDivergence(agree=agree, **{name: planes[name] for name in DIVERGENCES})


def check_options(scale: Any, softcap: Any, beta: Any, instead: str) -> tuple[float, float, float]:
    beta = check_number(beta, "beta", "it has no gradient, give float(beta)")
    if not 0 < beta < 1:
        raise ValueError(f"beta: expected a number between 0 and 1, got {beta}")
    return check_number(scale, "scale", instead), check_softcap(softcap), beta


def fake_results(like: Tensor, *_) -> tuple[Tensor, Tensor]:
    rows = like.shape[0]
    floats = like.new_empty((len(DIVERGENCE_PLANES), rows), dtype=compute_dtype(like.dtype))
    return floats, like.new_empty(rows, dtype=torch.bool)
