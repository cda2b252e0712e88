"""Every backend that runs on CPU tensors agrees with float64 on every op, by the cases that a GPU is checked with."""

from __future__ import annotations

import pytest
from op_cases import CASES, check
from testing import dtypes, skip_unless_runs


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize("name", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)])
def test_parity(name, case, dtype):
    skip_unless_runs(name, case.op, "cpu")
    check(case, name, dtype)
