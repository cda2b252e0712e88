"""The text of `ncops lm` in every form, and what cannot be read."""

from __future__ import annotations

import gzip
import io
import json

import pytest
from lm_text_cases import DOCUMENTS, OPTIONS, plain, refused, run, save_tiny, without_facts

from ncops import cli, lm, memory
from ncops.errors import CommandError
from ncops.lm import text

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("text") / "model")


# ---- forms
def json_lines(documents, field="text") -> bytes:
    return b"".join(json.dumps({"id": i, field: d}).encode() + b"\n" for i, d in enumerate(documents))


def table(documents, field="text"):
    return pyarrow.table({"id": list(range(len(documents))), field: documents})


def stream_of(path, made) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)


def data_set(folder, parts) -> None:
    """As ``datasets.save_to_disk`` writes one."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        stream_of(folder / name, table(part))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1f", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}))


def in_every_form(folder) -> dict[str, list]:
    """Name of a form -> paths, all of DOCUMENTS."""
    folder.mkdir()
    squeeze, lines = zstandard.ZstdCompressor().compress, json_lines(DOCUMENTS)
    forms = {"plain": plain(folder / "plain"), "folder": [folder / "plain"]}
    for name, pack in (("gz", gzip.compress), ("zst", squeeze)):
        forms[name] = []
        for path in forms["plain"]:
            forms[name].append(folder / f"{path.stem}.{name}")
            forms[name][-1].write_bytes(pack(path.read_bytes()))
    for name, content in (
        ("a.jsonl", lines), ("b.NDJSON", b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n \n").rstrip()),
        ("c.jsonl.gz", gzip.compress(lines[:99]) + gzip.compress(lines[99:])),
        ("d.jsonl.zst", squeeze(lines[:500]) + squeeze(lines[500:])),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
        forms[name] = [folder / name]
    parquet.write_table(table(DOCUMENTS), folder / "e.parquet", row_group_size=2)
    encoded = table(DOCUMENTS).set_column(1, "text", pyarrow.array(DOCUMENTS).dictionary_encode())
    parquet.write_table(encoded, folder / "f.parquet")
    stream_of(folder / "g.arrow", table(DOCUMENTS))
    with pyarrow.OSFile(str(folder / "h.arrow"), "wb") as sink:
        made = table(DOCUMENTS)
        with pyarrow.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made, max_chunksize=2)
    data_set(folder / "set", [DOCUMENTS[:2], DOCUMENTS[2:]])
    data_set(folder / "splits" / "train", [DOCUMENTS])
    (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return forms | {
        name: [folder / name] for name in ("e.parquet", "f.parquet", "g.arrow", "h.arrow", "set", "splits/train")
    }


def read(*paths, **options) -> list[str]:
    return ["".join(pieces) for pieces in lm.read_texts(paths, told=lambda _: None, **options)]


def test_every_form_is_read_alike(tmp_path, tiny, capsys, monkeypatch):
    forms = in_every_form(tmp_path / "forms")
    for name, paths in forms.items():
        assert read(*paths) == DOCUMENTS, name
    wanted = without_facts(run(capsys, tiny[0], "--text", *forms["plain"], *OPTIONS))
    for name in ("folder", "zst", "c.jsonl.gz", "d.jsonl.zst", "e.parquet", "set"):
        assert without_facts(run(capsys, tiny[0], "--text", *forms[name], *OPTIONS)) == wanted, name
    one = run(capsys, tiny[0], "--text", *plain(tmp_path / "one", DOCUMENTS[:1]), *OPTIONS)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(DOCUMENTS[0].encode())))
    page = run(capsys, tiny[0], "--text", "-", *OPTIONS)
    assert without_facts(page) == without_facts(one) and page["run"]["data"] == "standard input"


def test_the_text_of_records_has_a_name(tmp_path, tiny, capsys):
    (tmp_path / "a.jsonl").write_bytes(json_lines(DOCUMENTS, "content"))
    parquet.write_table(table(DOCUMENTS, "content"), tmp_path / "a.parquet")
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        assert read(path, field="content") == DOCUMENTS
        line = refused(capsys, tiny[0], "--text", path, *OPTIONS)
        assert "has no " in line and "'text' but id, content: give --text-field" in line and str(path) in line
        page = run(capsys, tiny[0], "--text", path, "--text-field", "content", *OPTIONS)
        assert page["run"]["text_field"] == "content"


def test_a_folder_says_what_it_reads_and_what_not(tmp_path, tiny, capsys):
    plain(tmp_path / "b"), plain(tmp_path / "a")
    (tmp_path / "a" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "a" / "packed.bin.gz").write_bytes(gzip.compress(b"\xff\xfe\0\1"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("w1 w2")
    (tmp_path / ".hidden").write_text("w1 w2")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "empty.txt").touch()
    data_set(tmp_path / "c" / "set", [DOCUMENTS[:1]])
    assert read(tmp_path) == [*DOCUMENTS, *DOCUMENTS, DOCUMENTS[0], ""]
    assert cli.main(["lm", str(tiny[0]), "--text", str(tmp_path), *OPTIONS]) == 0
    assert (
        f"--text: reads 12 file(s) of {tmp_path}, skips 5: .git/ (hidden), .hidden (hidden), a/image.png (binary), "
        "a/packed.bin.gz (binary), a/up/ (a link)\n"
    ) in capsys.readouterr().err


def test_texts_are_cut_into_pieces_after_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "CHUNK_CHARACTERS", 64)
    whole = "".join(f"line {i} é\n" for i in range(40)) + "x" * 500 + "\nend"
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    (tmp_path / "a.jsonl").write_bytes(json_lines([whole]))
    for path in (tmp_path / "a.txt", tmp_path / "a.jsonl"):
        (found,) = [list(pieces) for pieces in lm.read_texts([path])]
        assert "".join(found) == whole and max(map(len, found)) <= 128
        assert all(piece.endswith("\n") for piece in found[:5])


def test_line_ends_and_byte_order_marks(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfw1\r\nw2\rw3\n\xef\xbb\xbf")
    assert read(tmp_path / "a.txt") == ["w1\nw2\nw3\n\ufeff"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "w1\\r\\nw2"}\r\n\r\n')
    assert read(tmp_path / "a.jsonl") == ["w1\r\nw2"]  # a record says what its text is


# ---- what cannot be read
def test_bytes_that_are_no_utf8(tmp_path, tiny, capsys):
    cases = {
        "a": b"w1 \xff w2",
        "b": "é".encode() * 700_000 + b"\xc3(" + b"w1",
        "c": b"w1 \xe2\x82",
        "d": b"\xef\xbb\xbfa\x80",
    }
    for name, content in cases.items():
        with pytest.raises(UnicodeDecodeError) as error:
            content.decode()
        path = tmp_path / f"{name}.txt"
        for of in (content, None):
            path.write_bytes(content)
            if of is None:  # compressed, the place is that in the text
                path.write_bytes(gzip.compress(content))
                path = path.rename(tmp_path / f"{name}.txt.gz")
            line = refused(capsys, tiny[0], "--text", path, *OPTIONS)
            assert f"--text: {path} cannot be read as UTF-8 text: " in line
            assert f"at byte {error.value.start} (--encoding-errors replace or ignore" in line
            for errors in ("replace", "ignore"):
                assert read(path, errors=errors) == [content.decode("utf-8-sig", errors)]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "w1"}\n{"text": "w\xff2"}\n')
    with pytest.raises(CommandError, match=r"a.jsonl, line 2 cannot be read as UTF-8 text: .* at byte 26 "):
        read(tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl", errors="ignore") == ["w1", "w2"]
    page = run(
        capsys,
        tiny[0],
        "--text",
        *plain(tmp_path / "more"),
        tmp_path / "a.jsonl",
        *OPTIONS,
        "--encoding-errors",
        "replace",
    )
    assert page["run"]["encoding_errors"] == "replace"
    (tmp_path / "half.jsonl").write_bytes(b'{"text": "w1 \\ud83d w2"}\n{"text": "\\ud83d\\ude42"}\n')
    with pytest.raises(CommandError, match=r"half.jsonl, line 1: 'text' has half a character, '\\ud83d'"):
        read(tmp_path / "half.jsonl")
    assert read(tmp_path / "half.jsonl", errors="replace") == ["w1 \ufffd w2", "🙂"]
    raw = pyarrow.array([b"w1", b"w\xff2"]).cast(pyarrow.binary())
    bad = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    stream_of(tmp_path / "a.arrow", pyarrow.table({"text": bad}))
    with pytest.raises(CommandError, match=r"a.arrow, record 2 cannot be read as UTF-8 text: .* at byte 1 "):
        read(tmp_path / "a.arrow")
    assert read(tmp_path / "a.arrow", errors="ignore") == ["w1", "w2"]


def squeezed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


LINES = json_lines(DOCUMENTS)
HOSTILE = {
    "utf16.txt": ("w1 w2".encode("utf-16-le"), "byte 1 is 0, as in UTF-16 and in binary files"),
    "cut.gz": (gzip.compress(LINES)[:-20], "cannot be read: Compressed file ended before"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:200], "cannot be read: Compressed file ended before"),
    "flip.gz": (gzip.compress(LINES)[:-8] + b"12345678", "cannot be read: CRC check failed"),
    "not.gz": (b"w1 w2 w3", "cannot be read: Not a gzipped file"),
    "cut.zst": (squeezed(LINES)[:-9], "cannot be read: the compressed file is cut off"),
    "cut.jsonl.zst": (squeezed(LINES)[:50], "cannot be read: the compressed file is cut off"),
    "not.zst": (b"w1 w2 w3", "cannot be read: .*nknown frame descriptor"),
    "tail.zst": (squeezed(b"w1 w2") + b"more than nothing", "cannot be read: "),
    "a.jsonl": (b'{"text": "w1"}\n\n{"text": "w1"', "a.jsonl, line 3 is not JSON: "),
    "b.jsonl": (b"w1 w2\n", "b.jsonl, line 1 is not JSON: "),
    "c.jsonl": (b'{"text": "w1"}\n{"txt": "w1"}\n', "c.jsonl, line 2 has no 'text' but txt: give --text-field"),
    "d.jsonl": (b'{"text": ["w1"]}\n', "d.jsonl, line 1: expected text in 'text', got list"),
    "e.jsonl": (b'{"text": null}\n', "e.jsonl, line 1: expected text in 'text', got nothing"),
    "f.jsonl": (b'["w1"]\n', "f.jsonl, line 1: expected an object, got list"),
    "g.jsonl": (b"[" * 100_000 + b"\n", "g.jsonl, line 1 is not JSON: "),
    "h.jsonl": (b'{"text": ' + b"1" * 5000 + b"}\n", "h.jsonl, line 1 "),
    "a.parquet": (b"PAR1 and no more", "a.parquet cannot be read: "),
    "a.arrow": (b"\xff\xff\xff\xff\x10\0\0\0 no schema", "a.arrow cannot be read: "),
    "empty.parquet": (b"", "empty.parquet cannot be read: "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CommandError, match=f"^--held-out: .*{message}") as error:
        read(tmp_path / name, option="--held-out")
    assert len(str(error.value)) < 600 + len(str(tmp_path))


def test_records_without_text_are_named(tmp_path):
    for values, got in (([b"w1", b"w2"], "bytes"), (["w1", None], "nothing"), ([1, 2], "int")):
        parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
        with pytest.raises(CommandError, match=rf"a.parquet, record [12]: expected text in 'text', got {got}"):
            read(tmp_path / "a.parquet")


def test_folders_that_cannot_be_read(tmp_path, tiny, capsys):
    data_set(tmp_path / "splits" / "train", [DOCUMENTS])
    data_set(tmp_path / "splits" / "test", [DOCUMENTS])
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    line = refused(capsys, tiny[0], "--text", tmp_path / "splits", *OPTIONS)
    assert f"holds several data sets; name one: {tmp_path}/splits/test, {tmp_path}/splits/train" in line
    (tmp_path / "splits" / "train" / "data-00000-of-00001.arrow").unlink()
    assert "lacks data-00000-of-00001.arrow" in refused(capsys, tiny[0], "--text", tmp_path / "splits" / "train")
    state = tmp_path / "splits" / "test" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    assert "is a selection of its rows" in refused(capsys, tiny[0], "--text", state.parent)
    state.write_text("{}")
    assert "state.json is not one of a data set" in refused(capsys, tiny[0], "--text", state.parent)
    (tmp_path / "none").mkdir()
    assert f"the folder {tmp_path}/none holds no text" in refused(capsys, tiny[0], "--text", tmp_path / "none")
    assert "--text: no file ''" in refused(capsys, tiny[0], "--text", "")
    assert "--held-out: no file 'x.txt'" in refused(capsys, tiny[0], "--text", state, "--held-out", "x.txt")


def test_a_package_that_is_missing_is_named(tmp_path, tiny, capsys, monkeypatch):
    (tmp_path / "a.zst").write_bytes(squeezed(b"w1"))
    parquet.write_table(table(DOCUMENTS), tmp_path / "a.parquet")
    for package, name in (("zstandard", "a.zst"), ("pyarrow", "a.parquet")):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, package, None)
            line = refused(capsys, tiny[0], "--text", tmp_path / name)
            assert f"this needs the package '{package}': pip install 'ncops[data]'" in line


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_bomb_is_only_streamed(tmp_path, pack):
    size, path = 300 << 20, tmp_path / f"bomb.{pack}"
    if pack == "zst":
        squeeze = zstandard.ZstdCompressor(level=1).compressobj()
        parts = [squeeze.compress(b"a" * (1 << 20)) for _ in range(size >> 20)] + [squeeze.flush()]
        path.write_bytes(b"".join(parts))
    else:
        with gzip.open(path, "wb", 1) as file:
            for _ in range(size >> 20):
                file.write(b"a" * (1 << 20))
    if memory.resident() is None or not memory.reset_peak():
        pytest.skip("the system does not tell the peak of memory")
    before, found = memory.resident(), 0
    for pieces in lm.read_texts([path]):
        for piece in pieces:
            found += len(piece)
    assert found == size and memory.peak() - before < 220 << 20


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_LINE", 1 << 20)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "w1"}\n{"text": "' + b"a" * (1 << 21))
    with pytest.raises(CommandError, match="a.jsonl.gz, line 2 is longer than 1 MiB"):
        read(tmp_path / "a.jsonl.gz")
