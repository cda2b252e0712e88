"""The text of `ncops lm`: every form of it, how it becomes windows, and the numbers per token, by brute force."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from test_lm import WORDS, llama, save, sentence, tokenizers, transformers

import ncops
from ncops import cli, lm, memory
from ncops.errors import CommandError
from ncops.lm import collect, text
from ncops.lm.ranks import Ranks
from ncops.lm.windows import IGNORE, Tokens, Windows, byte_sizes, encoder, tokenize

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

EOS = 122
OPTIONS = ("--window", "16", "--min-count", "2", "--batch-size", "3", "--dtype", "float64", "--json")
DOCUMENTS = [
    sentence(0, 150) + "日本 w1 naïve w2\n\n" + sentence(1, 60),
    "w1 w2 🙂 w3",
    sentence(2, 90) + "  w5 \n",
    "w7",
    sentence(3, 77),
]
"""Some end in spaces, have words that are unknown and longer in bytes than in characters, or hold one token."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(2)
    model = llama()
    folder = tmp_path_factory.mktemp("text") / "model"
    save(folder, model)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": WORDS[EOS - 3]}))
    return folder, model.double().eval()


@pytest.fixture(scope="module")
def loaded(tiny):
    return lm.load(lm.find_source(tiny[0]), dtype="float64")


def run(capsys, *arguments) -> dict:
    status = cli.main(["lm", *map(str, arguments)])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


def refused(capsys, *arguments) -> str:
    assert cli.main(["lm", *map(str, arguments)]) == 2
    streams = capsys.readouterr()
    line = streams.err.splitlines()[-1]
    assert streams.out == "" and line.startswith("ncops") and len(line) < 700 and "Traceback" not in streams.err
    return line


