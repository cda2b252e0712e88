"""NCOPS_AUTOTUNE=1 with stand-ins for the clock: candidates are right, the fastest is kept, nothing happens unasked."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from op_cases import CASES, check

pytestmark = pytest.mark.triton
launch = pytest.importorskip("ncops.triton_kernels._launch")
if not launch.interpreted():
    pytest.skip("tests/gpu tunes in earnest", allow_module_level=True)

KERNEL = "nearest_class_mean"  # has rows of its own for every dtype class
X = torch.zeros(3, 5)


@pytest.fixture
def tuning(monkeypatch):
    """As on a GPU with the switch: larger blocks than the interpreter's, so that they have halves."""
    monkeypatch.setattr(launch, "autotuning", lambda tensor: True)
    monkeypatch.setattr(launch, "_tuned", {})
    monkeypatch.setattr(launch, "INTERPRETED_BLOCK", 32)
    monkeypatch.setattr(launch, "elapsed", lambda call: (call(), 1.0)[1])


def table(dtype=torch.float32, tf32=False):
    return launch.launch(KERNEL, dtype, None, tf32)


def test_candidates_are_neighbours_of_the_table(tuning):
    config = table()
    found = launch.alternatives(config)
    assert found[0] == config and len({str(candidate) for candidate in found}) == len(found)
    for candidate in found[1:]:
        changed = [name for name in ("num_warps", "num_stages") if getattr(candidate, name) != getattr(config, name)]
        changed += [name for name, size in candidate.blocks.items() if size != config[name]]
        assert len(changed) == 1
        assert all(size >= 16 for name, size in candidate.blocks.items() if size != config[name])


@pytest.mark.parametrize("row", sorted(launch.TABLE))
def test_candidates_keep_to_what_kernels_take(row):
    """Blocks are powers of two, and those of products stay at 16 or more; at most 16 warps."""
    for config in launch.TABLE[row].values():
        for candidate in launch.alternatives(config):
            assert 1 <= candidate.num_warps <= 16 and candidate.num_stages >= 1
            assert candidate.blocks.keys() == config.blocks.keys()
            for name, size in candidate.blocks.items():
                assert size == config[name] or (size >= 16 and size & (size - 1) == 0)


def test_the_fastest_is_kept(tuning, monkeypatch):
    runs = []
    wanted = launch.alternatives(table())[-1]
    monkeypatch.setattr(launch, "elapsed", lambda call: 1.0 if call() == wanted else 2.0)

    def run(config):
        runs.append(config)
        return config

    assert launch.tuned(KERNEL, X, (3, 5), run) == wanted
    assert {str(config) for config in runs} == {str(config) for config in launch.alternatives(table())}
    del runs[:]
    assert launch.tuned(KERNEL, X, (2, 7), run) == wanted  # sizes of the same class
    assert runs == [wanted]


def test_equal_times_leave_the_table(tuning):
    assert launch.tuned(KERNEL, X, (3, 5), lambda config: config) == table()


@pytest.mark.parametrize(
    ("tensor", "shape", "tf32"),
    [
        (X, (3, 8), False),
        (X, (4, 5), False),
        (X, (3, 5), True),
        (X.double(), (3, 5), False),
        (X.bfloat16(), (3, 5), False),
        (X.to("meta"), (3, 5), False),
    ],
    ids=["columns", "rows", "tf32", "float64", "half", "device"],
)
def test_kept_by_shape_dtype_and_device(tuning, tensor, shape, tf32):
    runs = []
    launch.tuned(KERNEL, X, (3, 5), runs.append)
    first = len(runs)
    launch.tuned(KERNEL, tensor, shape, runs.append, tf32)
    assert len(runs) > first + 1


def test_half_types_share_their_parameters(tuning):
    runs = []
    launch.tuned(KERNEL, X.half(), (3, 5), runs.append)
    first = len(runs)
    launch.tuned(KERNEL, X.bfloat16(), (3, 5), runs.append)
    assert len(runs) == first + 1


