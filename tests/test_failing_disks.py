"""Disks that take nothing, or no more: said in one line, before the work where that can be known; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import resource

import numpy as np
import pytest
import torch
from test_cli import error, run

import ncops
from ncops import cli
from ncops.bench import records
from ncops.lm.progress import Progress
from ncops.lm.ranks import Ranks
from ncops.report import output
from ncops.stats import files


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- nothing can be written -------------------------------------------------------------------------------------------


@pytest.fixture(params=[errno.EROFS, errno.EACCES], ids=["read-only", "forbidden"])
def refusing(request, monkeypatch, tmp_path):
    """A folder in which nothing can be made, whoever asks, and what the system says then."""
    folder, real = tmp_path / "refusing", {"open": os.open, "mkdir": os.mkdir}
    folder.mkdir()

    def refuse(path) -> None:
        if os.path.realpath(path).startswith(str(folder)):
            raise OSError(request.param, os.strerror(request.param), path)

    def open_(path, flags, *more, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return real["open"](path, flags, *more, **options)

    def mkdir(path, *more, **options):
        refuse(path)
        return real["mkdir"](path, *more, **options)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "mkdir", mkdir)
    return folder, os.strerror(request.param)


COMMANDS = {
    "measure": ("--output", ["measure", "none.npz", "-o", "{}"]),
    "measure html": ("--html", ["measure", "none.npz", "--html", "{}/a.html"]),
    "lm": ("--output", ["lm", "none", "--text", "none.txt", "-o", "{}"]),
    "lm checkpoint": ("--checkpoint", ["lm", "none", "--text", "none.txt", "--checkpoint", "{}"]),
    "lm save": ("--save", ["lm", "none", "--text", "none.txt", "--save", "{}"]),
    "report": ("--output", ["report", "none", "-o", "{}"]),
    "bench": ("--output", ["bench", "--ops", "none", "-o", "{}"]),
    "demo": ("--output", ["demo", "-o", "{}"]),
    "merge": ("--output", ["merge", "none", "-o", "{}/a"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_takes_no_file_is_refused_before_anything_is_read(name, refusing, capsys):
    folder, why = refusing
    option, arguments = COMMANDS[name]
    said = error(capsys, *(argument.format(folder) for argument in arguments))
    assert said.startswith(f"ncops: {option}: {folder}") and said.endswith(f" cannot be written: {why}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_made(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    option, arguments = COMMANDS[name]
    said = error(capsys, *(argument.format(tmp_path / "file" / "folder") for argument in arguments))
    assert said.startswith(f"ncops: {option}: ") and str(tmp_path / "file") in said


def test_save_says_what_takes_nothing(refusing):
    folder, why = refusing
    with pytest.raises(OSError, match=f"^path: {folder / 'a'} cannot be written: {why}$"):
        ncops.ClassStatistics(2, 3).save(folder / "a")
    assert os.listdir(folder) == []


# -- the disk is full -------------------------------------------------------------------------------------------------


def statistics() -> ncops.ClassStatistics:
    made = ncops.ClassStatistics(64, 64)
    made.update(torch.randn(200, 64), torch.arange(200) % 64)
    return made


def decisions() -> ncops.DecisionStatistics:
    return ncops.DecisionStatistics(statistics().compute(), torch.randn(64, 64))


def write_rows(path) -> None:
    records.write_csv(path, [{name: f"{name} {i}" for name in records.COLUMNS} for i in range(100)])


WRITERS = {
    "ClassStatistics.save": lambda path: statistics().save(path),
    "DecisionStatistics.save": lambda path: decisions().save(path),
    "checkpoint": lambda path: Progress(path.parent, 1, {}, Ranks()).save("train", 1, {"classes": statistics()}),
    "to_html": lambda path: ncops.collapse(statistics().compute()).to_html(path),
    "write_csv": write_rows,
}


@pytest.fixture
def small_files():
    """Files end at 2 KB: what the system says then comes from the write itself, in whatever language it is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("when", ["write", "flush", "rename"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(name, when, tmp_path, monkeypatch, small_files):
    path = tmp_path / "train.safetensors"
    WRITERS[name](path)
    old = path.read_bytes()
    if when == "write":
        small_files()
    else:
        monkeypatch.setattr(files.os, "fsync" if when == "flush" else "replace", no_space)
    with pytest.raises(OSError, match=str(path)):
        WRITERS[name](path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("json_too", [False, True])
def test_a_report_that_cannot_be_written_is_told_all_the_same(json_too, tmp_path, capsys, monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 4
    np.savez(tmp_path / "f.npz", features=x, labels=y)
    arguments = ["measure", tmp_path / "f.npz", "-o", tmp_path / "out", *(["--json"] if json_too else [])]
    whole = run(capsys, *arguments)
    monkeypatch.setattr(files.os, "fsync", no_space)
    failed = run(capsys, *arguments, status=2)
    if json_too:
        assert json.loads(failed.out)["metrics"] == json.loads(whole.out)["metrics"]
    else:
        assert failed.out == whole.out
    assert failed.err == f"ncops: {tmp_path / 'out' / 'report.json'}: No space left on device\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["report.html", "report.json"]


def test_a_comparison_that_cannot_be_written_is_told_all_the_same(tmp_path, capsys, monkeypatch):
    for name in ("step-1", "step-2"):
        (tmp_path / name).mkdir()
        statistics().save(tmp_path / name / "class_statistics.safetensors")
    arguments = ["report", tmp_path / "step-1", tmp_path / "step-2", "-o", tmp_path / "out", "--json"]
    monkeypatch.setattr(output, "figure_files", lambda *_: {})
    monkeypatch.setattr(files.os, "fsync", no_space)
    failed = run(capsys, *arguments, status=2)
    assert [one["name"] for one in json.loads(failed.out)["runs"]] == ["step-1", "step-2"]
    assert failed.err == f"ncops: {tmp_path / 'out' / 'report.html'}: No space left on device\n"
    assert os.listdir(tmp_path / "out") == []


def test_a_benchmark_goes_on_where_its_file_cannot_be_written(tmp_path, capsys, monkeypatch):
    """A disk that is full for a while costs no row."""
    from ncops.bench import plan, runner
    from ncops.bench.case import Case

    sizes = {"N": 4, "D": 3, "V": 5, "C": 2}
    cases = [Case(plan.benches(op)[0], "tiny", sizes) for op in ("linear_stats", "logit_stats")]
    monkeypatch.setattr(plan, "quick", lambda ops: cases)
    monkeypatch.setattr(runner, "_measure", lambda case, *_: runner.Result(case, 1, errors={"ours": 0.0}))
    write, calls = records.write_file, []

    def full_once(path, text):
        calls.append(path)
        return no_space() if len(calls) == 1 else write(path, text)

    monkeypatch.setattr(records, "write_file", full_once)
    assert cli.main(["bench", "--json", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["results"]) == 2
    assert f"{tmp_path / records.NAME}: No space left on device\n" in printed.err
    assert (tmp_path / records.NAME).read_text().count("\n") == 3
