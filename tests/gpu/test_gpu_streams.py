"""No synchronisation, any stream, any device, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, check, fresh, gpu_backends, gpu_cases
from torch import Tensor

import ncops

cases = gpu_cases(CASES)
forward = gpu_cases(case for case in CASES if not case.gradient)
some_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@some_dtypes
@cases
def test_never_synchronises(gpu_backend, case, dtype):
    inputs = case.make(dtype)
    with ncops.use_backend(gpu_backend):
        case.run(**fresh(inputs, "cuda"))  # compiles
        again = fresh(inputs, "cuda")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            case.run(**again)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@forward
def test_runs_on_the_current_stream(gpu_backend, case):
    """Inputs that are still being written on the side stream must be waited for, so the stream must be that one."""
    inputs = fresh(case.make(torch.float32), "cuda")
    with ncops.use_backend(gpu_backend):
        expected = case.run(**inputs)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        late = {k: torch.full_like(v, 0) if _is_float(v) else v for k, v in inputs.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # a launch on another stream would read the zeros
            for name, value in late.items():
                if _is_float(value):
                    value.copy_(inputs[name], non_blocking=True)
            found = case.run(**late)
        stream.synchronize()
    for name, value in expected.items():
        assert torch.equal(value.nan_to_num(7), found[name].nan_to_num(7)), name


def _is_float(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@cases
def test_second_device(gpu_backend, case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        check(case, gpu_backend, torch.float32, "cuda:1")


@forward
def test_graph_capture(gpu_backend, case):
    first, second = fresh(case.make(torch.float32), "cuda"), fresh(case.make(torch.float32), "cuda")
    with ncops.use_backend(gpu_backend):
        expected = case.run(**second)
        static = {k: v.clone() if isinstance(v, Tensor) else v for k, v in first.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            case.run(**static)  # compiles outside the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = case.run(**static)
    for name, value in static.items():
        if isinstance(value, Tensor):
            value.copy_(second[name])
    graph.replay()
    torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(value.nan_to_num(7), found[name].nan_to_num(7)), name


@some_dtypes
@gpu_cases(case for case in CASES if case.gradient and case.op in ("linear_stats", "logit_stats"))
def test_graph_capture_of_gradients(gpu_backend, case, dtype):
    static = fresh(case.make(dtype), "cuda")
    with ncops.use_backend(gpu_backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = case.run(**{k: v.detach().clone() for k, v in static.items()})
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = case.run(**static)
    graph.replay()
    torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@gpu_backends("class_moments", "linear_stats")
def test_bad_labels_are_counted_not_raised(gpu_backend):
    x = torch.randn(6, 4, device="cuda")
    labels = torch.tensor([0, 1, -100, 2, -1, 9], device="cuda")
    with ncops.use_backend(gpu_backend):
        moments = ncops.class_moments(x, labels, 2)
        stats = ncops.linear_stats(x, torch.randn(3, 4, device="cuda"), None, labels)
    assert moments.invalid.item() == 3 and moments.counts.tolist() == [1, 1]
    assert stats.nll.isnan().tolist() == [False, False, False, False, True, True]
    assert stats.target_rank[2:].tolist()[0] == -1 and (stats.target_rank[4:] == -1).all()


@gpu_backends("accumulate_class_moments_")
def test_class_statistics_raise_in_compute(gpu_backend):
    with ncops.use_backend(gpu_backend):
        stats = ncops.ClassStatistics(num_classes=2, dim=4, device="cuda")
        stats.update(torch.randn(3, 4, device="cuda"), torch.tensor([0, 1, 5], device="cuda"))
        with pytest.raises(ValueError, match="label"):
            stats.compute()