@pytest.mark.parametrize(
    "error",
    [
        launch.triton.runtime.errors.OutOfResources(300000, 232448, "shared memory"),
        launch.triton.runtime.errors.PTXASError("too many registers"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_does_not_fit_is_left_out(tuning, error):
    def run(config):
        if config.num_warps >= table().num_warps and config.num_stages >= table().num_stages:
            raise error
        return config

    fits = launch.tuned(KERNEL, X, (3, 5), run)
    assert fits.num_warps < table().num_warps or fits.num_stages < table().num_stages


def test_errors_reach_the_caller(tuning):
    error = launch.triton.runtime.errors.OutOfResources(300000, 232448, "shared memory")

    def run(config):
        raise error

    with pytest.raises(type(error), match="300000"):  # nothing fits: the table's own error
        launch.tuned(KERNEL, X, (3, 5), run)

    def fail(config):
        raise ValueError("of the op's own")

    with pytest.raises(ValueError, match="own"):
        launch.tuned(KERNEL, X, (9, 5), fail)
    assert len(launch._tuned) == 1


def test_a_captured_graph_takes_what_is_known(tuning, monkeypatch):
    monkeypatch.setattr(launch, "capturing", lambda: True)
    runs = []
    launch.tuned(KERNEL, X, (3, 5), runs.append)
    assert runs == [table()] and not launch._tuned
    key = (KERNEL, "float32", X.device, 2, 3)
    launch._tuned[key] = launch.alternatives(table())[1]
    launch.tuned(KERNEL, X, (3, 5), runs.append)
    assert runs[1] == launch._tuned[key]


def test_only_where_asked_for(monkeypatch):
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    for value, there in ((None, False), ("0", False), ("1", True)):
        monkeypatch.delenv("NCOPS_AUTOTUNE", raising=False)
        if value is not None:
            monkeypatch.setenv("NCOPS_AUTOTUNE", value)
        monkeypatch.setattr(launch, "interpreted", lambda: True)
        assert not launch.autotuning(on_gpu)
        monkeypatch.setattr(launch, "interpreted", lambda: False)
        assert launch.autotuning(on_gpu) is there
        assert not launch.autotuning(on_cpu)


def test_without_the_switch_nothing_is_timed(monkeypatch):
    monkeypatch.delenv("NCOPS_AUTOTUNE", raising=False)
    monkeypatch.setattr(launch, "elapsed", lambda call: pytest.fail("timed"))
    runs = []
    launch.tuned(KERNEL, X, (3, 5), runs.append)
    assert runs == [table()]


def test_importing_tunes_nothing():
    program = (
        "import importlib, pathlib, torch, ncops.triton_kernels as kernels\n"
        "for path in pathlib.Path(kernels.__file__).parent.glob('*.py'):\n"
        "    importlib.import_module('ncops.triton_kernels.' + path.stem)\n"
        "from ncops.triton_kernels import _launch\n"
        "assert not _launch._tuned and not torch.cuda.is_initialized()\n"
    )
    environment = {**os.environ, "NCOPS_AUTOTUNE": "1", "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_clock_is_the_streams(monkeypatch):
    """Events before and after the call, waited for before they are read."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, stop):
            log.append("read")
            return 3.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert launch.elapsed(lambda: log.append("call")) == 3.5
    assert log == ["record", "call", "record", "wait", "read"]
    assert launch.milliseconds(lambda config: None, table()) == 3.5


def different_blocks(config, alternatives=launch.alternatives):
    """Warps and stages do not exist in the interpreter."""
    return [config, *(other for other in alternatives(config) if other.blocks != config.blocks)]


TUNED = ("linear_stats", "class_scatter", "projected_sqnorms", "nearest_class_mean")
PAIRS = ("dot", "distance", "cdnv")


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if (case.op in TUNED or case.name in PAIRS) and not (case.op == "linear_stats" and case.gradient)
    ],
    ids=lambda case: case.title,
)
def test_every_candidate_is_right(case, tuning, monkeypatch):
    """Each in turn wins, in every kernel that the op tunes."""
    monkeypatch.setattr(launch, "milliseconds", lambda run, config: 0.0)
    counts = []

    def only(which, config):
        candidates = different_blocks(config)
        counts.append(len(candidates))
        return [candidates[min(which, len(candidates) - 1)]]

    which = 0
    while which < max(counts, default=1):
        monkeypatch.setattr(launch, "alternatives", functools.partial(only, which))
        launch._tuned.clear()
        check(case, "triton", torch.float32)
        which += 1
    assert which > 1, f"{case.title} tunes nothing"
