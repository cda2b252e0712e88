"""The largest logits of a linear classifier, row by row, without the logits ever existing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from .checks import check_integer
from .linear_stats import check_arguments, refuse_sharded
from .op import define, differentiable
from .precision import allow_tf32


class LinearTopk(NamedTuple):
    """The k classes with the largest logits of each row. Natural logarithms.

    Floats are float32 (float64 for float64 inputs). A row with a NaN or +inf logit has NaN floats and indices -1.

    Attributes:
        values: ``(..., k)`` logits, the largest first; -inf where fewer than k classes are not masked.
        indices: ``(..., k)`` classes, int64; of equal logits the lowest class first.
        lse: ``(...)`` log-sum-exp of all V logits; -inf where all classes are masked.
        logprob: ``(..., k)``: ``values - lse``, that of the largest logit summed without its own term, so that it keeps
            its digits where it is close to 0.
    """

    values: Tensor
    indices: Tensor
    lse: Tensor
    logprob: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


def linear_topk(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, k: int, scale: float = 1.0, softcap: float | None = None
) -> LinearTopk:
    """The k largest of the logits ``scale * x @ weight.T + bias`` of each row, with their log-probabilities.

    The N x V logits never exist: beside the results the workspace is 64 MB or so.

    Args:
        x, weight, bias, scale, softcap: as for :func:`linear_stats`.
        k: how many, 1 to V.

    Returns:
        :class:`LinearTopk`. Under autocast x, weight and bias are cast to its dtype, except from float64; products and
        sums are float32.

    Raises:
        ValueError: what :func:`linear_stats` refuses; a k outside [1, V].

    Gradients flow to ``x``, ``weight`` and ``bias`` through values, lse and logprob, for the classes that they are of.
    """
    refuse_sharded(weight)
    arguments = check_arguments(x, weight, bias, None, scale, softcap, -100, "V", 1, "linear_topk")
    flat, weight, bias, _, scale, softcap, _ = arguments
    k = check_integer(k, "k", 1)
    if k > weight.shape[0]:
        raise ValueError(f"k: expected at most the {weight.shape[0]} classes of weight, got {k}")
    found = torch.ops.ncops.linear_topk(flat, weight, bias, k, scale, softcap, allow_tf32(x))
    return topk_of(found, tuple(x.shape[:-1]))


def topk_of(found: tuple[Tensor, ...], rows: tuple[int, ...]) -> LinearTopk:
    """The op's results in the rows' own shape."""
    values, logprob, lse, indices = found
    if len(rows) != 1:
        values, logprob, indices = (t.reshape(*rows, t.shape[1]) for t in (values, logprob, indices))
        lse = lse.reshape(rows)
    return LinearTopk(values, indices, lse, logprob)


def _fake(x, weight, bias, k, *_):
    values = x.new_empty((x.shape[0], k), dtype=compute_dtype(x.dtype))
    return values, torch.empty_like(values), values.new_empty(x.shape[0]), torch.empty_like(values, dtype=torch.int64)


def _with_logprob(found, *_):
    values, sums, indices = found
    lse, gap = sums.unbind()
    return values, (values - values[:, :1]) - gap[:, None], lse.clone(), indices


_INPUTS = "Tensor x, Tensor weight, Tensor? bias, int k, float scale, float softcap, bool allow_tf32"  # softcap 0: none
define(
    f"linear_topk({_INPUTS}) -> (Tensor values, Tensor logprob, Tensor lse, Tensor indices)",
    _fake,
    kernel_returns="(Tensor values, Tensor sums, Tensor indices)",  # sums (2, N): the lse, and less the largest
    after=_with_logprob,
)
define(
    "linear_topk_backward(Tensor g_values, Tensor g_logprob, Tensor g_lse, Tensor values, Tensor logprob, Tensor lse,"
    f" Tensor indices, {_INPUTS}, bool need_x, bool need_weight, bool need_bias)"
    " -> (Tensor g_x, Tensor g_weight, Tensor g_bias)"
)
differentiable("linear_topk")
