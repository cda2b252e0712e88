"""Text on disk, or on standard input, as documents of pieces: whatever its form, a corpus is never held as strings."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CommandError, need
from ..report.console import say
from .unpack import STDIN, damage, opened, packing_of

CHUNK_CHARACTERS = 1 << 20
"""Text is handed on a mebibyte at a time, cut after a line, or within one that goes on for as long again."""
LONGEST_LINE = 1 << 28
RECORDS = 64
"""Records of a table that are decoded at a time."""
SNIFFED = 1 << 13


class Reader(NamedTuple):
    """How text is read. ``option`` names where the paths came from, in errors."""

    field: str = "text"
    errors: str = "strict"
    option: str = "--text"

    def wrong(self, what: str) -> CommandError:
        return CommandError(f"{self.option}: {what}")

    def undecodable(self, place: str, error: UnicodeDecodeError, at: int) -> CommandError:
        return self.wrong(
            f"{place} cannot be read as UTF-8 text: {error.reason} at byte {at} (--encoding-errors replace or ignore "
            "reads it all the same)"
        )


def read_texts(
    paths: Iterable[str | os.PathLike],
    *,
    field: str = "text",
    errors: str = "strict",
    option: str = "--text",
    processes: int = 1,
    told: Callable[[str], None] = say,
) -> Iterator[Iterator[str]]:
    """The documents of these paths, each as an iterator over its pieces, which has to be used up before the next.

    By suffix: ``.jsonl``, ``.ndjson``, ``.parquet`` and ``.arrow`` hold records, of which each is a document, and so do
    folders written by ``datasets.save_to_disk``; anything else is plain text, one document a file. ``.gz`` and ``.zst``
    are unpacked. Of other folders every file is read that is hidden nowhere and no binary one, sorted by its path.

    Args:
        field: the name of the text in a record.
        errors: what becomes of bytes that are not UTF-8: ``"strict"`` (an error), ``"replace"``, ``"ignore"``.
        option: what to call the paths in errors. processes: how many read the same paths.
        told: gets a sentence on each folder.

    Raises:
        CommandError: at the call: nothing there, a package that is missing. While reading: what cannot be read.
    """
    reader = Reader(field, errors, option)
    sources = [source for path in paths for source in _sources(os.fspath(path), reader, told)]
    for source in sources:
        if processes > 1 and read_once(source):
            raise reader.wrong(f"{name_of(source)} can be read by one process, got {processes}: give a file")
        if _form(source) in TABLES:
            need("data", "pyarrow")
        if packing_of(source) == ".zst":
            need("data", "zstandard")
    return (document for source in sources for document in _documents(source, reader))


def read_once(path: str) -> bool:
    """Whether this is standard input or a pipe, which one process can read, once."""
    return path == STDIN or not (os.path.isfile(path) or os.path.isdir(path))


def name_of(path: str) -> str:
    return "standard input" if path == STDIN else Path(path).name or path


def pieces(stream: io.TextIOBase) -> Iterator[str]:
    """A text in pieces of about CHUNK_CHARACTERS."""
    while piece := stream.read(CHUNK_CHARACTERS):
        yield piece + stream.readline(CHUNK_CHARACTERS)


# -- what there is ----------------------------------------------------------------------------------------------------


def _form(path: str) -> str:
    """The suffix of a form of records, or nothing."""
    form = os.path.splitext(path.lower().removesuffix(packing_of(path)))[1]
    return form if form in FORMS else ""


def _sources(path: str, reader: Reader, told: Callable[[str], None]) -> list[str]:
    """The files that a path stands for."""
    if path == STDIN:
        return [path]
    if not path or not os.path.exists(path):
        raise reader.wrong(f"no file {path!r}")
    if not os.path.isdir(path):
        return [path]
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = sorted(name for name in os.listdir(path) if _is_dataset(os.path.join(path, name)))
        raise reader.wrong(
            f"{path} holds several data sets; name one: {', '.join(os.path.join(path, name) for name in splits)}"
        )
    if _is_dataset(path):
        return _files_of_dataset(path, reader)
    found, skipped = [], []
    for folder, folders, files in os.walk(path):
        for name in sorted([*folders, *files]):
            whole = os.path.join(folder, name)
            if os.path.isdir(whole):
                if name.startswith(".") or os.path.islink(whole):
                    skipped.append(f"{os.path.relpath(whole, path)}/ ({'hidden' if name[0] == '.' else 'a link'})")
                    folders.remove(name)
                elif _is_dataset(whole):
                    found += _files_of_dataset(whole, reader)
                    folders.remove(name)
                continue
            why = _why_not(whole, reader)
            if why:
                skipped.append(f"{os.path.relpath(whole, path)} ({why})")
            else:
                found.append(whole)
    found.sort(key=lambda file: Path(file).parts)
    few = f", skips {len(skipped)}: {_few(sorted(skipped))}" if skipped else ""
    if not found:
        raise reader.wrong(f"the folder {path} holds no text{few}")
    told(f"{reader.option}: reads {len(found)} file(s) of {path}{few}")
    return found


def _few(names: list[str], most: int = 8) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def few_names(paths: Iterable[str]) -> str:
    """The names of files, the first of them where they are many."""
    return _few([name_of(path) for path in paths])


def _why_not(path: str, reader: Reader) -> str:
    """Why a file of a folder is left out, or nothing."""
    if os.path.basename(path).startswith("."):
        return "hidden"
    if not os.path.isfile(path):
        return "not a file"
    if _form(path):
        return ""
    try:
        with opened(path) as stream:
            head = stream.read(SNIFFED)
    except damage():
        return ""  # to be told when it is read
    broken = reader.errors == "strict" and not _starts_utf8(head)
    return "binary" if broken or b"\0" in head else ""


def _starts_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.reason == "unexpected end of data"
    return True


def _is_dataset(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json"))


def _files_of_dataset(folder: str, reader: Reader) -> list[str]:
    """The Arrow files of a data set, in its order."""
    try:
        with open(os.path.join(folder, "state.json"), encoding="utf-8") as file:
            state = json.load(file)
        names = [part["filename"] for part in state["_data_files"]]
        files = [os.path.join(folder, os.path.basename(name)) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise reader.wrong(f"{folder}/state.json is not one of a data set: {error!r}") from None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise reader.wrong(f"{folder} is a selection of its rows by indices: save it again, by flatten_indices()")
    for file in files:
        if not os.path.isfile(file):
            raise reader.wrong(f"{folder} lacks {os.path.basename(file)}, which its state.json names")
    return files


# -- documents --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path: str, reader: Reader) -> Iterator[None]:
    """What goes wrong with a file, in one line that names it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, damage()):
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise reader.wrong(f"{path} cannot be read: {why:.300}") from error


