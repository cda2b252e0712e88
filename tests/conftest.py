"""Fixtures of every test: a fixed seed, and the backends that an op is tested on."""

from __future__ import annotations

import pytest
import torch

import ncops
from ncops import backends


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=("reference", "cpu"))
def backend(request):
    """Forces each backend in turn; the module names its op in ``OP``."""
    reason = backends.why_not(request.param, request.module.OP, "cpu")
    if reason is not None:
        pytest.skip(f"backend {request.param!r} cannot run {request.module.OP}: {reason}")
    with ncops.use_backend(request.param):
        yield request.param
