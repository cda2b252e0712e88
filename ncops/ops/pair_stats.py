"""Mean, spread and extremes of a kernel over all pairs of rows, without the K x K matrix."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from ..names import Kernel
from .checks import (
    check_beside,
    check_class_labels,
    check_device,
    check_floating,
    check_integer,
    check_number,
    check_shape,
    flatten_labels,
    refuse_forward_mode,
    shape,
)
from .op import define, differentiable
from .precision import allow_tf32

KERNELS = get_args(Kernel)


class PairStats(NamedTuple):
    """Statistics over pairs of rows. See :func:`pair_stats`."""

    mean: Tensor
    var: Tensor
    min: Tensor
    max: Tensor
    count: Tensor
    row_max: Tensor
    row_argmax: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


def pair_stats(
    rows: Tensor, kernel: Kernel, *, variances: Tensor | None = None, power: float = 1, valid: Tensor | None = None,
    labels: Tensor | None = None, ignore_index: int = -100,
) -> PairStats:  # fmt: skip
    """Statistics of ``kernel(rows[i], rows[j])`` over all pairs i < j of valid rows; with labels, apart by class.

    ======================  =========================================================
    ``"dot"``               ``u.v``
    ``"cosine"``            ``u.v / (|u| |v|)``; a zero row gives NaN
    ``"angle"``             its arccos in radians, from ``|u/|u| - v/|v||`` and ``|u/|u| + v/|v||`` near 0 and pi
    ``"distance"``          ``|u - v|``
    ``"log_distance"``      ``ln |u - v|``
    ``"riesz"``             ``|u - v|^(-power)``
    ``"gaussian"``          ``exp(-power |u - v|^2)``
    ``"cdnv"``              ``(v_i + v_j) / (2 |u - v|^(2 power))`` with ``variances`` v
    ======================  =========================================================

    Rows are used as they are: centre or normalise them first where the quantity asks for it. Distances are computed
    about the mean row, and those of close pairs from their difference, so that near rows keep their digits; the arccos
    of a rounded cosine would have none below 3e-4. Products
    and squared distances that pass the range of the results' dtype (in float32, rows of length 1e19 and more) are
    infinite or NaN, as a backend's arithmetic has it, and so may be the cosines of such rows; what is finite is right.

    Args:
        rows: ``(K, D)``; float32, float64, bfloat16 or float16; any strides.
        kernel: a name of the table.
        variances: ``(K,)``, for ``"cdnv"`` alone; used in float32 (float64 for float64 rows).
        power: see the table.
        valid: ``(K,)`` bool, the rows to use; None means all.
        labels: ``(K,)`` integer class of each row, any numbers of 0 or more. Then every result has a leading dimension
            of 2, pairs of one class and pairs of different classes: ``within, between = pair_stats(...).mean``.
        ignore_index: rows with this label are left out.

    Returns:
        ``mean, var`` (divided by the count), ``min, max, count``: scalars, the floats in float32 (float64 for float64
        rows), NaN when there is no pair; ``row_max (K,), row_argmax (K,)``: each row's largest value over the other
        valid rows and the lowest index that gives it, NaN and -1 where there is none. With ``labels`` scalars are
        ``(2,)`` and rows ``(2, K)``, the first of row i over the other rows of its class. A NaN among the values makes
        the statistics it enters NaN (index -1). Coincident rows give -inf or +inf where the kernel diverges.

    Raises:
        ValueError: unknown kernel, ``variances`` missing or out of place, shape, dtype or device mismatch; on CPU also
            a negative label other than ``ignore_index``, naming row and value (elsewhere such a row is left out).

    Gradients flow to ``rows`` and ``variances`` through ``mean`` and ``row_max``; coincident rows get none from each
    other, nor do rows at an angle of 0 or pi. Nothing is K x K: on the CPU 16 bytes (32 with labels) per row and 1024
    rows are kept beside the rows, on a GPU about 0.3 KB (0.6) per row. Sources: CDNV Galanti et al. 2022; equidistance
    and uniformity Wu and Papyan 2024, Liu et al. 2023.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    check_floating(rows, "rows", 2)
    k = rows.shape[0]
    if kernel == "cdnv" and variances is None:
        raise ValueError("variances: expected shape (K,) for kernel 'cdnv', got None")
    if variances is not None:
        if kernel != "cdnv":
            raise ValueError(f"variances: expected None for kernel {kernel!r}, got shape {shape(variances)}")
        check_beside(variances, "variances", (k,), "(K,)", rows, "rows")
        variances = variances.to(compute_dtype(rows.dtype))
    check_valid(valid, k, rows, "rows", "(K,)")
    power = check_number(power, "power", "there is no gradient of power")
    if labels is not None:
        labels = flatten_labels(labels, "labels", rows, "rows")
    ignore_index = check_integer(ignore_index, "ignore_index")
    refuse_forward_mode("pair_stats", rows, variances)
    mean, var, low, high, row_max, count, row_argmax = torch.ops.ncops.pair_stats(
        rows, kernel, variances, power, valid, labels, ignore_index, allow_tf32(rows)
    )
    return PairStats(mean, var, low, high, count, row_max, row_argmax)


def check_valid(valid: Tensor | None, size: int, like: Tensor, like_name: str, meaning: str) -> None:
    """An optional mask over rows or classes."""
    if valid is None:
        return
    if not isinstance(valid, Tensor):
        raise TypeError(f"valid: expected a tensor, got {type(valid).__name__}")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid: expected torch.bool, got {valid.dtype}")
    check_shape(valid, "valid", (size,), meaning)
    check_device(valid, "valid", like, like_name)


def _check(rows, kernel, variances, power, valid, labels, ignore_index, *_):
    if labels is not None:
        check_class_labels(labels, ignore_index, "labels")


def _fake(rows, kernel, variances, power, valid, labels, *_):
    dtype, sides = compute_dtype(rows.dtype), () if labels is None else (2,)
    k = rows.shape[0]
    scalars = [rows.new_empty(sides, dtype=dtype) for _ in range(4)]
    return (
        *scalars,
        rows.new_empty((*sides, k), dtype=dtype),
        rows.new_empty(sides, dtype=torch.int64),
        rows.new_empty((*sides, k), dtype=torch.int64),
    )


_INPUTS = (
    "Tensor rows, str kernel, Tensor? variances, float power, Tensor? valid, Tensor? labels, int ignore_index,"
    " bool allow_tf32"
)
define(
    f"pair_stats({_INPUTS}) -> (Tensor mean, Tensor var, Tensor min, Tensor max, Tensor row_max,"
    " Tensor count, Tensor row_argmax)",
    _fake,
    check=_check,
)
define(
    f"pair_stats_backward(Tensor g_mean, Tensor g_row_max, Tensor count, Tensor row_argmax, {_INPUTS})"
    " -> (Tensor g_rows, Tensor g_variances)"
)
differentiable("pair_stats")