class _Counted(io.BufferedIOBase):
    """Bytes on their way to a decoder, which would not say where in the file an error is."""

    def __init__(self, stream: io.BufferedIOBase, place: str, reader: Reader) -> None:
        self._stream, self._place, self._reader = stream, place, reader
        self.count = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        data = self._stream.read1(size)
        if self._reader.errors == "strict" and (at := data.find(b"\0")) >= 0:
            raise self._reader.wrong(
                f"{self._place} is not plain text: byte {self.count + at} is 0, as in UTF-16 and in binary files "
                "(--encoding-errors replace or ignore reads it all the same)"
            )
        self.count += len(data)
        return data


def _documents(path: str, reader: Reader) -> Iterator[Iterator[str]]:
    return FORMS.get(_form(path), _plain)(path, reader)


def _plain(path: str, reader: Reader) -> Iterator[Iterator[str]]:
    yield _plain_pieces(path, reader)


def _plain_pieces(path: str, reader: Reader) -> Iterator[str]:
    """Line ends become newlines, and a byte order mark is no text."""
    place = "standard input" if path == STDIN else path
    with _explained(place, reader), opened(path) as stream:
        counted = _Counted(stream, place, reader)
        try:
            yield from pieces(io.TextIOWrapper(counted, encoding="utf-8-sig", errors=reader.errors))
        except UnicodeDecodeError as error:
            at = counted.count - len(error.object) + error.start
            raise reader.undecodable(place, error, at) from None


def _json_lines(path: str, reader: Reader) -> Iterator[Iterator[str]]:
    with _explained(path, reader), opened(path) as stream:
        number, read = 0, 0
        while line := stream.readline(LONGEST_LINE + 1):
            number, read = number + 1, read + len(line)
            place = f"{path}, line {number}"
            if len(line) > LONGEST_LINE:
                raise reader.wrong(f"{place} is longer than {LONGEST_LINE >> 20} MiB")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", reader.errors)
            except UnicodeDecodeError as error:
                raise reader.undecodable(place, error, read - len(error.object) + error.start) from None
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise reader.wrong(f"{place} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise reader.wrong(f"{place}: expected an object, got {type(record).__name__}")
            if reader.field not in record:
                raise reader.wrong(f"{place} has no {reader.field!r} but {_few(list(record))}: give --text-field")
            yield _record(record[reader.field], place, reader)


def _record(value: Any, place: str, reader: Reader) -> Iterator[str]:
    """The pieces of a record's text, whose line ends are kept."""
    if not isinstance(value, str):
        got = "nothing" if value is None else type(value).__name__
        raise reader.wrong(f"{place}: expected text in {reader.field!r}, got {got}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell halves of characters
        if reader.errors == "strict":
            raise reader.wrong(
                f"{place}: {reader.field!r} has half a character, {value[error.start]!a} (--encoding-errors replace or "
                "ignore reads it all the same)"
            ) from None
        value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", reader.errors)
    return pieces(io.StringIO(value))


def _parquet(path: str, reader: Reader) -> Iterator[Iterator[str]]:
    from pyarrow import parquet

    with _explained(path, reader), parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, path, reader)
        yield from _rows(file.iter_batches(RECORDS, columns=[reader.field]), path, reader)


def _arrow(path: str, reader: Reader) -> Iterator[Iterator[str]]:
    """A file of Arrow's stream format, as data sets are saved in, or of its file format."""
    import pyarrow

    with _explained(path, reader), pyarrow.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(source)
            batches: Iterable[Any] = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = file = pyarrow.ipc.open_stream(source)
        _check_columns(file.schema.names, path, reader)
        yield from _rows(batches, path, reader)


def _check_columns(names: list[str], path: str, reader: Reader) -> None:
    if reader.field not in names:
        raise reader.wrong(f"{path} has no column {reader.field!r} but {_few(names)}: give --text-field")


def _rows(batches: Iterable[Any], path: str, reader: Reader) -> Iterator[Iterator[str]]:
    number = 0
    for batch in batches:
        for value in batch.column(reader.field):
            number += 1
            place = f"{path}, record {number}"
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                if reader.errors == "strict":
                    raise reader.undecodable(place, error, error.start) from None
                text = value.as_buffer().to_pybytes().decode("utf-8", reader.errors)
            yield _record(text, place, reader)


FORMS: dict[str, Callable[[str, Reader], Iterator[Iterator[str]]]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet, ".arrow": _arrow,
}  # fmt: skip
TABLES = (".parquet", ".arrow")
