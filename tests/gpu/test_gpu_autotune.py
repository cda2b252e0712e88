"""NCOPS_AUTOTUNE=1 on a GPU: results stay right, the choice is made once."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, check

TUNED = ("linear_stats", "logit_stats", "class_scatter", "projected_sqnorms", "nearest_class_mean", "pair_stats")


@pytest.mark.parametrize("case", [case for case in CASES if case.op in TUNED], ids=lambda case: case.title)
@pytest.mark.parametrize("gpu_backend", ["triton"])
def test_tuned_kernels_are_right(gpu_backend, case, monkeypatch):
    from ncops.triton_kernels import _launch

    monkeypatch.setenv("NCOPS_AUTOTUNE", "1")
    monkeypatch.setattr(_launch, "_tuned", {})
    check(case, gpu_backend, torch.float32, "cuda")
    chosen = dict(_launch._tuned)
    assert chosen
    monkeypatch.setattr(_launch, "elapsed", lambda call: pytest.fail("timed again"))
    check(case, gpu_backend, torch.float32, "cuda")
    assert _launch._tuned == chosen
