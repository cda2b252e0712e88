"""Files that are never half written; statistics as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
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
        FileNotFoundError: there is no such folder. IsADirectoryError: ``path`` is one. OSError: it takes no file.
    """
    target = os.path.abspath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"path: no folder {os.path.dirname(target)}")
    if os.path.isdir(target):
        raise IsADirectoryError(f"path: expected a file, got the folder {target}")
    if os.path.isfile(target) or not os.path.exists(target):  # devices are written as they are
        try:
            try_folder(os.path.dirname(os.path.realpath(target)))
        except OSError as error:
            raise type(error)(f"path: {target} cannot be written: {error.strerror}") from None


def try_folder(folder: str | os.PathLike) -> None:
    """Makes a file without a name in ``folder``, and raises what the system says: rights alone do not tell."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def _lock(folder: str) -> int | None:
    """A descriptor that locks a folder until it is closed, or the process dies; None where another holds the lock.

    -1 where the system or the file system has no such locks.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError as error:
        os.close(handle)
        return None if isinstance(error, BlockingIOError) else -1


def _sweep(folder: str, prefix: str) -> None:
    """Removes what writers of the same name have left that were killed: those that live hold a lock."""
    for name in os.listdir(folder):
        if name.startswith(prefix) and name.endswith(".tmp"):
            with suppress(OSError):
                handle = _lock(os.path.join(folder, name))
                if handle is not None and handle >= 0:
                    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
                    os.close(handle)


def _workshop(folder: str, prefix: str) -> tuple[str, int]:
    """A new folder for one writer, and its lock."""
    while True:
        made = os.path.join(folder, f"{prefix}{secrets.token_hex(8)}.tmp")
        os.mkdir(made)
        with suppress(FileNotFoundError):  # another's sweep came between
            handle = _lock(made)
            if handle is not None and os.path.isdir(made):
                return made, handle
            if handle is not None and handle >= 0:
                os.close(handle)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """A temporary name to write, which takes the place of ``path`` once the block has ended.

    ``path`` holds, at every moment, its old content or all of the new: the bytes are flushed to the disk before the
    name is replaced. Where the block raises, nothing is left of them; what a killed process leaves, a folder beside
    ``path``, is removed by the next that writes there. A device or a pipe is written as it is.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    prefix = f".{name[:40]}."
    temporary, handle = None, -1
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            yield os.fspath(path)
            return
        _sweep(folder, prefix)
        workshop, handle = _workshop(folder, prefix)
        temporary = os.path.join(workshop, name)
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as the umask has it, whatever the writer makes of it
        yield temporary
        os.chmod(temporary, mode & 0o777)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        unnamed = error.filename is None and error.errno is not None  # a write that failed
        if unnamed or str(error.filename or "").startswith((os.path.join(folder, prefix), folder)):
            error.filename = os.fspath(path)
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(os.path.dirname(temporary), ignore_errors=True)
        if handle >= 0:
            os.close(handle)
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
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    # One entry: safetensors keeps its metadata in a hash map, whose order differs from process to process.
    metadata = {"ncops": json.dumps({**document, "sha256": _digest(document, tensors)}, sort_keys=True)}
    try:
        with replacing(path) as name:
            save_file(tensors, name, metadata)
    except (SafetensorError, PermissionError) as error:
        raise OSError(f"path: {os.path.abspath(path)} cannot be written: {error}") from error


def _digest(document: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """A hash of all that a file says: disks and networks flip bits that no format notices."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    with _opened(path) as (document, file):
        # Copies: tensors mapped from the file would change, or vanish, with it.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        stated = document.pop("sha256", None)  # files of older releases have none
        if stated is not None and stated != _digest(document, tensors):
            raise ValueError(f"path: {os.fspath(path)} is damaged: its content is not what was written")
        return document["kind"], document["config"], {key: value.to(device) for key, value in tensors.items()}


def read_origin(path: str | os.PathLike) -> dict[str, Any] | None:
    """The ``origin`` that a file was saved with, or None; raises as :func:`read_state`."""
    with _opened(path) as (document, _):
        return document.get("origin")


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[dict[str, Any], Any]]:
    """What a file says about itself, and the open file; what goes wrong inside is an error that names it."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.exists(name):
        raise FileNotFoundError(f"path: no file {name}")
    if not os.path.isfile(name):  # a pipe would be waited for
        raise ValueError(f"path: expected a file, got {name}, which is none")
    try:
        with safe_open(name, framework="pt") as file:
            yield _document(file.metadata() or {}, name), file
    except (SafetensorError, OSError, KeyError, RecursionError, json.JSONDecodeError) as error:
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
