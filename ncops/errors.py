"""What the command line says in one line instead of a traceback."""

from __future__ import annotations

import importlib


class CommandError(Exception):
    """Something the user can put right: printed as one line, exit status 2."""


class Interrupted(Exception):
    """Ctrl-C, with a word on how to go on: printed as one line, exit status 130."""


def need(extra: str, *modules: str) -> None:
    """Raises CommandError naming the extra if one of ``modules`` cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing = getattr(error, "name", None) or name
            raise CommandError(f"this needs the package {missing!r}: pip install 'ncops[{extra}]'") from None
