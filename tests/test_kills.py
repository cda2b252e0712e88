"""SIGKILL at random moments of a writer: what was written before stays, and a run goes on to the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_lm_jobs import command, tiny, without_times  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
SCRIPT = Path(__file__).with_name("killed.py")


def kill(what: str, folder: Path, kills: int) -> dict:
    line = [sys.executable, str(SCRIPT), what, str(folder), str(kills)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= kills
    return found


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path, kills):
    assert kill("save", tmp_path, kills)["left"] >= 1, "no kill met a write"


def test_a_file_of_two_writers_is_that_of_one_of_them(tmp_path, kills):
    assert kill("rivals", tmp_path, kills)["seen"] == 2, "the writers did not meet"


def check_reports(folder: Path, rounds: int) -> None:
    """Every round ended with the report of a run that nothing had disturbed, and without a leftover."""

    def report(name: str) -> dict:
        return without_times(json.loads((folder / name / "report.json").read_text()))

    for i in range(rounds):
        assert report(f"round-{i}") == report("whole")
        assert not list((folder / f"round-{i}").glob(".*.tmp"))


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tiny, tmp_path, kills):  # noqa: F811
    (tmp_path / "command.json").write_text(json.dumps(command(tiny, "--layers", "2")))
    check_reports(tmp_path, kill("lm", tmp_path, kills)["ends"])


def test_two_runs_in_one_folder_end_as_one_does(tiny, tmp_path, kills):  # noqa: F811
    (tmp_path / "command.json").write_text(json.dumps(command(tiny)))
    check_reports(tmp_path, kill("lm-rivals", tmp_path, -(-kills // 20))["ends"])
