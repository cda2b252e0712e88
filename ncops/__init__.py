"""Fast geometry kernels for trained networks: neural collapse and large-vocabulary logit statistics."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

_LAZY = ("compat", "distributed", "integrations", "lm", "losses", "nn", "report")
_LATER = {"Lens": "lm.lens", "lens": "lm.lens", "watch": "measuring.layers"}
"""Names, and the modules they come from, that few programs need."""


def _starts_command() -> bool:
    """Whether this import is that of the command ``ncops`` or of ``python -m ncops``, which may need no torch."""
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    if name == "-m":  # as long as Python looks for the module
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["ncops"] if "-m" in sys.orig_argv else False
    return name.removesuffix(".exe") == "ncops"


if TYPE_CHECKING or not _starts_command():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__

if TYPE_CHECKING:
    from . import compat as compat
    from . import distributed as distributed
    from . import integrations as integrations
    from . import lm as lm
    from . import losses as losses
    from . import nn as nn
    from . import report as report
    from .lm.lens import Lens as Lens
    from .lm.lens import lens as lens
    from .measuring.layers import watch as watch
else:
    if "__all__" in globals():
        __all__ = [*__all__, *_LATER]

    def __getattr__(name: str):
        """A package, module or rare name when it is named; in the command, where nothing is imported, every name."""
        if name in _LATER:
            return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
        own = f"{__name__}.{name}"
        if not name.startswith("_"):
            try:
                return importlib.import_module(own)
            except ModuleNotFoundError as error:
                if error.name != own:
                    raise
        if not name.startswith("_") or name in ("__all__", "__version__"):
            public = importlib.import_module(f"{__name__}.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LATER})
