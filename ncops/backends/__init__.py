"""Which implementation of an op runs: chosen at call time from the device, the install and what the user forces."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

import torch

from ..names import Backend
from . import native

BACKENDS = get_args(Backend)
ENVIRONMENT = "NCOPS_BACKEND"
CUDA_OPS = ("class_moments", "accumulate_class_moments_", "class_scatter", "linear_stats", "logit_stats")
"""The ops that have compiled CUDA kernels, by design."""
FORMS = ("_backward", "_targets", "_share", "_ratios")
"""Endings of what belongs to an op without being one that people call."""

_forced: ContextVar[str | None] = ContextVar("ncops_backend", default=None)
_warned = False


def _check_name(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Forces one backend for every op inside the block, and for the gradients of what is computed there.

    The choice is that of the thread, or asyncio task, that enters the block; other threads choose for themselves.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: for another name. A call inside the block raises RuntimeError where the backend cannot run it.
    """
    before = _forced.set(_check_name(name, "use_backend: name"))
    try:
        yield
    finally:
        _forced.reset(before)


def forced() -> str | None:
    """The backend forced by :func:`use_backend` or ``NCOPS_BACKEND``, innermost first; None when free to choose."""
    if (name := _forced.get()) is not None:
        return name
    name = os.environ.get(ENVIRONMENT)
    return _check_name(name, ENVIRONMENT) if name else None


@functools.cache
def _no_triton(op: str) -> str | None:
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed (pip install triton)"
    try:
        module = importlib.import_module(f"ncops.triton_kernels.{_file(op)}")
    except ModuleNotFoundError:
        module = None
    return None if hasattr(module, op) else "no Triton kernel for this op"


def _interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors: for tests, far too slow for work."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    """Of a CUDA device; where none is there to be asked, that of the H200 on which backends were compared."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else (9, 0)


def why_not(backend: str, op: str, device: str | torch.device) -> str | None:
    """None if ``backend`` can run ``op`` on tensors of this device, else the reason in a few words."""
    device = torch.device(device)
    if backend == "reference":
        return None
    if backend == "triton":
        if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
            return f"tensors are on {device.type}"
        return _no_triton(op)
    if device.type != backend:
        return f"tensors are on {device.type}"
    reason = native.load()
    if reason is not None:
        return reason
    if backend == "cpu":
        return None if native.has(op, "CPU") else "no native kernel for this op"
    if torch.version.hip is not None:
        return "compiled kernels are for NVIDIA GPUs"
    if not native.has("class_moments", "CUDA"):
        return "the extension was built without nvcc"
    if not native.reaches_cuda():
        return "the extension does not find this torch's CUDA library"
    if not native.has(op, "CUDA"):
        return "no CUDA kernel for this op"
    capability = _capability(device.index)
    return None if capability >= (8, 0) else f"needs compute capability 8.0 or later, this GPU has {capability}"


def _file(op: str) -> str:
    """The file of an op, by the same name in every folder: backward and in-place forms stand beside the op."""
    if op == "accumulate_class_moments_":
        return "class_moments"
    for form in FORMS:
        op = op.removesuffix(form)
    return op


def reference(op: str) -> Callable:
    """The plain-PyTorch implementation of ``op``: ``ncops.reference.<file>.<op>``."""
    return getattr(importlib.import_module(f"ncops.reference.{_file(op)}"), op)


def _order(op: str, device: torch.device, dtype: torch.dtype | None) -> tuple[str, ...]:
    """The backends to try, best first."""
    if device.type == "cpu":
        return ("cpu",)
    # Triton's products use Hopper's wgmma, linear_stats also for float32; the compiled ones mma.sync or plain units. On
    # an H200 it takes half the time for linear_stats, 0.4 to 1.04 of it for class_scatter (docs/gpu.md).
    if _file(op) in ("linear_stats", "class_scatter") and not op.endswith("_backward") and dtype != torch.float64:
        half = dtype in (torch.bfloat16, torch.float16) and op != "class_scatter"
        if half or _capability(device.index) >= (9, 0):
            return ("triton", "cuda")
    return ("cuda", "triton")


def choose(op: str, device: str | torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that runs ``op`` on tensors of this device and dtype."""
    device = torch.device(device)
    wanted = forced()
    order = _order(op, device, dtype)
    if wanted is not None:
        reason = why_not(wanted, op, device)
        if reason is None:
            return wanted
        if not op.endswith("_backward"):
            raise RuntimeError(f"backend {wanted!r} cannot run {op}: {reason}")
        # A forced forward kernel may lean on another backend for its gradient.
    return next((backend for backend in order if why_not(backend, op, device) is None), "reference")


def kernel(op: str, x: torch.Tensor) -> Callable:
    """The implementation of ``op`` for tensors like ``x``; arguments and results are those of the op's schema."""
    global _warned
    backend = choose(op, x.device, x.dtype)
    if backend in ("cpu", "cuda"):
        return native.op(op)
    if backend == "triton":
        return getattr(importlib.import_module(f"ncops.triton_kernels.{_file(op)}"), op)
    if x.device.type == "cpu" and not _warned and forced() is None and native.load() is not None:
        _warned = True
        warnings.warn(f"ncops runs on its plain PyTorch reference: {native.load()}", RuntimeWarning, stacklevel=3)
    return reference(op)
