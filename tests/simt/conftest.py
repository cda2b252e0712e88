"""Fixtures of the tests that run CUDA kernels on the CPU (docs/cuda-without-a-gpu.md)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import simt_modules

MODE = os.environ.get("NCOPS_SIMT_MODE", "plain")  # set by sanitized.py
HERE = Path(__file__).resolve().parent
OWN = "selftest"  # the op of the harness's own tests
# ThreadSanitizer is 25 times slower: of the ops it runs test_check..., and what varies the schedule.
RACES = re.compile("^test_check|schedule")


def pytest_collection_modifyitems(config, items):
    if MODE == "tsan":
        slow = [item for item in items if getattr(item.module, "OP", OWN) != OWN and not RACES.search(item.name)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.simt)
            if not shutil.which(os.environ.get("CXX", "g++")):
                item.add_marker(pytest.mark.skip(reason="no g++"))


class SanitizerLog:
    """The reports of ASan, UBSan and TSan; ``take`` gives those since the last call."""

    def __init__(self, prefix: str | None):
        self.prefix = prefix
        self.read: dict[Path, int] = {}

    def take(self) -> str:
        if self.prefix is None:
            return ""
        text = ""
        for path in sorted(Path(self.prefix).parent.glob(Path(self.prefix).name + "*")):
            content = path.read_text(errors="replace")
            text += content[self.read.get(path, 0) :]
            self.read[path] = len(content)
        return text


_log = SanitizerLog(os.environ.get("NCOPS_SIMT_LOG"))


@pytest.fixture
def sanitizer_log() -> SanitizerLog:
    return _log


@pytest.fixture(autouse=True)
def _no_report():
    """A sanitizer's report fails the test during which it came."""
    yield
    report = _log.take()
    assert not report, report


@pytest.fixture(scope="session")
def simt_mode() -> str:
    """How the kernels are built: "plain", "asan" or "tsan"."""
    return MODE


@pytest.fixture(scope="session")
def load_kernels():
    """Loads the module of an op, in the mode of this run, once."""
    loaded = {}

    def load(op: str):
        if op not in loaded:
            loaded[op] = simt_modules.load(op, MODE)
        loaded[op].schedule(0)
        loaded[op].plant("")
        return loaded[op]

    return load


@pytest.fixture
def kernels(request, load_kernels):
    """The kernels of the test module's ``OP``: schedule 0, no defect."""
    module = load_kernels(request.module.OP)
    yield module
    module.plant("")
