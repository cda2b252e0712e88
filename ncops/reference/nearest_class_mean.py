"""The nearest of the class means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._blocks import row_blocks
from .center import row_center

INF = float("inf")
NAN = float("nan")


def nearest_class_mean(x: Tensor, means: Tensor, valid: Tensor | None, allow_tf32: bool) -> tuple[Tensor, Tensor]:
    """``(sqdist (N,), index (N,) int64)``: ties to the lowest; NaN and -1 for a NaN row or without valid class."""
    dtype = compute_dtype(x.dtype)
    sqdist = x.new_full((x.shape[0],), NAN, dtype=dtype)
    index = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
    kept = torch.arange(means.shape[0], device=x.device) if valid is None else valid.nonzero().squeeze(1)
    if kept.numel() == 0:
        return sqdist, index
    # |x - m|^2 orders as m.x - |m|^2 / 2 does, but only about a centre near the means: a common offset of 1000 has
    # the products agree in every digit that tells the classes apart.
    chosen = means[kept]
    origin = row_center(chosen, None, chosen.mean(0, dtype=torch.float64))
    centred = torch.empty((kept.numel(), x.shape[1]), dtype=dtype, device=x.device)
    for rows in row_blocks(*centred.shape):
        centred[rows] = (chosen[rows].double() - origin).to(dtype)
    half = 0.5 * centred.square().sum(1, dtype=torch.float64).to(dtype)
    for rows in row_blocks(x.shape[0], max(centred.shape)):
        block = x[rows].double()
        score = (block - origin).to(dtype) @ centred.t() - half
        best, at = score.max(1).values, score.argmax(1)
        at = kept[at]
        good = best.isfinite()
        distance = (block - means[at]).square().sum(1)
        sqdist[rows] = torch.where(good, distance, NAN).to(dtype)
        index[rows] = torch.where(good, at, -1)
    return sqdist, index
