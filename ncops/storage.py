"""Statistics on disk: one safetensors file, never half of one."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

FORMAT = "ncops-stats"
VERSION = 1


def save_state(path: str | os.PathLike, kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes a state so that ``path`` holds, at every moment, its old content or all of the new.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the name is then replaced.
    """
    from safetensors.torch import save_file

    target = os.path.abspath(os.fspath(path))
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    metadata = {"format": FORMAT, "version": str(VERSION), "kind": kind, "config": json.dumps(config)}
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Makes the new name itself durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_state(
    path: str | os.PathLike, device: torch.device | str = "cpu"
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """``(kind, config, tensors)`` of a file written by :func:`save_state`.

    Raises:
        FileNotFoundError: no such file. ValueError: truncated, damaged, of another program or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path: no file {name}")
    try:
        with safe_open(name, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"path: {name} is a safetensors file, but not one of ncops statistics")
            if not metadata.get("version", "").isdigit() or int(metadata["version"]) > VERSION:
                raise ValueError(
                    f"path: {name} has version {metadata.get('version')!r} of the format, this ncops reads {VERSION}"
                )
            # Copies: tensors mapped from the file would change, or vanish, with it.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
            return metadata["kind"], json.loads(metadata["config"]), tensors
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {name} is not a whole file of ncops statistics: {error}") from error


def load(path: str | os.PathLike, *, device: torch.device | str = "cpu"):
    """Reads statistics written by ``save``: a :class:`ClassStatistics` or a :class:`DecisionStatistics`.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged, written by another program or by a newer ncops.
    """
    from .decisions import DecisionStatistics
    from .statistics import ClassStatistics

    kinds = {cls.__name__: cls for cls in (ClassStatistics, DecisionStatistics)}
    kind, config, tensors = read_state(path, device)
    if kind not in kinds:
        raise ValueError(f"path: {os.fspath(path)} holds {kind!r}, expected one of {', '.join(kinds)}")
    try:
        return kinds[kind].from_state(config, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path: {os.fspath(path)} is damaged: {error}") from error
