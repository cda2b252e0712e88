"""Arrays of numbers in .npz files of others: what a file declares is held against the file before it is believed."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from ..memory import available

KINDS = "fiub"
BOMB_BYTES, BOMB_RATIO = 256 << 20, 100
"""Deflate makes zeros a thousand times smaller, features at most some dozens of times."""


class Npz:
    """The arrays of an .npz file; pickles, strings, dates and records are refused.

    Raises:
        ValueError: no zip archive, or two members of one name. zipfile.BadZipFile, OSError: likewise.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self.archive = zipfile.ZipFile(path)
        members = self.archive.infolist()
        self.members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self.members) < len(members):
            raise ValueError("it has two members of one name")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the array, as its header has it, whose size the member has.

        Raises:
            Exception: of many kinds, where the member is no array of numbers or is damaged.
        """
        return self._header(name)[0]

    def read(self, name: str) -> np.ndarray:
        """The array in this machine's byte order; raises as :meth:`shape`, and where it does not fit the memory."""
        shape, dtype = self._header(name)
        member, size = self.members[name], math.prod(shape) * dtype.itemsize
        if size > BOMB_BYTES and size > BOMB_RATIO * member.compress_size:
            raise ValueError(
                f"{size / 1e9:.1f} GB are packed in {member.compress_size / 1e6:.1f} MB, as no features are: save it "
                f"uncompressed (numpy.savez) if this is meant"
            )
        free = available()
        if free is not None and size > free:
            need, there = f"{size / 1e9:.1f} GB", f"{free / 1e9:.1f} GB"
            raise ValueError(f"it takes {need}, {there} are free (.safetensors is read in parts)")
        with self.archive.open(member) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # its end, where the checksum is compared
        return array.astype(dtype.newbyteorder("="), copy=False)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        member = self.members[name]
        if member.compress_size > self.size:
            raise ValueError(f"it declares {member.compress_size} bytes of a file of {self.size}")
        with self.archive.open(member) as file:
            if file.peek(6)[:6] != np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is no array")
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {version} of the format is for records")
            start = file.tell()
        if dtype.kind not in KINDS or dtype.itemsize > 8:
            why = ", which cannot be read without pickle" if dtype.hasobject else ""
            raise ValueError(f"expected numbers of at most 64 bits, got {dtype}{why}")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - start:
            raise ValueError(f"its header declares {size} bytes, {dtype} {shape}; it has {member.file_size - start}")
        return shape, dtype
