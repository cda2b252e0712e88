"""The nearest class mean of each row: the decision rule of NC4, and of prototype classifiers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from .checks import check_beside, flatten_rows
from .op import define
from .pair_stats import check_valid
from .precision import allow_tf32
from .unit_rows import row_parts


class NearestClassMean(NamedTuple):
    """See :func:`nearest_class_mean`."""

    index: Tensor
    sqdist: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


def nearest_class_mean(
    x: Tensor, means: Tensor, *, valid: Tensor | None = None, normalize: bool = False
) -> NearestClassMean:
    """Index of the nearest class mean in Euclidean distance, and the squared distance to it.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        means: ``(C, D)`` in float64 or in the dtype of the products (float32; float64 for float64 ``x``).
        valid: ``(C,)`` bool, the classes to choose from; None means all.
        normalize: measure from ``x / |x|``, not from ``x``; ``means`` are used as they are. A row of zeros stays zero.
            Rows are divided in blocks of 8 MB, never all at once.

    Returns:
        ``index (...) int64``: ties go to the lowest; -1 where the row holds a NaN or an infinity or no class is valid.
        ``sqdist (...)`` float32 (float64 for float64 ``x``): computed from ``x - means[index]``; NaN where index is -1.

    Raises:
        ValueError: shape, dtype or device mismatch.

    Not differentiable: neither result carries a gradient. Means and rows are centred in float64 before they are
    multiplied, since a large common offset otherwise flips decisions: on the coordinate-wise median of up to 63 valid
    means, which a few far ones do not move. Where means lie in several far clusters, decisions are those of products
    in the compute dtype; float64 ``x`` then has the digits. So it has for rows of length 1e19 and more, whose squared
    distances no float32 holds: they are infinite or NaN, and the index is that of any valid class, or -1.
    """
    flat = flatten_rows(x)
    check_beside(means, "means", (None, x.shape[-1]), "(C, D)", x, "x")
    dtype = compute_dtype(x.dtype)
    if means.dtype not in (torch.float64, dtype):
        raise ValueError(f"means: expected torch.float64 or {dtype} (x is {x.dtype}), got {means.dtype}")
    check_valid(valid, means.shape[0], x, "x", "(C,)")
    rows = x.shape[:-1]
    if normalize:
        flat = flat.detach()
        parts = [torch.ops.ncops.nearest_class_mean(u, means, valid, allow_tf32(x)) for _, u in row_parts(flat)]
        sqdist, index = (torch.cat(part) for part in zip(*parts, strict=True))
    else:
        sqdist, index = torch.ops.ncops.nearest_class_mean(flat, means, valid, allow_tf32(x))
    return NearestClassMean(index.reshape(rows), sqdist.reshape(rows))


def _fake(x, *_):
    rows = x.shape[0]
    return x.new_empty(rows, dtype=compute_dtype(x.dtype)), x.new_empty(rows, dtype=torch.int64)


define(
    "nearest_class_mean(Tensor x, Tensor means, Tensor? valid, bool allow_tf32) -> (Tensor sqdist, Tensor index)",
    _fake,
    setup=lambda ctx, inputs, output: ctx.mark_non_differentiable(*output),
    backward=lambda ctx, g_sqdist, g_index: (None, None, None, None),
)
