"""Keys of Triton's cache that do not depend on what a process ran before.

Triton 3.6 keeps the constants of a called function out of its caller's key unless the callee's own key was asked for
earlier. So all keys are asked for in one order, in the processes that fill the cache and in those that use it; in
pytest as its plugin (``-p tools.gpu_day.keys``).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from triton.runtime.jit import JITFunction


def kernel_modules() -> Iterator[ModuleType]:
    package = importlib.import_module("ncops.triton_kernels")
    for module in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{module.name}")


def settle() -> None:
    for module in list(kernel_modules()):
        for _, function in sorted(vars(module).items()):
            if isinstance(function, JITFunction):
                function.cache_key  # noqa: B018


def pytest_configure() -> None:
    settle()
