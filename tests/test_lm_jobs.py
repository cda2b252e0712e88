"""`ncops lm` in several processes, in jobs that share nothing, and killed and resumed: one result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_lm import llama, save, sentence

import ncops
from ncops import cli
from ncops.errors import CommandError
from ncops.lm import collect
from ncops.measuring.saved import read_saved
from ncops.stats.files import read_origin, save_statistics

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
LENGTHS = (700, 430, 260)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-jobs")
    torch.manual_seed(3)
    save(folder / "model", llama())
    texts = []
    for i, length in enumerate(LENGTHS):
        texts.append(folder / f"{i}.txt")
        texts[-1].write_text("".join(sentence(10 * i + j, 20) for j in range(length // 20)))
    return folder / "model", texts


def command(tiny, *extra) -> list[str]:
    model, texts = tiny
    return [
        "lm", str(model), "--text", *map(str, texts), "--window", "32", "--batch-size", "3", "--min-count", "2",
        "--dtype", "float64", "--json", *map(str, extra),
    ]  # fmt: skip


def run(capsys, *arguments) -> dict:
    assert cli.main(list(map(str, arguments))) == 0
    return json.loads(capsys.readouterr().out)


def without_times(document: dict) -> dict:
    text = {k: v for k, v in document.items() if k not in ("run", "provenance")}
    return json.loads(json.dumps(text))


def test_torchrun_equals_one_process(tiny, capsys, tmp_path):
    options = "--layers", "1,3", "--tokens", "1300"
    size, one = 3, run(capsys, *command(tiny, *options))
    assert one["run"]["held_out_windows"] % size, "all ranks would have as many"
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={size}", "--master_port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*launch, "-m", "ncops", *command(tiny, *options, "--output", tmp_path)],
        capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    many = json.loads(done.stdout)  # one document: one rank speaks
    assert many["run"]["processes"] == size and json.loads((tmp_path / "report.json").read_text())["run"] == many["run"]
    for name, value in one["metrics"].items():
        assert many["metrics"][name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert many["coverage"] == one["coverage"]
    for name, values in one["layers"]["metrics"].items():
        assert many["layers"]["metrics"][name] == pytest.approx(values, rel=1e-9), name


def test_jobs_that_share_nothing_are_merged(tiny, capsys, tmp_path):
    """Each job reads its own files; merged, they give what one job over all of them gives."""
    model, texts = tiny
    files = []
    for i, text in enumerate(texts):
        options = ["--window", "32", "--dtype", "float64", "--json", "--save", tmp_path / str(i)]
        run(capsys, "lm", model, "--text", text, *options)
        files.append(tmp_path / str(i) / "class_statistics.safetensors")
    merged = tmp_path / "all.safetensors"
    assert cli.main(["merge", *map(str, files), "-o", str(merged)]) == 0
    assert "ClassStatistics(num_classes=150" in capsys.readouterr().err
    parts = [ncops.load(path) for path in files]
    total = ncops.load(merged)
    assert torch.equal(total.counts, sum(p.counts for p in parts))
    held = run(
        capsys, "lm", model, "--text", texts[0], "--window", "32", "--dtype", "float64", "--json", "--min-count", "2",
        "--statistics", merged, "--save", tmp_path / "held",
    )  # fmt: skip
    geometry = total.compute(min_count=2)
    assert held["coverage"]["samples"] == int(total.counts.sum()) == geometry.num_samples
    assert held["run"]["train_windows"] == 0 and held["run"]["held_out_windows"] == -(-LENGTHS[0] // 32)
    assert not (tmp_path / "held" / "class_statistics.safetensors").exists()
    decisions = tmp_path / "held" / "decision_statistics.safetensors"
    copied = shutil.copy(decisions, tmp_path / "copy.safetensors")
    assert cli.main(["merge", str(decisions), str(copied), "-o", str(tmp_path / "twice.safetensors")]) == 0
    assert torch.equal(ncops.load(tmp_path / "twice.safetensors").count, 2 * ncops.load(decisions).count)


def test_merge_refuses_what_does_not_fit(tmp_path, capsys):
    def saved(name, classes=3, dtype=torch.float32):
        stats = ncops.ClassStatistics(classes, 4)
        stats.update(torch.randn(6, 4, dtype=dtype), torch.arange(6) % 3)
        stats.save(tmp_path / name)
        return str(tmp_path / name)

    first, wide = saved("a"), saved("b", classes=5)
    out = str(tmp_path / "out")
    for files, message in (
        ([first, wide], "does not fit .*num_classes: expected 3, got 5"),
        ([first, saved("c", dtype=torch.float64)], "input_dtype"),
        ([first, str(tmp_path / "none")], "no file"),
    ):
        assert cli.main(["merge", *files, "-o", out]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not os.path.exists(out)


def test_merge_looks_before_it_reads(tmp_path, capsys, monkeypatch):
    stats = ncops.ClassStatistics(3, 4)
    stats.update(torch.randn(6, 4), torch.arange(6) % 3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        stats.save(tmp_path / name / "class_statistics.safetensors")
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(a / "class_statistics.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("ncops.measuring.saved.load", lambda *_: pytest.fail("read"))
        for files, to, message in (
            ([a, b], tmp_path / "none" / "x", f"--output: no folder {tmp_path / 'none'}"),
            ([a, b], tmp_path / "empty", "--output: expected a file, got the folder"),
            ([a, tmp_path / "link"], out, "is given twice, so that its rows would count twice"),
            ([a, a / "class_statistics.safetensors"], out, "is given twice"),
            ([a, tmp_path / "empty"], out, "FILE: no file .*empty/class_statistics.safetensors"),
        ):
            assert cli.main(["merge", *map(str, files), "-o", str(to)]) == 2
            error = capsys.readouterr().err
            assert re.search(message, error) and error.count("\n") == 1
    assert not out.exists()
    assert cli.main(["merge", str(a), str(b), "-o", str(out)]) == 0
    assert torch.equal(ncops.load(out).counts, 2 * stats.counts)


def test_merged_statistics_are_of_the_model_that_any_of_the_files_names(tmp_path):
    stats = ncops.ClassStatistics(3, 4)
    stats.update(torch.randn(6, 4), torch.arange(6) % 3)
    first, second, out = (str(tmp_path / name) for name in ("first", "second", "out"))
    stats.save(first)  # by hand: of no model
    origin = {"model": "tiny", "dtype": "float32", "parameters": "1f"}
    save_statistics(second, stats, origin)
    assert cli.main(["merge", first, second, "-o", out]) == 0
    assert read_origin(out) == origin
    ncops.DecisionStatistics(stats.compute(), torch.ones(3, 4)).save(first)
    with pytest.raises(CommandError, match="DecisionStatistics"):
        read_saved(Path(first), "--statistics", "ClassStatistics")


def test_statistics_of_another_model_are_refused(tiny, capsys, tmp_path):
    model, texts = tiny
    torch.manual_seed(4)
    save(tmp_path / "other", llama())
    torch.manual_seed(4)
    save(tmp_path / "wide", llama(hidden_size=48))
    options = ["--text", texts[0], "--window", "32", "--min-count", "2", "--json"]
    run(capsys, "lm", model, *options, "--save", tmp_path / "a")
    run(capsys, "lm", tmp_path / "other", *options, "--save", tmp_path / "b")
    merged = str(tmp_path / "merged")
    copied = shutil.copy(tmp_path / "a" / "class_statistics.safetensors", tmp_path / "copy")
    assert cli.main(["merge", str(tmp_path / "a"), str(copied), "-o", merged]) == 0  # it says of which model, too
    capsys.readouterr()

    def refused(*arguments) -> str:
        assert cli.main(list(map(str, arguments))) == 2
        return capsys.readouterr().err

    for given in (tmp_path / "a", merged):
        error = refused("lm", tmp_path / "other", *options, "--statistics", given)
        assert re.search(r"--statistics: expected those of this model, other in float32 \(parameters \w{16}\)", error)
        assert "got those of model in float32" in error and error.count("\n") == 1
    error = refused("lm", tmp_path / "wide", *options, "--statistics", merged)
    assert "--statistics: expected 150 classes in 48 dimensions, as this model has, got 150 in 24" in error
    error = refused("merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "x")
    assert "does not fit" in error and "made with other in float32" in error and not (tmp_path / "x").exists()
    run(capsys, "lm", model, *options, "--statistics", merged)
    # Statistics that do not say, such as those saved by one's own program, are taken.
    ncops.load(merged).save(tmp_path / "own")
    run(capsys, "lm", tmp_path / "other", *options, "--statistics", tmp_path / "own")


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_run_says_where_it_goes_on(tiny, capsys, tmp_path, monkeypatch, kept):
    def interrupted(self, *_):
        if kept:
            (tmp_path / "train.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(collect.Corpus, "run", interrupted)
    assert cli.main(command(tiny, "--checkpoint", tmp_path)) == 130
    out = capsys.readouterr()
    where = f"the same command goes on from {tmp_path}" if kept else f"{tmp_path} holds no checkpoint yet"
    assert out.err.splitlines()[-1] == f"ncops: interrupted; {where}" and out.out == ""
    assert cli.main(command(tiny)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ncops: interrupted"


KILLS = [("train", 1), ("train", 5), ("train", 9), ("held-out", 1), ("held-out", 2)]


@pytest.mark.parametrize(("part", "after"), KILLS)
def test_killed_and_resumed_gives_the_same_bits(tiny, capsys, tmp_path, monkeypatch, part, after):
    arguments = command(tiny, "--layers", "2", "--checkpoint", tmp_path, "--every", "3", "--save", tmp_path)
    whole = run(capsys, *command(tiny, "--layers", "2", "--save", tmp_path / "whole"))

    class Killed(BaseException):
        pass

    batches = collect.Corpus.batches

    def killed(self, indices, what, done=0):
        for i, item in enumerate(batches(self, indices, what, done)):
            if what == part and i == after:
                raise Killed
            yield item

    monkeypatch.setattr(collect.Corpus, "batches", killed)
    with pytest.raises(Killed):
        cli.main(arguments)
    monkeypatch.setattr(collect.Corpus, "batches", batches)
    capsys.readouterr()
    resumed = run(capsys, *arguments)
    assert without_times(resumed) == without_times(whole)
    for name in ("class_statistics", "decision_statistics"):
        files = [folder / f"{name}.safetensors" for folder in (tmp_path, tmp_path / "whole")]
        a, b = (ncops.load(file).state_dict() for file in files)
        for key in a:
            assert key == "config" or torch.equal(a[key], b[key]), key
        assert files[0].read_bytes() == files[1].read_bytes()
    monkeypatch.setattr(collect.Pass, "update", None)  # once more finds everything done
    assert without_times(run(capsys, *arguments)) == without_times(whole)


def test_a_checkpoint_of_another_run_is_refused(tiny, capsys, tmp_path):
    run(capsys, *command(tiny, "--checkpoint", tmp_path))
    assert cli.main(command(tiny, "--checkpoint", tmp_path, "--window", "16")) == 2
    assert "belongs to a run with another window" in capsys.readouterr().err
    assert cli.main(command(tiny, "--checkpoint", tmp_path, "--batch-size", "4")) == 2
    assert "belongs to a run with another batch size" in capsys.readouterr().err
    (tmp_path / "train.safetensors").write_bytes(b"x" * 100)
    assert cli.main(command(tiny, "--checkpoint", tmp_path)) == 2
    assert "--checkpoint" in capsys.readouterr().err
