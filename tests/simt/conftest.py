"""Fixtures of the tests that run CUDA kernels on the CPU (docs/cuda-without-a-gpu.md)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import simt_modules
import torch

MODE = os.environ.get("NCOPS_SIMT_MODE", "plain")  # set by sanitized.py
HERE = Path(__file__).resolve().parent
OWN = "selftest"  # the op of the harness's own tests
# What a sanitizer repeats of the tests of an op. ThreadSanitizer is 25 times slower than the plain build, and needs one
# run through every path; AddressSanitizer is 3 times slower, and needs the odd shapes, layouts and addresses.
REPEATED = {
    "tsan": re.compile(
        "^test_check|schedules|slabs|distributions|stream|accumulate_layouts|rows_split|alignment|wide_float32"
        "|nothing|invalid_labels|out_of_range"
    ),
    "asan": re.compile("^test_check|schedules|float64|every_column|layouts|alignment|offset"),
}


def pytest_collection_modifyitems(config, items):
    if MODE in REPEATED:
        repeated = REPEATED[MODE]
        left_out = [i for i in items if getattr(i.module, "OP", OWN) != OWN and not repeated.search(i.originalname)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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


@pytest.fixture(autouse=True)
def _one_thread():
    """The harness has one thread; torch's, waiting for their share of tiny expectations, would cost more than it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def simt_mode() -> str:
    """How the kernels are built: "plain", "asan" or "tsan"."""
    return MODE


@pytest.fixture(scope="session")
def load_kernels(request):
    """Loads the module of an op, in the mode of this run, once."""
    loaded = {}
    if len({getattr(item.module, "OP", OWN) for item in request.session.items}) > 2:
        simt_modules.build_all([MODE])  # two at a time

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
