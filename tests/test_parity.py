"""Every backend that runs on CPU tensors agrees with float64 on every op, by the cases that a GPU is checked with."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, SEVERAL_TASKS, ZERO_SIZES, check, fresh
from testing import before_an_unreadable_page, bits, dtypes, nan_in_fresh_memory, threads

import ncops

on_each_backend = pytest.mark.parametrize(
    "cpu_backend", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.triton)]
)


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@on_each_backend
def test_parity(cpu_backend, case, dtype):
    check(case, cpu_backend, dtype)


@dtypes
@pytest.mark.parametrize("case", SEVERAL_TASKS, ids=lambda case: case.title)
@pytest.mark.parametrize("cpu_backend", ["cpu"])
def test_the_same_bits_for_any_number_of_threads(cpu_backend, case, dtype):
    inputs, results = case.make(dtype), []
    for count in (1, 3):
        with threads(count), ncops.use_backend(cpu_backend):
            results.append(bits(case.run(**fresh(inputs)).values()))
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@dtypes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize("cpu_backend", ["cpu"])
def test_nothing_is_read_past_the_end_of_an_input(cpu_backend, case, dtype):
    inputs = {
        name: before_an_unreadable_page(value) if isinstance(value, torch.Tensor) else value
        for name, value in case.make(dtype).items()
    }
    with ncops.use_backend(cpu_backend):
        case.run(**inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", dict.fromkeys(case.op for case in ZERO_SIZES))
@on_each_backend
def test_sizes_of_nothing(cpu_backend, op, dtype):
    with nan_in_fresh_memory():
        for case in ZERO_SIZES:
            if case.op == op:
                check(case, cpu_backend, dtype)
