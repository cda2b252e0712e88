"""Options and fixtures of every test: a fixed seed, and the backends that an op is tested on.

A backend that should be here and is not makes its tests fail; ``--without`` is how to say that it should not be here.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections import Counter

# Read when OpenMP is loaded. Threads that spin while they wait take the cores of tests beside them: on a busy machine
# ten digits are learnt in 90 s with it and in 17 s without, of which 6 s are work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():  # before anything imports Triton, which reads it when a kernel is defined
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

import ncops  # noqa: E402

CHOSEN_BY = ("backend", "cpu_backend", "gpu_backend")  # parameters that name the backend of a test


def pytest_addoption(parser):
    parser.addoption(
        "--triton-all", action="store_true", help="every combination of dtype, shape and mode on Triton's interpreter"
    )
    parser.addoption(
        "--triton-part", type=int, default=0, choices=range(4),
        help="which quarter of these without it; 0 and 2 also run the CUDA kernels of the harness under a sanitizer",
    )  # fmt: skip
    parser.addoption("--triton-release", help="fail unless this release of Triton is the one that is imported")
    parser.addoption("--zoo", action="store_true", help="every causal architecture in test_lm_zoo.py, not a sample")
    parser.addoption("--kills", type=int, default=20, help="writers that test_kills.py kills (200 in a full run)")
    parser.addoption(
        "--without", action="append", default=[], choices=("cpu", "cuda", "triton"),
        help="leave out the tests of a backend that was not installed",
    )  # fmt: skip


def pytest_configure(config):
    wanted = config.getoption("--triton-release")
    if wanted is not None:
        import triton

        if triton.__version__ != wanted:
            raise pytest.UsageError(f"--triton-release {wanted}: Triton {triton.__version__} is {triton.__file__}")
    if INTERPRETED and importlib.util.find_spec("triton"):
        import interpreter

        interpreter.prepare()


def pytest_collection_modifyitems(config, items):
    """Leaves out what ``--without`` names, CPU tensors in compiled Triton, and three in four combinations interpreted.

    Triton's interpreter takes a quarter of an hour for all combinations; ``--triton-all`` runs them.
    """
    without = config.getoption("--without")
    everything, part = config.getoption("--triton-all"), config.getoption("--triton-part")

    def left_out(item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if any(params.get(name) in without for name in CHOSEN_BY):
            return True
        if not INTERPRETED and "triton" in (params.get("backend"), params.get("cpu_backend")):
            return True  # tests/gpu runs the compiled kernels
        crossed = params.get("backend") == "triton" and len(params) > 2
        return crossed and not everything and zlib.crc32(item.nodeid.encode()) % 4 != part

    dropped = {item for item in items if left_out(item)}
    config.hook.pytest_deselected(items=list(dropped))
    items[:] = [item for item in items if item not in dropped]
    # The order in which the processes of --dist loadfile take files: none is left with a slow one at the end.
    sizes = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path]))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def kills(request) -> int:
    """How many writers a test kills, or how often each of two saves."""
    return request.config.getoption("--kills")


@pytest.fixture(params=("reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)))
def backend(request):
    """Forces each backend in turn: an op that it cannot run is an error."""
    with ncops.use_backend(request.param):
        yield request.param


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without plots, which take seconds a page, for tests of what stands around them."""
    monkeypatch.setattr("ncops.report.page.figures.inline_svg", lambda draw, name, size: ("0 0 1 1", ""))
    monkeypatch.setattr("ncops.report.output.figure_files", lambda *_: {})


@pytest.fixture(scope="module")
def on_ranks():
    """Runs functions in several processes, which stay for the whole file: ``on_ranks(size, function, *args)``."""
    from rank_pool import RankPool

    pool = RankPool()
    yield pool
    pool.stop()
