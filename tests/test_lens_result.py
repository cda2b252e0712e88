"""What a lens gives: tables, files, pages, and means by layer, position and frequency."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_lens import IDS, made

import ncops
from ncops.lm.windows import IGNORE
from ncops.report import lens as told


class Named:
    """A tokenizer of words."""

    def __call__(self, text, **options):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, **options):
        return f"<b>{ids[0]}"


def test_the_result_as_a_data_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda columns, index=None: columns))
    found = ncops.lens(made("llama"), "7 8 9 9", tokenizer=Named(), top=2)
    frame = found.to_frame()
    assert {len(column) for column in frame.values()} == {16}
    row = {name: column[4 * 2 + 1] for name, column in frame.items()}  # position 2, layer 1
    assert (row["position"], row["layer"], row["token"], row["target"], row["token_text"]) == (2, 1, 9, 9, "<b>9")
    assert (
        row["kl"] == found.kl[1, 0, 2] and row["rank"] == found.rank[1, 0, 2] and row["best"] == found.top[1, 0, 2, 0]
    )


def test_the_result_as_files_and_page(tmp_path):
    found = ncops.lens(made("llama"), "7 8 9 9", tokenizer=Named(), top=2)
    assert found.input_ids.tolist() == [[7, 8, 9, 9]] and found.target.tolist() == [[8, 9, 9, IGNORE]]
    assert repr(found) == "Lens(layers=4, sequences=1, tokens=4, vocabulary=150, float64 on cpu, through model.norm)"
    found.save(tmp_path / "out", title="A <lens>")
    stored = load_file(tmp_path / "out" / "lens.safetensors")
    assert torch.equal(stored["rank"], found.rank) and stored["top"].shape == (4, 1, 4, 2)
    document = json.loads((tmp_path / "out" / "lens.json").read_text())
    assert document["means"]["kl"] == pytest.approx(found.kl[:, 0, :3].mean(1).tolist())
    assert document["example"]["logprob"][0][3] is None and document["example"]["targets"][3] is None
    page = (tmp_path / "out" / "lens.html").read_text()
    assert (
        page.count("data-heat") == 1
        and "A &lt;lens&gt;" in page
        and "<b>" not in page.replace("<b>model", "")
        and " style=" not in page
    )
    shown = found._repr_html_()
    assert "<table>" in shown and "<b>" not in shown and shown.count("<td") == 16


def test_some_layers_of_two_sequences(monkeypatch, tmp_path):
    """In tables the numbers of layers, not their places; in the example the first sequence."""
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda columns, index=None: columns))
    found = ncops.lens(made("llama"), IDS, layers=[0, 2], top=2, batch_size=1)
    frame = found.to_frame()
    row = {name: column[(1 * 12 + 5) * 3 + 1] for name, column in frame.items()}  # second sequence, position 5, layer 2
    assert (row["sequence"], row["position"], row["layer"], row["token"]) == (1, 5, 2, IDS[1, 5])
    assert row["target"] == IDS[1, 6] and row["best"] == found.top[1, 1, 5, 0]
    assert (row["entropy"], row["logprob"]) == (found.entropy[1, 1, 5], found.logprob[1, 1, 5])
    example = found.document(7)["example"]
    assert example["layers"] == [0, 2, 3] and example["ids"] == IDS[0, :7].tolist()
    assert example["tokens"] == [f"#{i}" for i in IDS[0, :7]] and example["targets"] == [f"#{i}" for i in IDS[0, 1:8]]
    assert example["top"] == [[[f"#{i}" for i in two] for two in layer] for layer in found.top[:, 0, :7].tolist()]
    assert example["top_logprob"] == found.top_logprob[:, 0, :7].tolist()
    assert example["hit"] == (found.top[:, 0, :7, 0] == IDS[0, 1:8]).tolist()
    assert example["kl"] == found.kl[:, 0, :7].tolist()
    found.save(tmp_path)
    with safe_open(tmp_path / "lens.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["ncops-lens"])
        assert torch.equal(file.get_tensor("target"), found.target)
    assert metadata["layers"] == [0, 2, 3] and metadata["words"][str(int(IDS[1, 3]))] == f"#{IDS[1, 3]}"


def test_frequency_is_that_of_the_next_token_among_all_of_these():
    """Token 5 stands at the beginning only, token 6 nowhere but at the end."""
    ids = torch.tensor([[5, *[7] * 10, 6]])
    by_frequency = ncops.lens(made("llama"), ids).totals().document()["by_frequency"]
    assert by_frequency["bins"] == [[1, 9], [10, 99]] and by_frequency["tokens"] == [1, 10]
    ids = torch.tensor([[7] * 10, [8] * 10])  # 10 each: with their targets alone it would be 9
    assert ncops.lens(made("llama"), ids).totals().document()["by_frequency"]["bins"] == [[10, 99]]


def test_totals_are_means_over_tokens_with_a_next_one():
    ids = 3 + (15 * torch.rand(3, 21, generator=torch.Generator().manual_seed(1)).pow(3)).long()
    found = ncops.lens(made("llama"), ids)
    document = found.totals().document()
    rank, entropy = found.rank[:, :, :-1], found.entropy[:, :, :-1]
    assert document["tokens"] == 60 and document["nonfinite"] == 0
    assert document["means"]["entropy"] == pytest.approx(entropy.flatten(1).mean(1).tolist())
    assert document["means"]["accuracy"] == pytest.approx((rank == 0).double().flatten(1).mean(1).tolist())
    assert document["median_rank"] == rank.flatten(1).sort(1).values[:, 29].tolist()
    by_position = document["by_position"]
    assert by_position["bins"] == [[0, 0], [1, 1], [2, 3], [4, 7], [8, 15], [16, 31]]
    assert by_position["tokens"] == [3, 3, 6, 12, 24, 12]
    assert by_position["means"]["entropy"][3] == pytest.approx(entropy[:, :, 4:8].flatten(1).mean(1).tolist())
    twice = found.totals()
    twice.update(found)
    again = twice.document()
    assert again["tokens"] == 120 and again["means"]["kl"] == pytest.approx(document["means"]["kl"])
    for by in ("by_position", "by_frequency"):
        assert again[by]["tokens"] == [2 * tokens for tokens in document[by]["tokens"]]
    counts = ids.flatten().bincount(minlength=150)[ids[:, 1:]]
    few = (counts >= 1) & (counts < 10)
    by_frequency = document["by_frequency"]
    assert by_frequency["bins"][0] == [1, 9] and by_frequency["tokens"] == [int(few.sum()), int((~few).sum())]
    assert by_frequency["means"]["kl"][0] == pytest.approx(found.kl[:, :, :-1][:, few].mean(1).tolist())


def test_a_row_with_a_nan_is_left_out_and_told():
    found = ncops.lens(made("llama"), IDS)
    found.entropy[1, 0, 4] = torch.nan
    document = found.totals().document()
    assert (document["tokens"], document["nonfinite"]) == (21, 1)
    assert all(math.isfinite(value) for value in document["means"]["entropy"])
    rest = torch.ones(2, 11, dtype=torch.bool)
    rest[0, 4] = False
    assert document["means"]["kl"] == pytest.approx(found.kl[:, :, :-1][:, rest].mean(1).tolist())


def test_numbers_and_notes_of_a_report():
    found = ncops.lens(made("llama"), IDS)
    found.entropy[1, 0, 4] = torch.nan
    document = found.document()
    assert (document["kind"], document["schema"]) == ("lens", told.SCHEMA)
    columns = told.by_layer(document)
    assert list(columns) == ["entropy", "kl", "agree", "logprob", "accuracy", "median_rank"]
    assert columns["median_rank"] == document["median_rank"] and columns["kl"] == document["means"]["kl"]
    assert told.heading("kl") == "KL to the last layer (nats)" and told.heading("agree") == "Agreement"
    assert told.notes(document) == [
        "Means over 21 tokens that have a next one, each layer read through model.norm and the model's own "
        "unembedding.",
        "1 tokens with a NaN at some layer are left out.",
    ]
    document["run"]["translators"], document["nonfinite"] = "maps.safetensors", 0
    (note,) = told.notes(document)
    assert note.endswith("unembedding, translated by maps.safetensors.")
