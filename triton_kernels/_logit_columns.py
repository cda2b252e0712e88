"""Host side of what linear_stats and logit_stats share: planes of results, shares of splits, their merging."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import planes
from ..backends.dtypes import compute_dtype
from ._logit_state import merge_kernel

TRITON = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SHARES_PER_PROGRAM = 512
WARPS = 4
Planes = tuple[Tensor, Tensor]  # floats and indices


def empty_columns(x: Tensor) -> Planes:
    """The columns of the rows of ``x``."""
    n = x.shape[0]
    floats = x.new_empty((len(planes.FLOATS), n), dtype=compute_dtype(x.dtype))
    return floats, x.new_empty((len(planes.INDICES), n), dtype=torch.int64)


def empty_splits(x: Tensor, splits: int) -> Planes:
    """Memory for the shares of ``splits`` parts of each row; how many classes a part has follows from its number."""
    n = x.shape[0]
    floats = x.new_empty((len(planes.SHARE_FLOATS), splits, n), dtype=compute_dtype(x.dtype))
    return floats, x.new_empty((len(planes.SHARE_INDICES) - 1, splits, n), dtype=torch.int32)


def rows_of(out: Planes, rows: slice) -> Planes:
    return out[0][:, rows], out[1][:, rows]


def merge_splits(
    out: Planes, parts: Planes, num_classes: int, per_split: int, target: Tensor | None = None,
    target_logit: Tensor | None = None, ignore_index: int = -1, finish: bool = True,
) -> None:  # fmt: skip
    """Fills ``out`` with columns, or without ``finish`` with the rows' share, from parts of ``per_split`` classes."""
    _, splits, n = parts[0].shape
    block_s = triton.next_power_of_2(splits)
    block_n = max(1, SHARES_PER_PROGRAM // block_s)
    merge_kernel[(triton.cdiv(n, block_n),)](
        *parts, target, target_logit, 0 if target is None else target.stride(0), *out, out[0].stride(0),
        n, num_classes, per_split, splits, ignore_index,
        FINISH=finish, BLOCK_N=block_n, BLOCK_S=block_s, num_warps=WARPS,
    )  # fmt: skip
