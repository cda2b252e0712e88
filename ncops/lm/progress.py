"""How far a pass has got, on disk, so that a killed run goes on where its last checkpoint was, with the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CommandError
from ..stats.files import read_state, save_state
from ..stats.state import StreamingState
from .ranks import Ranks

KIND = "lm-progress"


def signature(what: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same for a run to go on: tensors and byte strings by their hash, the rest as JSON."""

    def short(value: Any) -> str:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()[:16]
        return json.dumps(value, sort_keys=True, default=str)

    return {name: short(value) for name, value in what.items()}


class Progress:
    """Checkpoints of one rank: a file per part, state and position together, replaced as a whole.

    Args:
        folder: where the files are; None keeps nothing.
        every: batches between two checkpoints.
        run: the :func:`signature` of the run.
    """

    def __init__(self, folder: Path | None, every: int, run: Mapping[str, str], ranks: Ranks) -> None:
        self.folder, self.every, self.run = folder, every, dict(run)
        self._suffix = "" if ranks.size == 1 else f"-{ranks.rank}of{ranks.size}"

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}{self._suffix}.safetensors"

    def save(self, part: str, done: int, states: Mapping[str, StreamingState]) -> None:
        """Stores that ``done`` windows of ``part`` are in ``states``."""
        if self.folder is None:
            return
        tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.tensors().items()}
        config = {"run": self.run, "done": done, "states": {name: state.config() for name, state in states.items()}}
        save_state(self._path(part), KIND, config, tensors)

    def restore(self, part: str, device: torch.device | str) -> tuple[int, dict[str, dict[str, Any]]]:
        """``(windows done, state_dict by name)`` of the last checkpoint of ``part``; ``(0, {})`` where there is none.

        Raises:
            CommandError: the file is damaged, or belongs to another run.
        """
        if self.folder is None or not self._path(part).exists():
            return 0, {}
        path = self._path(part)
        try:
            kind, config, tensors = read_state(path, device)
        except ValueError as error:
            raise CommandError(f"--checkpoint: {error}") from None
        if kind != KIND:
            raise CommandError(f"--checkpoint: {path} holds {kind}, not the progress of a run")
        for name, value in self.run.items():
            if config["run"].get(name) != value:
                raise CommandError(
                    f"--checkpoint: {path} belongs to a run with another {name}; give another folder, or remove it"
                )
        states: dict[str, dict[str, Any]] = {name: {"config": settings} for name, settings in config["states"].items()}
        for key, tensor in tensors.items():
            name, _, entry = key.rpartition("/")
            states[name][entry] = tensor
        return config["done"], states
