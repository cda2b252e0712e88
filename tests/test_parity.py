"""Every backend that runs on CPU tensors agrees with float64 on every op, by the cases that a GPU is checked with."""

from __future__ import annotations

import pytest
from op_cases import CASES, check
from testing import dtypes


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize("cpu_backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)])
def test_parity(cpu_backend, case, dtype):
    check(case, cpu_backend, dtype)
