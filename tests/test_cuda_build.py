"""The CUDA side of an installation without a GPU: what is registered, what traces, what is said.

`make test-cuda-wheel` runs this file too, in a torch that has CUDA.
"""

from __future__ import annotations

import re

import pytest
import torch
from op_cases import CASES, GPU_OPS, fresh
from torch._subclasses.fake_tensor import FakeTensorMode

import ncops
from ncops import backends
from ncops.backends import native
from ncops.cli import info

with_cuda = pytest.mark.skipif(not native.has("class_moments", "CUDA"), reason="built without nvcc")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_fake_cuda_tensors_trace(case):
    """Shapes, dtypes and devices of every result and gradient, without a driver."""
    if case.gradient and not torch.cuda.is_available():
        pytest.skip("no driver: autograd asks for it even for fake CUDA tensors")
    if torch.version.cuda is None and case.op in ("class_scatter", "accumulate_class_moments_", "nearest_neighbors"):
        pytest.skip("this torch has no CUDA: views of fake CUDA tensors fail")
    inputs = case.make(torch.float32)
    expected = case.run(**fresh(inputs))
    with FakeTensorMode():
        fakes = {k: v.new_empty(v.shape, device="cuda") if isinstance(v, torch.Tensor) else v for k, v in fake(inputs)}
        found = case.run(**fakes)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.device.type == "cuda", name
        assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name


def test_fake_cuda_state_and_scatter():
    with FakeTensorMode():
        x, y = torch.empty(6, 4, device="cuda"), torch.empty(6, dtype=torch.int64, device="cuda")
        center, state = x.new_empty((3, 4)), x.new_empty((3, 4), dtype=torch.float64)
        assert ncops.class_scatter(x, y, center).shape == (4, 4)
        ncops.accumulate_class_moments_(
            y.new_empty(3), center, state, x.new_empty(3, dtype=torch.float64), y.new_empty(()), x, y
        )


def fake(inputs):
    for name, value in inputs.items():
        yield name, torch.empty(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value


@with_cuda
@pytest.mark.parametrize("op", GPU_OPS["cuda"])
def test_compiled_kernels_are_registered_for_both_devices(op):
    assert native.has(op, "CPU") and native.has(op, "CUDA")
    assert backends.why_not("cuda", op, "cuda") is None


@with_cuda
def test_the_library_finds_torchs_own():
    """torch loads libtorch_cuda for itself alone: without asking for it by name every call said that there was none."""
    assert torch.ops.ncops_C.reaches_cuda() == (torch.version.cuda is not None)


@with_cuda
def test_info_names_the_architectures(capsys):
    facts = info.collect(torch_env=False)
    built = re.search(r"cuda=\d+\.\d+:(sm_\d+(\+sm_\d+)*)$", facts["native"]["build_info"])
    assert built, facts["native"]["build_info"]
    assert facts["ops"]["logit_stats"]["cuda"]["runs"] == "cuda"
    info.show(facts)
    assert built[1] in capsys.readouterr().out


@with_cuda
def test_a_call_says_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("nothing is missing")
    with pytest.raises((RuntimeError, AssertionError), match="CUDA enabled|NVIDIA driver"):
        ncops.class_moments(torch.ones(2, 3, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda"), 2)


def test_choice_of_backend():
    assert backends.choose("pair_stats", "cuda", torch.float32) == "triton"
    for op in ("linear_stats", "class_scatter"):
        assert backends.choose(op, "cuda", torch.bfloat16) == backends.choose(op, "cuda", torch.float32) == "triton"
    for op in ("class_moments", "accumulate_class_moments_", "logit_stats"):
        with_them = native.has(op, "CUDA")
        assert backends.choose(op, "cuda", torch.float32) == ("cuda" if with_them else "triton")
    assert backends.choose("linear_stats_backward", "cuda", torch.float32) == "triton"
    assert backends.choose("pair_stats", "mps") == "reference"
    with ncops.use_backend("triton"):
        with pytest.raises(RuntimeError, match="backend 'triton' cannot run pair_stats: tensors are on mps"):
            backends.choose("pair_stats", "mps")


def test_the_interpreter_is_never_chosen_for_work():
    """It runs on CPU tensors in these tests, but only where it is forced."""
    for op in info.OPS:
        assert backends.choose(op, "cpu") in ("cpu", "reference")
