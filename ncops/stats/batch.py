"""What a batch must be before its rows may enter class statistics, and which of them count."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from ..names import Nonfinite
from ..ops.checks import check_floating, check_label_values, flatten_labels, shape

NONFINITE = get_args(Nonfinite)


def check_batch(
    x: Tensor, labels: Tensor, *, num_classes: int, dim: int, ignore_index: int, device: torch.device,
    input_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(x (N, D), labels (N,) int64)`` of a batch that fits the statistics; ``input_dtype`` None fits every dtype.

    Raises:
        ValueError: shape, dtype or device mismatch; a label outside ``[0, C)`` that is not ``ignore_index``, on the CPU
            (elsewhere looking would synchronise).
    """
    check_floating(x, "x")
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"x: expected shape (..., dim) with dim = {dim}, got {shape(x)}")
    if x.device != device:
        raise ValueError(f"x: expected the statistics' device, {device}, got {x.device}")
    if input_dtype is not None and x.dtype != input_dtype:
        raise ValueError(f"x: expected {input_dtype}, the dtype of the first update, got {x.dtype}")
    y = flatten_labels(labels, "labels", x, "x")
    check_label_values(y, num_classes, ignore_index, "labels")
    return x.detach().reshape(-1, dim), y


def leave_out(x: Tensor, y: Tensor, *, nonfinite: str, ignore_index: int) -> tuple[Tensor, Tensor | int, Tensor]:
    """Labels with the rows that are to be skipped set to ``ignore_index``, and the numbers skipped and ignored.

    Args:
        x: ``(N, D)``. y: ``(N,) int64``.
        nonfinite: what a row with a NaN or an infinity does; see :class:`ncops.ClassStatistics`.

    Raises:
        ValueError: a row that is not finite under ``nonfinite="raise"``.
    """
    ignored = (y == ignore_index).sum()
    if nonfinite == "propagate" or x.shape[0] == 0:
        return y, 0, ignored
    # The largest magnitude of a row is NaN or infinite exactly when an element is: no N x D mask.
    bad = ~torch.isfinite(torch.linalg.vector_norm(x, float("inf"), dim=1)) & (y != ignore_index)
    if nonfinite == "raise":
        if bad.any():
            raise ValueError(
                f"x: {int(bad.sum())} of {x.shape[0]} rows hold a NaN or an infinity, first row {int(bad.nonzero()[0])}"
            )
        return y, 0, ignored
    return y.masked_fill(bad, ignore_index), bad.sum(), ignored
