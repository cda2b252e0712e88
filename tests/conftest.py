"""Fixtures of every test: a fixed seed, and the backends that an op is tested on."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, which reads it when a kernel is defined
    os.environ.setdefault("TRITON_INTERPRET", "1")

import ncops  # noqa: E402
from ncops import backends  # noqa: E402


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
