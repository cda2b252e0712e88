"""Kills writers at random moments, and looks at what is left: ``python tests/killed.py WHAT FOLDER KILLS``.

``save`` and ``lm`` kill so many writers; ``rivals`` lets two write one file so often, ``lm-rivals`` two runs share a
folder.

Each writer is a fork of this process, which has imported everything and started no thread: a kill costs milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import ncops
from ncops import cli


def forked(work: Callable[[], int | None]) -> int:
    """A child that does ``work`` and ends with its status."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    return child


def kill_after(child: int, seconds: float) -> int | None:
    """The exit status of a child that ended before it was killed, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == -signal.SIGKILL else status


def states(number: int = 3) -> list[ncops.ClassStatistics]:
    """Statistics of a few megabytes, so that a kill meets the write."""
    made = []
    for i in range(number):
        generator = torch.Generator().manual_seed(i)
        made.append(ncops.ClassStatistics(num_classes=1000, dim=300, scatter=True))
        made[-1].update(torch.randn(50, 300, generator=generator), torch.arange(50))
    return made


def save(folder: Path, kills: int) -> dict:
    """Writers that replace one file again and again: it is whole, old or new, at every moment."""
    path, given = folder / "stats.safetensors", states()
    contents = set()
    for state in given:
        state.save(path)
        contents.add(path.read_bytes())

    def write_for_ever() -> None:
        while True:
            for state in given:
                state.save(path)

    left = 0
    for _ in range(kills):
        status = kill_after(forked(write_for_ever), random.uniform(0.001, 0.05))
        assert status is None, f"the writer ended by itself: {status}"
        assert path.read_bytes() in contents, "the file is neither the old state nor the new one"
        ncops.load(path)
        left = max(left, len(list(folder.iterdir())) - 1)
        given[0].save(path)
        names = [name.name for name in folder.iterdir()]
        assert names == [path.name], f"a save left what a killed one had begun: {names}"
    return {"kills": kills, "left": left}


def import_for_lm() -> None:
    """What a run imports, which takes it as long as all else."""
    for name in ("matplotlib.backends.backend_svg", "transformers.models.llama.modeling_llama", "tokenizers", "jinja2"):
        importlib.import_module(name)


def lm(folder: Path, kills: int) -> dict:
    """Runs of ``ncops lm --checkpoint`` that are killed and started again until each has come to its end."""
    import_for_lm()
    command = json.loads((folder / "command.json").read_text())
    assert kill_after(forked(partial(cli.main, [*command, "--output", str(folder / "whole")])), 600) == 0
    done = ends = rounds = 0
    while done < kills:
        place = folder / f"round-{rounds}"
        place.mkdir()
        arguments = [*command, "--checkpoint", str(place), "--every", "1", "--output", str(place)]
        status, started, longest = None, 0, 0.6
        while status is None:
            started += 1
            status = kill_after(forked(partial(cli.main, arguments)), random.uniform(0.0, longest))
            done += status is None
            longest = min(20.0, 1.2 * longest)  # a run makes its own way in the end
        assert status == 0, f"round {rounds}, start {started}: exit status {status}"
        ends, rounds = ends + 1, rounds + 1
    return {"kills": done, "ends": ends}


def ended(child: int, wait: bool = True) -> int | None:
    """The exit status of a child; None of one that still runs, where that is not waited for."""
    done, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def rivals(folder: Path, saves: int) -> dict:
    """Two processes that save one file in turn with each other: it is one of the two states, whole, at every moment."""
    path, given = folder / "stats.safetensors", states(2)
    contents = []
    for state in given:
        state.save(path)
        contents.append(path.read_bytes())

    def write(state: ncops.ClassStatistics) -> None:
        for _ in range(saves):
            state.save(path)

    running, seen = {forked(partial(write, state)) for state in given}, set()
    while running:
        seen.add(contents.index(path.read_bytes()))
        for child in list(running):
            if (status := ended(child, wait=False)) is not None:
                running.remove(child)
                assert status == 0, f"exit status {status}"
    ncops.load(path)
    names = [name.name for name in folder.iterdir()]
    assert names == [path.name], f"two writers have left {names}"
    return {"kills": saves, "seen": len(seen)}


def lm_rivals(folder: Path, runs: int) -> dict:
    """Two runs of one command at once, with one checkpoint folder and one output folder."""
    import_for_lm()
    command = json.loads((folder / "command.json").read_text())
    assert ended(forked(partial(cli.main, [*command, "--output", str(folder / "whole")]))) == 0
    for i in range(runs):
        place = folder / f"round-{i}"
        arguments = [*command, "--checkpoint", str(place), "--every", "1", "--save", str(place), "--output", str(place)]
        children = [forked(partial(cli.main, arguments)) for _ in range(2)]
        assert [ended(child) for child in children] == [0, 0]
    return {"kills": runs, "ends": runs}


if __name__ == "__main__":
    torch.set_num_threads(1)
    random.seed(0)
    chosen = {"save": save, "lm": lm, "rivals": rivals, "lm-rivals": lm_rivals}[sys.argv[1]]
    print(json.dumps(chosen(Path(sys.argv[2]), int(sys.argv[3]))))
