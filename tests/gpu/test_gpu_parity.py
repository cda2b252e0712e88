"""Every GPU backend agrees with float64 on every op, forward and backward."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, check, fresh, gpu_cases
from testing import bits, dtypes

import ncops
from ncops.triton_kernels._candidates import candidate


@dtypes
@gpu_cases(CASES)
def test_parity(gpu_backend, case, dtype):
    check(case, gpu_backend, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gpu_backend", ["triton"])
def test_parity_of_scatter_by_halves(gpu_backend, dtype):
    (case,) = (case for case in CASES if case.op == "class_scatter" and not case.gradient)
    with candidate("split_halves"), ncops.use_backend(gpu_backend):
        check(case, gpu_backend, dtype, "cuda")
        inputs = case.make(dtype)
        once, again = (bits(case.run(**fresh(inputs, "cuda")).values()) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_reference_runs_on_the_gpu_too(case):
    check(case, "reference", torch.float64, "cuda")


@gpu_cases(case for case in CASES if not case.gradient)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_every_time(gpu_backend, case, dtype):
    inputs = case.make(dtype)
    with ncops.use_backend(gpu_backend):
        runs = [case.run(**fresh(inputs, "cuda")) for _ in range(20)]
    for other in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value.nan_to_num(7), other[name].nan_to_num(7)), name


@gpu_cases(case for case in CASES if case.gradient)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_same_gradient_bits_every_time(gpu_backend, case, dtype):
    inputs = case.make(dtype)
    with ncops.use_backend(gpu_backend):
        runs = [case.run(**fresh(inputs, "cuda")) for _ in range(20)]
    for other in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value, other[name]), name
