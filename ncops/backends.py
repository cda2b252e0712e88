"""Which implementation of an op runs: chosen at call time from the device, the install and what the user forces."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from . import _native

BACKENDS = ("cpu", "cuda", "triton", "reference")
ENVIRONMENT = "NCOPS_BACKEND"

_forced: list[str] = []
_warned = False


def _check_name(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces one backend for every op inside the block, in all threads.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: for another name. A call inside the block raises RuntimeError where the backend cannot run it.
    """
    _forced.append(_check_name(name, "use_backend: name"))
    try:
        yield
    finally:
        _forced.pop()


def forced() -> str | None:
    """The backend forced by :func:`use_backend` or ``NCOPS_BACKEND``, innermost first; None when free to choose."""
    if _forced:
        return _forced[-1]
    name = os.environ.get(ENVIRONMENT)
    return _check_name(name, ENVIRONMENT) if name else None


def why_not(backend: str, op: str, device_type: str) -> str | None:
    """None if ``backend`` can run ``op`` on a device of this type, else the reason in a few words."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if device_type != "cpu":
            return f"tensors are on {device_type}"
        reason = _native.load()
        if reason is not None:
            return reason
        return None if _native.op(op) is not None else "no native kernel for this op"
    if device_type == "cpu":
        return "tensors are on cpu"
    return "no kernels in this release"


def reference(op: str) -> Callable:
    """The plain-PyTorch implementation of ``op``: ``ncops.reference.<file>.<op>``."""
    module = op.removesuffix("_backward")
    module = "class_moments" if module == "accumulate_class_moments_" else module
    return getattr(importlib.import_module(f"ncops.reference.{module}"), op)


def choose(op: str, device_type: str) -> str:
    """The backend that runs ``op`` on a device of this type."""
    wanted = forced()
    if wanted is not None:
        reason = why_not(wanted, op, device_type)
        if reason is None:
            return wanted
        if op.endswith("_backward"):  # a forced forward kernel may lean on the reference for its gradient
            return "reference"
        raise RuntimeError(f"backend {wanted!r} cannot run {op}: {reason}")
    for backend in ("cuda", "triton", "cpu"):
        if why_not(backend, op, device_type) is None:
            return backend
    return "reference"


def kernel(op: str, device: torch.device) -> Callable:
    """The implementation of ``op`` for tensors on ``device``; arguments and results are those of the op's schema."""
    global _warned
    if choose(op, device.type) == "cpu":
        return _native.op(op)
    if device.type == "cpu" and not _warned and forced() is None and _native.load() is not None:
        _warned = True
        warnings.warn(f"ncops runs on its plain PyTorch reference: {_native.load()}", RuntimeWarning, stacklevel=3)
    return reference(op)
