"""`ncops plan`: what it says of a job, held against a job of that size that is run."""

from __future__ import annotations

import json
import time

import pytest
import torch
from test_lm import WINDOW, llama, save, sentence

from ncops import cli, lm
from ncops.cli import models as command
from ncops.lm import plan

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("plan"), llama())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text("".join(sentence(i, 200) for i in range(40)))
    return path


def loaded(model):
    return lm.load(lm.find_source(model))


def of(model, tokens, **options):
    return plan.plan(loaded(model), tokens, window=WINDOW, batch_size=4, seconds=0.0, **options)


def test_a_job_that_is_run(model, text, tmp_path):
    """Disk to the byte of the headers, kept classes as Poisson counts are, time by its order of magnitude."""
    found = of(model, 8000, texts=lm.read_texts([text]), min_count=5)
    for name in ("save", "check"):
        (tmp_path / name).mkdir()
    begin = time.perf_counter()
    measured = lm.measure(
        loaded(model), lm.read_texts([text]), window=WINDOW, batch_size=4, min_count=5, save=tmp_path / "save",
        checkpoint=tmp_path / "check", progress=False,
    )  # fmt: skip
    took = time.perf_counter() - begin
    assert measured.details["run"]["tokens"] == 8000
    assert measured.report.coverage["classes_kept"] == pytest.approx(found.kept, rel=0.15)
    saved = sum(path.stat().st_size for path in (tmp_path / "save").iterdir())
    assert found.disk["save"] <= saved < found.disk["save"] + 20_000
    train = (tmp_path / "check" / "train.safetensors").stat().st_size
    assert found.disk["checkpoint"] <= train < found.disk["checkpoint"] + 20_000
    assert took / 10 < found.total_seconds < took * 10


def test_what_grows_with_tokens_and_ranks(model):
    one, four = of(model, 10**9), of(model, 10**9, ranks=4)
    for found in (one, four):
        assert found.seconds["train"] == pytest.approx(0.8e9 / found.ranks / found.tokens_per_second["train"], rel=1e-9)
        assert found.seconds["held-out"] == pytest.approx(
            0.2e9 / found.ranks / found.tokens_per_second["held-out"], rel=1e-9
        )
        assert found.to_dict()["total_seconds"] == pytest.approx(sum(found.seconds.values()))
    assert one.traffic == 0 and four.traffic == pytest.approx(1.5 * four.disk["save"])
    assert four.disk["checkpoint"] == 4 * one.disk["checkpoint"]
    assert one.writes == pytest.approx(0.8e9 / (4 * WINDOW) / 100, abs=1)
    assert one.kept == four.kept == 150  # all of the vocabulary, among so many
    assert one.memory["text"] > 4e9


def test_another_machine(model):
    """By the operations of its products, counted by hand: three layers, of which each has two matrices of keys."""
    found = of(model, 10**6, flops=1e9)
    dim, inner, layers, vocabulary = 24, 48, 3, 150
    heads, keys = 2 * dim * dim, 2 * dim * dim // 2  # queries and output; keys and values of half as many heads
    body = layers * (heads + keys + 3 * dim * inner + 2 * dim) + dim
    forward = 2 * body + 2 * layers * dim * WINDOW
    assert 1 / found.tokens_per_second["train"] == pytest.approx((forward + 2 * dim * dim) / 1e9)
    held_out = (forward + 2 * (vocabulary + found.kept) * dim) / 1e9
    assert found.seconds["held-out"] == pytest.approx(0.2e6 * held_out)


def test_kept_classes_are_those_of_poisson_counts():
    torch.manual_seed(0)
    frequencies = 1 / (torch.arange(1000) + 2.7)
    drawn = torch.multinomial(frequencies, 20_000, replacement=True).bincount(minlength=1000)
    assert plan.expected_kept(frequencies, 20_000, 10) == pytest.approx(int((drawn >= 10).sum()), rel=0.05)
    assert plan.expected_kept(frequencies, 1e-3, 10) == 1  # a report needs a class


def test_the_command(model, text, capsys):
    arguments = ["plan", model, "--tokens", "1000000", "--ranks", "2", "--window", "32", "--seconds", "0"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 1_000_000 and found["ranks"] == 2 and found["total_seconds"] > 0
    assert cli.main([*arguments, "--text", str(text)]) == 0
    out = capsys.readouterr().out
    assert "1,000,000 tokens on 2 rank(s)" in out and "held-out" in out and "sent by a rank" in out
    assert cli.main([*arguments[:-4], "--window", "1000"]) == 2
    assert "--window: this model takes 64 tokens at most" in capsys.readouterr().err


def test_numbers_as_people_say_them():
    assert [command.duration(s) for s in (0.5, 119, 121, 7201, 3 * 86400)] == [
        "0.5 s", "119 s", "2.02 min", "2 h", "3 days",
    ]  # fmt: skip
    assert [command.size(b) for b in (500, 1.5e6, 2e9, 3.21e12)] == ["0.5 kB", "1.5 MB", "2 GB", "3.21 TB"]
