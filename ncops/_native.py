"""Loads the compiled extension once, and remembers why when it cannot."""

from __future__ import annotations

import functools
import glob
import os

import torch

NAMESPACE = "ncops_C"
_tried = False
_reason: str | None = None


def _find() -> str | None:
    here = os.path.dirname(os.path.abspath(__file__))
    found = sorted(glob.glob(os.path.join(here, "_C*.so")) + glob.glob(os.path.join(here, "_C*.pyd")))
    return found[0] if found else None


def load() -> str | None:
    """Loads ``ncops._C`` if that has not been tried yet; returns None on success, else the reason in one line."""
    global _tried, _reason
    if _tried:
        return _reason
    _tried = True
    # A second registration of a namespace aborts the process, so an extension that is already there is used as it is.
    if hasattr(getattr(torch.ops, NAMESPACE), "build_info"):
        return None
    path = _find()
    if path is None:
        _reason = "ncops was installed without its compiled extension (pip install --no-build-isolation builds it)"
        return _reason
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        _reason = f"{os.path.basename(path)} did not load: {str(error).splitlines()[0]}"
    return _reason


def op(name: str):
    """The raw kernel ``torch.ops.ncops_C.<name>``, or None where the extension lacks it."""
    if load() is not None:
        return None
    return getattr(getattr(torch.ops, NAMESPACE), name, None)


@functools.cache
def has(name: str, key: str) -> bool:
    """Whether the loaded extension has a kernel ``name`` for the dispatch key ``"CPU"`` or ``"CUDA"``."""
    if load() is not None or op(name) is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
