"""The text of `ncops lm`: how it becomes windows, and the numbers per token, by brute force."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from lm_text_cases import DOCUMENTS, EOS, OPTIONS, plain, refused, run, save_tiny, without_facts
from test_lm import WORDS, llama, save, tokenizers, transformers

import ncops
from ncops import cli, lm
from ncops.errors import CommandError
from ncops.lm import collect
from ncops.lm.ranks import Ranks
from ncops.lm.windows import IGNORE, Tokens, Windows, byte_sizes, encoder, tokenize

zstandard = pytest.importorskip("zstandard")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def loaded(tiny):
    return lm.load(lm.find_source(tiny[0]), dtype="float64")


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
