"""The backends that tests run on are installed. Files of tests for one backend alone skip without it: here it fails."""

from __future__ import annotations

import pytest

from ncops import backends
from ncops.cli import info


@pytest.mark.parametrize("op", info.OPS)
@pytest.mark.parametrize("cpu_backend", ["cpu", "triton"])
def test_backend_runs(cpu_backend, op):
    """``pytest --without BACKEND`` where one is not meant to be here."""
    assert backends.why_not(cpu_backend, op, "cpu") is None
