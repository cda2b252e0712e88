"""The ``ncops`` command. Exit status 0: done; 2: something to put right, said in one line on standard error;
130: interrupted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..errors import CommandError, Interrupted

SWITCH_ERRORS = ("NCOPS_", "backend '")
"""How the messages about a wrong environment switch begin, from whichever layer they come."""


def spread_text(arguments: Sequence[str]) -> list[str]:
    """``--text a b c`` as ``--text a --text b --text c``, so that a shell's ``*.txt`` works."""
    result: list[str] = []
    after_text = False
    for argument in arguments:
        if argument.startswith("-"):
            after_text = argument == "--text"
        elif after_text and result[-1] != "--text":
            result.append("--text")
        result.append(argument)
    return result


def _fail(message: str, status: int = 2, command: str = "ncops") -> int:
    """Says in one line what is wrong; returns the exit status."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from .commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "tqdm", "click"):
            raise
        return _fail(f"the command line needs {error.name!r}: pip install 'ncops[cli]'")
    if arguments[:1] == ["lm"]:
        arguments = spread_text(arguments)
    try:
        result = app(arguments or ["--help"], prog_name="ncops", standalone_mode=False)
        if result == 130:  # how typer passes Ctrl-C on
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except CommandError as error:
        return _fail(str(error))
    except Interrupted as error:
        return _fail(f"interrupted; {error}", 130)
    except (KeyboardInterrupt, EOFError):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if type(error).__name__ == "Abort":  # how older typers pass Ctrl-C on, and all an end of input
            return _fail("interrupted", 130)
        if isinstance(error, (ValueError, RuntimeError)) and str(error).startswith(SWITCH_ERRORS):
            return _fail(str(error))
        message = getattr(error, "format_message", None)  # typer's own usage errors, whichever click they come from
        if message is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "ncops") or "ncops"
        return _fail(f"{message()} (see {command} --help)", command=command)


def run() -> None:
    """Entry point of ``python -m ncops``."""
    sys.exit(main())
