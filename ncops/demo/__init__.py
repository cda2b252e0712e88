"""``ncops demo``: one command, real numbers, no download of its own."""

from __future__ import annotations

from ..errors import CommandError
from ..report.console import say
from ..report.measured import Measured

__all__ = ["run"]


def run(
    model: str, *, tokens: int = 16384, steps: int = 800, seed: int = 0, quiet: bool = False
) -> tuple[Measured, str]:
    """Runs one demo and returns its report and title. Without SmolLM2 the tiny model is trained, and that is said.

    Raises:
        CommandError: for ``model="digits"`` without scikit-learn.
    """
    from . import digits, smollm2, tiny

    if model == "digits":
        return digits.run(seed=seed, quiet=quiet)
    why = ""
    if model == "smollm2":
        try:
            return smollm2.run(tokens=tokens, quiet=quiet)
        except CommandError as error:
            why = f"SmolLM2 cannot be had: {error}."
        say(f"{why}\nTraining a tiny language model instead (about 3 minutes on 2 cores; --model tiny asks for it).")
    measured, title = tiny.run(tokens=tokens, steps=steps, seed=seed, quiet=quiet)
    if why:
        measured.details["notes"].insert(0, f"{why} This is the tiny language model instead.")
    return measured, title
