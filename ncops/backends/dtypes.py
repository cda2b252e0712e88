"""Which dtype the ops compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that products and sums of ``dtype`` are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _autocasts(kind: str) -> bool:
    """Whether autocast knows this type of device. torch 2.10 and 2.11 cannot trace their own answer."""
    return kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast casts to on this device now; None where it is off, or unknown to the device."""
    kind = device.type
    if not _autocasts(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def outside_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off on this device."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()
