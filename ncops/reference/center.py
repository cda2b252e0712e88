"""A point amid most of the class means: the origin of centred products."""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 63


def row_center(rows: Tensor, valid: Tensor | None, mean: Tensor) -> Tensor:
    """``(D,)`` float64: the coordinate-wise median of up to 63 of the valid rows ``(K, D)``, evenly spaced.

    One far row drags the mean away from all others, whose products about it then agree in every digit that tells them
    apart. Where ``mean (D,)``, that of the valid rows in float64, is not finite, it is what comes back. Nothing here
    waits for the device.
    """
    if rows.shape[0] == 0:
        return mean
    steps = torch.arange(MOST, device=rows.device)
    if valid is None:
        at = steps * rows.shape[0] // MOST
    else:
        seen = valid.cumsum(0)
        at = torch.searchsorted(seen, steps * seen[-1] // MOST + 1).clamp(max=rows.shape[0] - 1)
    middle = rows[at].double().sort(dim=0).values[MOST // 2]  # torch.median refuses to be deterministic on CUDA
    return torch.where(mean.isfinite(), middle, mean)