def plain(folder, documents=DOCUMENTS) -> list:
    """The documents as files of plain text."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.txt" for i in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_bytes(document.encode())
    return paths


def without_facts(report: dict) -> dict:
    return {name: report[name] for name in ("metrics", "coverage", "classes")}


# ---- windows, by brute force
def ids_and_sizes(document: str) -> tuple[list[int], list[int]]:
    """Word by word: the bytes of a word are those since the word before, and the last has what is left."""
    ids, sizes, at = [], [], 0
    for word in document.split():
        end = document.index(word, at) + len(word)
        ids.append(3 + WORDS.index(word) if word in WORDS else 2)
        sizes.append(len(document[at:end].encode()))
        at = end
    if sizes:
        sizes[-1] += len(document[at:].encode())
    return ids, sizes


def brute_force(documents, size, stride, bos, packed) -> list[tuple[list[int], list[int], list[tuple], int]]:
    """``(ids, labels, places, bytes)`` of each window that scores something."""
    streams = []
    for number, document in enumerate(documents):
        stream = [(i, n, number, at) for at, (i, n) in enumerate(zip(*ids_and_sizes(document), strict=True))]
        if packed and streams and stream:
            streams[0] += [(EOS, 0, streams[0][-1][2], streams[0][-1][3] + 1), *stream]
        else:
            streams.append(stream)
    found = []
    for stream in streams:
        done, start, end = set(), 0, 0
        while end < len(stream):
            end = min(start + size, len(stream))
            scored = [t for t in range(start + 1, end) if t not in done]
            done.update(scored)
            lead = [] if bos is None else [bos]
            ids = lead + [stream[t][0] for t in range(start, end)]
            labels = [IGNORE] * len(ids)
            for t in scored:
                labels[len(lead) + t - 1 - start] = stream[t][0]
            if scored:
                found.append((ids, labels, [stream[t][2:] for t in scored], sum(stream[t][1] for t in scored)))
            start += stride
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(("size", "stride"), [(16, 16), (16, 5), (16, 15), (7, 1), (2, 1), (2, 2), (1000, 1000)])
def test_windows_against_brute_force(loaded, size, stride, bos, packed):
    tokens = tokenize([[document] for document in DOCUMENTS], encoder(loaded.tokenizer))
    windows = Windows(tokens, size, bos, stride=stride, eos=EOS if packed else None)
    wanted = brute_force(DOCUMENTS, size, stride, bos, packed)
    assert len(windows) == len(wanted)
    for i, (ids, labels, places, num_bytes) in enumerate(wanted):
        (batch,) = windows.batches([i], 1)
        assert batch.input_ids.tolist() == [ids] and batch.labels.tolist() == [labels] and batch.windows == [i]
        assert list(windows.places(i)) == places and windows.num_bytes([i]) == num_bytes
        assert windows.scored(i) == [label for label in labels if label != IGNORE]
    seen = {place for *_, places, _ in wanted for place in places}
    assert len(seen) == windows.num_scored(range(len(windows))) == sum(len(places) for *_, places, _ in wanted)
    every = list(range(len(windows)))
    assert sorted(i for batch in windows.batches(windows.by_length(every), 3) for i in batch.windows) == every
    whole = sum(len(ids_and_sizes(document)[0]) for document in DOCUMENTS)
    if packed:
        assert windows.tokens == whole + len(DOCUMENTS) - 1 - (size == stride == 2)
        assert windows.num_documents(range(len(windows))) == 5
    elif stride < size:  # all but the first token of each document
        assert windows.num_scored(every) == whole - len(DOCUMENTS) and windows.tokens == whole - 1
        assert windows.num_documents(range(len(windows))) == 4


def test_documents_of_windows():
    windows = Windows([[1, 2, 3], [], [4], [5, 6, 7, 8], [9, 10]], 2, held_out=[[1], [2, 3]])
    train, held_out = windows.split()
    assert [windows.num_documents(part) for part in (train, held_out)] == [3, 1]
    assert [list(windows.places(i)) for i in (*train, *held_out)] == [
        [(0, 1)], [(3, 1)], [(3, 3)], [(4, 1)], [(1, 1)],
    ]  # fmt: skip
    told = {
        Windows([[1, 2, 3]], 3, **how).fingerprint_bytes()
        for how in ({}, {"bos": 1}, {"held_out": [[1, 2]]}, {"held_out": [[1, 3]]})
    }
    assert len(told | {Windows([[1, 2, 3]], 2, stride=stride).fingerprint_bytes() for stride in (1, 2)}) == 6
    assert Windows([[1, 2, 3]], 2).num_bytes([0]) is None  # ids alone say nothing of bytes
    assert Windows([Tokens([1, 2, 3], [1, 2, 4])], 3).num_bytes([0]) == 6


@pytest.mark.parametrize("document", [*DOCUMENTS, "e\u0301 \U0001f600\U0001f601 x", " ", "\n\n a"])
def test_byte_sizes_sum_up_to_the_text(loaded, document):
    tokens = encoder(loaded.tokenizer)(document)
    assert list(tokens.sizes) == ids_and_sizes(document)[1]


def test_a_character_in_several_tokens_counts_once():
    assert list(byte_sizes("aé🙂b", [1, 2, 2, 3, 3, 3, 4])) == [1, 2, 0, 4, 0, 0, 1]
    assert list(byte_sizes("abc", [2, 1, 3])) == [2, 0, 1]  # a token of what an earlier one has had
    assert list(byte_sizes("ab  ", [1, 1, 2])) == [1, 0, 3] and list(byte_sizes("  ", [])) == []


def test_bytes_of_a_tokenizer_of_bytes():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = encoder(transformers.PreTrainedTokenizerFast(tokenizer_object=bare))("é\n🙂 a")
    assert len(tokens.ids) == 9 and list(tokens.sizes) == [2, 0, 1, 4, 0, 0, 0, 1, 1]


def test_bytes_of_pieces_without_tokens_are_not_lost(loaded):
    encode = encoder(loaded.tokenizer)
    (found,) = tokenize([["  ", "w1 ", "\n\n\n", " w2", "   "]], encode)
    assert list(found.sizes) == [2 + 3, 3 + 3 + 3]
    cut, *_ = tokenize([["w1  w2 w3"]], encode, 2)
    assert list(cut.ids) == [4, 5] and list(cut.sizes) == [2, 4]


# ---- numbers, against the full logits
def held_out_rows(model, windows) -> list[dict]:
    """A row for each scored token, from the whole model on one window at a time."""
    rows = []
    for ids, labels, places, _ in windows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().numpy()
        at = [t for t, label in enumerate(labels) if label != IGNORE]
        for t, (document, position) in zip(at, places, strict=True):
            z, label = logits[t], labels[t]
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            rows.append({
                "document": document, "position": position, "token_id": label, "nll": -math.log(p[label]),
                "entropy": -(p * np.log(p)).sum(), "rank": int((z > z[label]).sum()), "argmax_id": int(z.argmax()),
                "margin": z[label] - np.delete(z, label).max(),
            })  # fmt: skip
    return rows


WAYS = [
    {}, {"stride": 5}, {"bos": "always"}, {"bos": "always", "stride": 7, "documents": "packed"},
    {"documents": "packed", "held_out": True}, {"stride": 3, "held_out": True}, {"held_out": True},
]  # fmt: skip


@pytest.mark.parametrize("how", WAYS, ids=lambda how: "-".join(how) or "plain")
def test_numbers_against_the_full_logits(tiny, tmp_path, capsys, how):
    folder, model = tiny
    paths, options = plain(tmp_path / "text"), dict(how)
    separate = [] if not options.pop("held_out", False) else ["--held-out", *paths[2:]]
    options = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    table = tmp_path / "tokens.csv"
    text = paths[:2] if separate else paths
    page = run(capsys, folder, "--text", *text, *separate, *OPTIONS, *options, "--tokens-csv", table)

    bos, packed = 1 if "bos" in how else None, how.get("documents") == "packed"
    cut = [16, how.get("stride", 16), bos, packed]
    if separate:
        train, windows = brute_force(DOCUMENTS[:2], *cut), brute_force(DOCUMENTS[2:], *cut)
    else:
        windows = brute_force(DOCUMENTS, *cut)
        last = round(0.2 * len(windows))
        train, windows = windows[:-last], windows[-last:]
    rows = held_out_rows(model, windows)
    nll = np.array([row["nll"] for row in rows])
    num_bytes = sum(of for *_, of in windows)
    wanted = {
        "nll": nll.mean(), "perplexity": math.exp(nll.mean()), "entropy": np.mean([row["entropy"] for row in rows]),
        "bits_per_byte": nll.sum() / math.log(2) / num_bytes, "accuracy": np.mean([row["rank"] == 0 for row in rows]),
    }  # fmt: skip
    assert {name: page["metrics"][name] for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert page["coverage"]["samples"] == sum(len(places) for *_, places, _ in train)
    assert page["coverage"]["decision_samples"] == len(rows) == page["run"]["scored_tokens"]
    facts = {
        "stride": cut[1], "window": 16, "bos": how.get("bos", "auto"), "bos_token": "<s>" if bos else None,
        "documents": how.get("documents", "separate"), "scored_bytes": num_bytes, "text_field": "text",
        "encoding_errors": "strict", "data": ", ".join(path.name for path in text),
        "held_out_data": "2.txt, 3.txt, 4.txt" if separate else None,
    }  # fmt: skip
    assert {name: page["run"][name] for name in facts} == facts
    assert page["run"]["held_out_documents"] == len({row["document"] for row in rows})

    with open(table, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(rows) and list(found[0]) == [
        "document", "position", "token_id", "token", "nll", "entropy", "rank", "argmax_id", "argmax", "margin",
    ]  # fmt: skip
    names = ["<pad>", "<s>", "<unk>", *WORDS]
    for row, right in zip(found, rows, strict=True):  # in the order of the text
        for name in ("document", "position", "token_id", "rank", "argmax_id"):
            assert int(row[name]) == right[name], name
        for name in ("nll", "entropy", "margin"):
            assert float(row[name]) == pytest.approx(right[name], rel=1e-9, abs=1e-11)
        for name in ("token", "argmax"):
            index = right[f"{name}_id"]
            assert row[name] == (names[index] if index < len(names) else f"#{index}")


def test_bits_per_byte_are_not_told_where_nothing_tells_the_bytes(loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(type(loaded.tokenizer), "is_fast", False)
    texts = [[document] for document in DOCUMENTS]
    report = lm.measure(loaded, texts, window=16, min_count=2, progress=False).report
    assert math.isnan(report["bits_per_byte"]) and "does not tell which text" in report.notes["bits_per_byte"]
    assert report["perplexity"] == pytest.approx(math.exp(report["nll"]))


def test_bits_per_byte_are_not_told_of_some_of_the_tokens():
    from ncops.lm.measure import add_text_metrics

    def report(skipped, num_bytes, nll=2.0):
        coverage = {"decision_samples": 10, "decision_skipped_rows": skipped}
        made = ncops.report.CollapseReport({"nll": nll}, coverage)
        add_text_metrics(made, num_bytes)
        return made

    assert report(0, 5)["bits_per_byte"] == pytest.approx(2 * 10 / math.log(2) / 5)
    for skipped, num_bytes, why in ((1, 5, "not finite"), (0, 0, "stand for no text"), (0, None, "does not tell")):
        made = report(skipped, num_bytes)
        assert math.isnan(made["bits_per_byte"]) and why in made.notes["bits_per_byte"]
    assert report(0, 5, 1e4)["perplexity"] == math.inf


def test_decisions_of_before_the_entropy_load():
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    stats = ncops.ClassStatistics(3, 4)
    stats.update(x, y)
    geometry, weight = stats.compute(), torch.randn(3, 4)
    decisions = ncops.DecisionStatistics(geometry, weight)
    columns = decisions.update(x, y)
    assert torch.equal(columns.nll, ncops.linear_stats(x, weight, None, y).nll)
    report = ncops.collapse(geometry, weight, decisions=decisions)
    assert report["entropy"] == pytest.approx(columns.entropy.double().mean().item(), rel=1e-6)
    tensors = {name: t for name, t in decisions.tensors().items() if name != "entropy"}
    old = ncops.DecisionStatistics.from_state(decisions.config(), tensors)
    old.check_values()
    report = ncops.collapse(geometry, weight, decisions=old)
    assert math.isnan(report["entropy"]) and "from a file of before" in report.notes["entropy"]
    assert report["nll"] == pytest.approx(columns.nll.double().mean().item(), rel=1e-6)


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


# ---- options of the command
def test_cheap_checks_come_before_the_model(tmp_path, tiny, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny[0], folder)
    (folder / "model.safetensors").write_bytes(b"would not load")
    paths = plain(tmp_path / "text")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    start = [folder, "--text", *paths]
    for more, message in (
        (["--stride", "17", "--window", "16"], "--stride: expected at most the 16 tokens of a window, got 17"),
        (["--stride", "0"], "--stride"),
        (["--bos", "often"], "--bos"),
        (["--window", "64", "--bos", "always"], "--window: this model takes 63 tokens at most, got 64"),
        (["--held-out", tmp_path / "empty.jsonl"], "--held-out: no document of two tokens or more"),
        (["--held-out", paths[3]], "--held-out: no document of two tokens or more"),
        (["--held-out", paths[0], "--statistics", tmp_path / "x"], "--held-out: beside --statistics"),
        (["--tokens-csv", tmp_path / "none" / "t.csv"], f"--tokens-csv: no folder {tmp_path}/none"),
        (["--tokens-csv", tmp_path], "--tokens-csv: expected a file, got the folder"),
        (["--encoding-errors", "drop"], "--encoding-errors"),
    ):
        assert message in refused(capsys, *start, *more), more
    for name in ("empty", "blank"):
        line = refused(capsys, folder, "--text", tmp_path / f"{name}.jsonl")
        assert "--text: 0 tokens make 0 window(s)" in line
    line = refused(capsys, folder, "--text", paths[3], "--held-out", paths[0])
    assert "--text: no document of two tokens or more" in line
    for key, option in (("bos_token", ["--bos", "always"]), ("eos_token", ["--documents", "packed"])):
        config = json.loads((tiny[0] / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        assert f"{' '.join(option)}: the tokenizer of this model has no {key[:3].upper()}" in refused(
            capsys, *start, *option
        )


def test_bos_never(tmp_path, capsys):
    torch.manual_seed(4)
    folder = save(tmp_path / "model", llama(), bos=True)
    paths = plain(tmp_path / "text")
    found = {bos: run(capsys, folder, "--text", *paths, *OPTIONS, "--bos", bos) for bos in ("auto", "always", "never")}
    assert without_facts(found["auto"]) == without_facts(found["always"]) != without_facts(found["never"])
    assert [page["run"]["bos_token"] for page in found.values()] == ["<s>", "<s>", None]


def test_tokens_limits_the_text_and_not_the_held_out_part(tmp_path, tiny, capsys):
    paths = plain(tmp_path / "text")
    page = run(capsys, tiny[0], "--text", paths[0], "--held-out", paths[2], *OPTIONS, "--tokens", 32)
    assert page["coverage"]["samples"] == 30 and page["run"]["train_windows"] == 2
    assert page["run"]["tokens"] == 32 + len(DOCUMENTS[2].split())
    assert page["run"]["scored_tokens"] == sum(len(w[2]) for w in brute_force([DOCUMENTS[2]], 16, 16, None, False))


def test_another_way_of_cutting_is_another_run(tmp_path, tiny, capsys):
    start = [tiny[0], "--text", *plain(tmp_path / "text"), *OPTIONS, "--checkpoint", tmp_path / "place"]
    page = run(capsys, *start)
    assert without_facts(run(capsys, *start, "--bos", "never", "--stride", 16)) == without_facts(page)  # as before
    for more, what in (
        (["--stride", "8"], "stride"), (["--bos", "always"], "BOS"), (["--documents", "packed"], "separator"),
        (["--held-out", tmp_path / "text" / "0.txt"], "text"), (["--window", "8", "--stride", "8"], "window"),
    ):  # fmt: skip
        assert f"belongs to a run with another {what}" in refused(capsys, *start, *more)


# ---- a row per token
def test_the_table_is_the_same_whatever_comes_between(tmp_path, tiny, capsys, monkeypatch):
    start = [tiny[0], "--text", *plain(tmp_path / "text"), *OPTIONS, "--stride", "7", "--tokens-csv"]
    page = run(capsys, *start, tmp_path / "a.csv")
    wanted = (tmp_path / "a.csv").read_bytes()
    place = ["--checkpoint", tmp_path / "place", "--every", "1"]

    class Killed(BaseException):
        pass

    batches = collect.Corpus.batches

    def killed(self, indices, what, done=0):
        for i, item in enumerate(batches(self, indices, what, done)):
            if what == "held-out" and i == 2:
                raise Killed
            yield item

    (tmp_path / "b.csv").write_text("of before")
    monkeypatch.setattr(collect.Corpus, "batches", killed)
    with pytest.raises(Killed):
        cli.main(list(map(str, ["lm", *start, tmp_path / "b.csv", *place])))
    monkeypatch.setattr(collect.Corpus, "batches", batches)
    capsys.readouterr()
    assert (tmp_path / "b.csv").read_text() == "of before" and not list(tmp_path.glob(".b.csv*"))
    for _ in range(2):  # the second finds everything done
        assert without_facts(run(capsys, *start, tmp_path / "b.csv", *place)) == without_facts(page)
        assert (tmp_path / "b.csv").read_bytes() == wanted


def test_one_process_writes_the_table(tmp_path, loaded):
    with pytest.raises(CommandError, match="--tokens-csv: written by one process, got 2"):
        lm.measure(loaded, [DOCUMENTS], tokens_csv=tmp_path / "a.csv", ranks=Ranks(0, 2))
    with pytest.raises(CommandError, match="--text: standard input can be read by one process, got 2"):
        lm.read_texts(["-"], processes=2)
