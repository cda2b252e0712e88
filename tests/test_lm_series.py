"""`ncops lm RUN/step-*`: several models in one command, which goes on where it was stopped."""

from __future__ import annotations

import json

import pytest
import torch
from test_cli import error
from test_lm import llama, save, sentence

from ncops import cli, lm
from ncops.lm import series

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for step in (100, 20):
        torch.manual_seed(step)
        save(folder / f"step-{step}", llama())
    return [str(folder / "step-100"), str(folder / "step-20")]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("".join(sentence(i, 100) for i in range(12)))
    return str(path)


def run(*arguments):
    return cli.main(["lm", *map(str, arguments), "--window", "16", "--min-count", "2"])


def metrics(path):
    return json.loads(path.read_text())["metrics"]


def test_each_as_alone_and_all_of_them_by_their_step(models, text, tmp_path, capsys):
    options = ("--text", text, "--save", tmp_path / "save", "--checkpoint", tmp_path / "check")
    assert run(*models, *options, "-o", tmp_path / "all", "--json") == 0
    out = capsys.readouterr().out
    together = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert json.loads(out) == together
    assert together["axis"] == "step" and together["points"] == [20, 100]
    for model, name in zip(models, ("100", "20"), strict=True):
        folder = tmp_path / "all" / f"step-{name}"
        assert run(model, "--text", text, "-o", tmp_path / name) == 0
        assert metrics(folder / "report.json") == metrics(tmp_path / name / "report.json")
        assert (tmp_path / "save" / f"step-{name}" / "class_statistics.safetensors").exists()
        assert (tmp_path / "check" / f"step-{name}" / "train.safetensors").exists()
    nll = [metrics(tmp_path / name / "report.json")["nll"] for name in ("20", "100")]
    assert together["metrics"]["nll"] == nll and nll[0] != nll[1]


def test_goes_on_with_what_is_not_done(models, text, tmp_path, capsys, monkeypatch):
    measure, seen = lm.measure, []

    def interrupted(loaded, *arguments, **options):
        seen.append(options["facts"]["model_name"])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(loaded, *arguments, **options)

    monkeypatch.setattr(lm, "measure", interrupted)
    arguments = (*models, "--text", text, "-o", tmp_path / "all")
    assert run(*arguments) == 130
    assert f"goes on from {tmp_path / 'all'}" in capsys.readouterr().err
    assert run(*arguments) == 0  # the second alone
    assert seen == ["step-100", "step-20", "step-20"]
    assert "step-100: done before" in capsys.readouterr().err
    assert run(*arguments) == 0 and len(seen) == 3
    assert run(*arguments, "--tokens", "600") == 0 and len(seen) == 5  # other inputs are other reports
    with open(text, "a") as file:
        file.write(sentence(99, 100))
    assert run(*arguments, "--tokens", "600") == 0 and len(seen) == 7
    (tmp_path / "all" / "step-20" / "report.html").unlink()
    assert run(*arguments, "--tokens", "600") == 0 and seen[7:] == ["step-20"]


def test_names_of_models():
    assert series.folder_names(["a/step-1", "a/step-2"]) == ["step-1", "step-2"]
    assert series.folder_names(["x/one/final", "x/two/final"]) == ["one", "two"]
    assert series.folder_names(["x/step-1.5", "x/step-1.6"]) == ["step-1.5", "step-1.6"]
    assert series.folder_names(["x/a/b", "x/c"]) == ["a-b", "c"]


def test_what_is_of_one_model(models, text, tmp_path, capsys):
    assert "--output: expected a folder for the reports of 2 models" in error(capsys, "lm", *models, "--text", text)
    out = ("--text", text, "-o", tmp_path / "all")
    assert "--tokens-csv: of one model, got 2" in error(capsys, "lm", *models, *out, "--tokens-csv", tmp_path / "t.csv")
    assert "standard input can be read once" in error(capsys, "lm", *models, "--text", "-", "-o", tmp_path / "all")
    assert "step-20 is given twice" in error(capsys, "lm", models[1], models[1], *out)
