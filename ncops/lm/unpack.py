"""The bytes of files and of standard input, unpacked as they are read."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

from ..errors import need

STDIN = "-"
PACKINGS = (".gz", ".zst")


def packing_of(path: str) -> str:
    """The suffix that says how a file is compressed, or nothing."""
    suffix = os.path.splitext(path.lower())[1]
    return suffix if suffix in PACKINGS else ""


@contextlib.contextmanager
def opened(path: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked as they are read."""
    packing = packing_of(path)
    if path == STDIN:
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        if packing == ".gz":
            with gzip.open(file) as unpacked:
                yield unpacked
        elif packing == ".zst":
            need("data", "zstandard")
            yield io.BufferedReader(_Zstandard(file), 1 << 17)
        else:
            yield file


class _Zstandard(io.RawIOBase):
    """The content of a file of Zstandard frames; unlike the package's own readers it notices one that is cut off."""

    SLICE = 1 << 11  # of a bomb, whose 4 bytes make 128 KB, this much makes 64 MB at a time

    def __init__(self, file: io.BufferedIOBase) -> None:
        import zstandard

        self._file, self._unpack = file, zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame, self._rest, self._out = None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            data = self._rest or self._file.read(self.SLICE)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed file is cut off")
                return 0
            self._frame = self._frame or self._unpack.decompressobj()
            self._out, self._rest = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        count = min(len(buffer), len(self._out))
        buffer[:count], self._out = self._out[:count], self._out[count:]
        return count


def damage() -> tuple[type[BaseException], ...]:
    """What reading a damaged file raises; ValueError is the base of Arrow's."""
    found: list[type[BaseException]] = [OSError, EOFError, zlib.error, ValueError]
    if "zstandard" in sys.modules:
        found.append(sys.modules["zstandard"].ZstdError)
    return tuple(found)
