"""Helpers of the library that its callers import."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import torch
from torch import Tensor


def hashify(O: Tensor) -> str:  # noqa: E741, N803
    """sha256 of the tensor's bytes: the same for the same bits, also in bfloat16 or with a gradient."""
    return sha256(O.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def resolve(A, B):  # noqa: N803
    """``B`` unless ``A`` is something else already; then None."""
    return B if not A or A == B else None


def normalize(x: Tensor) -> Tensor:
    """``x / (|x| + eps)`` along the last dimension."""
    return x / (x.norm(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps)


def tiling(data: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], tile_size: int | None = None) -> Tensor:
    """The ``(K, K)`` grid of ``kernel(rows_i, rows_j)``, tile by tile, in the dtype that the kernel returns."""
    count = len(data)
    size = tile_size or max(count, 1)
    grid = None
    for i in range(0, count, size):
        for j in range(0, count, size):
            rows, columns = data[i : i + size], data[j : j + size]
            tile = kernel(rows, columns)
            if grid is None:
                grid = torch.empty((count, count), dtype=tile.dtype, device=data.device)
            # A kernel of one row or column may have squeezed it away.
            grid[i : i + size, j : j + size] = tile.reshape(len(rows), len(columns))
    return torch.zeros((0, 0), dtype=data.dtype, device=data.device) if grid is None else grid


def symm_reduce(data: Tensor, reduce: Callable[[Tensor], Tensor] = torch.sum) -> Tensor:
    """``reduce`` over the strict upper triangle, over its number of elements.

    ``reduce`` gets the rows one after the other and must add up over them, as a sum of any function of elements does.
    """
    count = data.shape[0]
    if data.ndim != 2 or data.shape[1] != count:
        raise ValueError(f"data: expected a square matrix, got shape {tuple(data.shape)}")
    if reduce is torch.sum:
        total = data.triu(1).sum(dtype=torch.float64)
    else:
        total = sum(reduce(data[i, i + 1 :]).double() for i in range(count - 1))
    pairs = count * (count - 1) / 2
    dtype = data.dtype if data.is_floating_point() else torch.float32
    return (torch.as_tensor(total, dtype=torch.float64) / pairs if pairs else torch.tensor(float("nan"))).to(dtype)
