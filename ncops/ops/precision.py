"""Whether the user let torch round float32 products to tf32."""

from __future__ import annotations

import torch
from torch import Tensor


def allow_tf32(x: Tensor) -> bool:
    """The user's setting for CUDA tensors; False elsewhere."""
    if x.device.type != "cuda":
        return False
    # The older flag raises once the newer one has been set, so the newer one is asked first where it exists.
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    if precision == "none":  # not set for products: torch then looks at the global setting
        precision = getattr(torch.backends, "fp32_precision", "none")
    return precision == "tf32"
