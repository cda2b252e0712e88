"""Loads the compiled extension once, and remembers why when it cannot."""

from __future__ import annotations

import ctypes
import functools
import glob
import os
from collections.abc import Callable

import torch

NAMESPACE = "ncops_C"


def find() -> str | None:
    """Where the extension lies, None where there is none."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = sorted(glob.glob(os.path.join(here, "_C*.so")) + glob.glob(os.path.join(here, "_C*.pyd")))
    return found[0] if found else None


@functools.cache
def load() -> str | None:
    """Loads ``ncops._C`` if that has not been tried yet; returns None on success, else the reason in one line."""
    # A second registration of a namespace aborts the process, so an extension that is already there is used as it is.
    if hasattr(getattr(torch.ops, NAMESPACE), "build_info"):
        return None
    path = find()
    if path is None:
        return "ncops was installed without its compiled extension (pip install --no-build-isolation builds it)"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"{os.path.basename(path)} did not load: {str(error).splitlines()[0]}"
    return None


def op(name: str) -> Callable | None:
    """The raw kernel ``torch.ops.ncops_C.<name>``, or None where the extension lacks it."""
    return _explained(name) if load() is None and hasattr(getattr(torch.ops, NAMESPACE), name) else None


@functools.cache
def _explained(name: str) -> Callable:
    """The kernel, whose errors say what torch said when an allocation, or another call into it, has failed.

    Across the stable ABI such an error arrives as the name of the call and a line of a header.
    """
    kernel = getattr(getattr(torch.ops, NAMESPACE), name)

    def run(*args):
        try:
            return kernel(*args)
        except RuntimeError as error:
            why = _torch_said() if "API call failed" in str(error) else None
            if not why:
                raise
            kind = torch.OutOfMemoryError if why.startswith("CUDA out of memory") else RuntimeError
            raise kind(f"{name}: {why}") from error

    return run


def _torch_said() -> str | None:
    """The message of the last exception that torch's C interface has caught in this thread; None before torch 2.13."""
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    try:
        function = ctypes.CDLL(library).torch_exception_get_what_without_backtrace
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    return (function() or b"").decode(errors="replace") or None


@functools.cache
def reaches_cuda() -> bool:
    """Whether the loaded extension finds the CUDA library of a torch that has one."""
    asked = getattr(getattr(torch.ops, NAMESPACE), "reaches_cuda", None)
    return torch.version.cuda is None or asked is None or asked()


@functools.cache
def has(name: str, key: str) -> bool:
    """Whether the loaded extension has a kernel ``name`` for the dispatch key ``"CPU"`` or ``"CUDA"``."""
    if load() is not None or op(name) is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
