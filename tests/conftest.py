"""Fixtures of every test: a fixed seed, and the backends that an op is tested on."""

from __future__ import annotations

import os
import zlib

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, which reads it when a kernel is defined
    os.environ.setdefault("TRITON_INTERPRET", "1")

import ncops  # noqa: E402
from ncops import backends  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--triton-all", action="store_true", help="every combination of dtype, shape and mode on Triton's interpreter"
    )


def pytest_collection_modifyitems(config, items):
    """Triton's interpreter takes a fifth of an hour for all combinations: by default one in four of them runs."""
    if config.getoption("--triton-all"):
        return

    def left_out(item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        crossed = params.get("backend") == "triton" and len(params) > 2
        return crossed and zlib.crc32(item.nodeid.encode()) % 4 != 0

    dropped = {item for item in items if left_out(item)}
    config.hook.pytest_deselected(items=list(dropped))
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=("reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)))
def backend(request):
    """Forces each backend in turn; the module names its op in ``OP``."""
    reason = backends.why_not(request.param, request.module.OP, "cpu")
    if reason is not None:
        pytest.skip(f"backend {request.param!r} cannot run {request.module.OP}: {reason}")
    with ncops.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="module")
def on_ranks():
    """Runs functions in several processes, which stay for the whole file: ``on_ranks(size, function, *args)``."""
    from rank_pool import RankPool

    pool = RankPool()
    yield pool
    pool.stop()
