"""Which dtype the ops compute in."""

from __future__ import annotations

import torch


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that products and sums of ``dtype`` are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
