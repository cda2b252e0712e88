"""Other packages' interfaces over ncops kernels: change an import, keep the code.

``import ncops.compat.neural_collapse as neural_collapse`` serves code written for that library; :func:`install` serves
code that cannot be edited.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

MODULES = ("accumulate", "kernels", "measure", "util")


def install(*, replace: bool = False) -> None:
    """Registers :mod:`ncops.compat.neural_collapse` as ``neural_collapse``, for imports from now on.

    Args:
        replace: also where the real library is installed or has been imported.

    Raises:
        RuntimeError: the real library is there and ``replace`` is False.
    """
    ours = importlib.import_module(f"{__name__}.neural_collapse")
    there = sys.modules.get("neural_collapse")
    if there is ours:
        return
    if not replace and (there is not None or importlib.util.find_spec("neural_collapse") is not None):
        raise RuntimeError("install: the library neural_collapse is there itself; install(replace=True) hides it")
    sys.modules["neural_collapse"] = ours
    for name in MODULES:
        sys.modules[f"neural_collapse.{name}"] = importlib.import_module(f"{__name__}.neural_collapse.{name}")
