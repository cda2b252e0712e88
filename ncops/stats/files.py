"""Files that are never half written; statistics as one safetensors file."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

FORMAT = "ncops-stats"
VERSION = 2
"""1 had one metadata entry for each of format, version, kind and config, which safetensors writes in any order."""


def check_target(path: str | os.PathLike) -> None:
    """Raises where no file can be written at ``path``, before the work that is to be saved.

    Raises:
        FileNotFoundError: there is no such folder. IsADirectoryError: ``path`` is one.
    """
    target = os.path.abspath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"path: no folder {os.path.dirname(target)}")
    if os.path.isdir(target):
        raise IsADirectoryError(f"path: expected a file, got the folder {target}")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """A temporary name to write, in the folder of ``path``, which takes the place of ``path`` once the block has ended.

    ``path`` holds, at every moment, its old content or all of the new: the bytes are flushed to the disk before the
    name is replaced. Where the block raises, nothing is left of them. A device or a pipe is written as it is.
    """
    target = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        yield os.fspath(path)
        return
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as the umask has it, whatever the writer makes of it
        yield temporary
        os.chmod(temporary, mode & 0o777)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = os.fspath(path)
        raise
    with suppress(OSError):  # the new name itself becomes durable, where the system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes bytes, or text as UTF-8, whole or not at all."""
    with replacing(path) as name, open(name, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save_state(
    path: str | os.PathLike, kind: str, config: dict[str, Any], tensors: dict[str, Tensor],
    origin: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a state, whole or not at all. Equal states make equal files.

    Args:
        origin: what the state was measured on, as plain values; :func:`read_origin` reads it.

    Raises:
        FileNotFoundError: there is no such folder. OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_target(path)
    document = {"format": FORMAT, "version": VERSION, "kind": kind, "config": config, "origin": origin}
    # One entry: safetensors keeps its metadata in a hash map, whose order differs from process to process.
    metadata = {"ncops": json.dumps(document, sort_keys=True)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        with replacing(path) as name:
            save_file(tensors, name, metadata)
    except (SafetensorError, PermissionError) as error:
        raise OSError(f"path: {os.path.abspath(path)} cannot be written: {error}") from error


def save_statistics(path: str | os.PathLike, statistics: Any, origin: dict[str, Any] | None) -> None:
    """Writes statistics as their ``save`` does, with what they were measured on."""
    save_state(path, type(statistics).__name__, statistics.config(), statistics.tensors(), origin)


def read_state(
    path: str | os.PathLike, device: torch.device | str = "cpu"
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """``(kind, config, tensors)`` of a file written by :func:`save_state`.

    Raises:
        FileNotFoundError: no such file. ValueError: truncated, damaged, of another program or of a newer version.
    """
    with _opened(path, device) as (document, file):
        # Copies: tensors mapped from the file would change, or vanish, with it.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        return document["kind"], document["config"], tensors


def read_origin(path: str | os.PathLike) -> dict[str, Any] | None:
    """The ``origin`` that a file was saved with, or None; raises as :func:`read_state`."""
    with _opened(path, "cpu") as (document, _):
        return document.get("origin")


@contextmanager
def _opened(path: str | os.PathLike, device: torch.device | str) -> Iterator[tuple[dict[str, Any], Any]]:
    """What a file says about itself, and the open file; what goes wrong inside is an error that names it."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path: no file {name}")
    try:
        with safe_open(name, framework="pt", device=str(device)) as file:
            yield _document(file.metadata() or {}, name), file
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {name} is not a whole file of ncops statistics: {error}") from error


def _document(metadata: dict[str, str], name: str) -> dict[str, Any]:
    if "ncops" in metadata:
        document = json.loads(metadata["ncops"])
    else:  # version 1
        document = dict(metadata)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"path: {name} is a safetensors file, but not one of ncops statistics")
    version, newest = str(document.get("version", "")), VERSION if "ncops" in metadata else 1
    if not version.isdigit() or int(version) > newest:
        raise ValueError(f"path: {name} has version {version!r} of the format, this ncops reads up to {VERSION}")
    if "ncops" not in metadata:
        document["config"] = json.loads(document["config"])
    if not isinstance(document["kind"], str) or not isinstance(document["config"], dict):
        raise ValueError(f"path: {name} is damaged: its kind or its configuration is none")
    return document
