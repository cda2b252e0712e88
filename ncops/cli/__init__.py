"""The ``ncops`` command. Exit status 0: done; 2: something to put right, said in one line on standard error;
130: interrupted."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from ..errors import CommandError, Interrupted

SWITCH_ERRORS = ("NCOPS_", "backend '")
"""How the messages about a wrong environment switch begin, from whichever layer they come."""
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch says it, on the CPU and on a GPU."""


SPREAD = ("--text", "--held-out")


def spread_text(arguments: Sequence[str]) -> list[str]:
    """``--text a b c`` as ``--text a --text b --text c``, so that a shell's ``*.txt`` works; so ``--held-out``."""
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-") and argument != "-":  # which is standard input
            option = argument if argument in SPREAD else ""
        elif option and result[-1] != option:
            result.append(option)
        result.append(argument)
    return result


def _fail(message: str, status: int = 2, command: str = "ncops") -> int:
    """Says in one line what is wrong; returns the exit status."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _check_names(arguments: Sequence[str]) -> None:
    """A name that is not UTF-8 fits into no report, which would be known only once everything is measured."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise CommandError(f"expected names in UTF-8, got {argument!a}: rename it, or link to it") from None


def _give_up_stdout() -> None:
    """Python flushes standard output once more when it ends, and would complain again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = _run(arguments)
        sys.stdout.flush()
        return result
    except CommandError as error:
        return _fail(str(error))
    except Interrupted as error:
        return _fail(f"interrupted; {error}", 130)
    except (KeyboardInterrupt, EOFError):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _give_up_stdout()
        return 141
    except OSError as error:
        if error.errno is None:  # in words of its own
            return _fail(str(error).removeprefix("path: "))
        if error.filename is None:
            _give_up_stdout()  # for all that is known, it is what is full
        return _fail(f"{error.filename or 'standard output, or another file'}: {error.strerror or error}")
    except MemoryError as error:
        return _fail(f"out of memory{f': {error}' if str(error) else ''}")
    except Exception as error:
        if type(error).__name__ == "Abort":  # how older typers pass Ctrl-C on, and all an end of input
            return _fail("interrupted", 130)
        if isinstance(error, (ValueError, RuntimeError)) and str(error).startswith(SWITCH_ERRORS):
            return _fail(str(error))
        if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY):
            return _fail(f"out of memory: {str(error).splitlines()[0]}")
        message = getattr(error, "format_message", None)  # typer's own usage errors, whichever click they come from
        if message is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "ncops") or "ncops"
        return _fail(f"{message()} (see {command} --help)", command=command)


def _run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status, or raises what it comes to."""
    try:
        from .application import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "tqdm", "click"):
            raise
        raise CommandError(f"the command line needs {error.name!r}: pip install 'ncops[cli]'") from None
    _check_names(arguments)
    if arguments[:1] in (["lm"], ["lens"], ["plan"]):
        arguments = spread_text(arguments)
    result = app(arguments or ["--help"], prog_name="ncops", standalone_mode=False)
    if result == 130:  # how typer passes Ctrl-C on
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def run() -> None:
    """Entry point of ``python -m ncops``."""
    sys.exit(main())
