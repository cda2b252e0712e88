"""`use_backend`: whose choice it is, and what it reaches."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

import ncops
from ncops import backends
from ncops.backends import native


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_leave_in_another_order_keep_their_own():
    entered, leave = threading.Barrier(3), {name: threading.Event() for name in ("cpu", "reference")}
    seen: dict[str, list] = {"cpu": [], "reference": []}

    def work(name):
        with ncops.use_backend(name):
            entered.wait()
            seen[name].append(backends.forced())
            leave[name].wait()
            seen[name].append(backends.forced())
        seen[name].append(backends.forced())

    threads = [threading.Thread(target=work, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    entered.wait()
    for name, thread in zip(("cpu", "reference"), threads, strict=True):
        leave[name].set()
        thread.join()
    assert seen == {"cpu": ["cpu", "cpu", None], "reference": ["reference", "reference", None]}


def test_other_threads_are_not_forced():
    with ncops.use_backend("reference"):
        assert in_thread(backends.forced) is None


def test_what_was_forced_before_is_forced_again():
    with ncops.use_backend("cpu"):
        with ncops.use_backend("reference"):
            assert backends.forced() == "reference"
        assert backends.forced() == "cpu"


def test_a_forced_backend_that_cannot_run_is_no_other():
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    with ncops.use_backend("cuda"):
        with pytest.raises(RuntimeError, match="'cuda' cannot run class_moments: tensors are on cpu"):
            ncops.class_moments(x, y, 1)
        assert backends.choose("class_moments_backward", "cpu") == "cpu"  # gradients may lean on another


def test_tasks_keep_their_own():
    async def work(name):
        with ncops.use_backend(name):
            await asyncio.sleep(0.01)
            return backends.forced()

    async def both():
        return await asyncio.gather(work("cpu"), work("reference"))

    assert asyncio.run(both()) == ["cpu", "reference"]


@pytest.mark.parametrize("op", ["linear_stats", "class_moments", "class_scatter", "pair_stats"])
def test_a_gradient_runs_where_its_op_ran(op, monkeypatch):
    ran = []
    choose = backends.choose
    monkeypatch.setattr(backends, "choose", lambda *args: ran.append((args[0], choose(*args))) or ran[-1][1])
    x = torch.randn(6, 4, requires_grad=True)
    with ncops.use_backend("reference"):
        if op == "linear_stats":
            loss = ncops.linear_stats(x, torch.randn(5, 4)).entropy.sum()
        elif op == "class_moments":
            loss = ncops.class_moments(x, torch.zeros(6, dtype=torch.int64), 1).sums.sum()
        elif op == "class_scatter":
            loss = ncops.class_scatter(x).sum()
        else:
            loss = ncops.pair_stats(x, "cosine").mean
    in_thread(lambda: loss.backward())
    assert (f"{op}_backward", "reference") in ran and {backend for _, backend in ran} == {"reference"}
    assert backends.forced() is None


def test_a_forced_instruction_set_is_the_one_that_runs(monkeypatch):
    if native.op("cpu_isa") is None:
        pytest.skip("needs the native extension")
    runs = []
    for name in ("avx512_amx", "avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "generic"):
        monkeypatch.setenv("NCOPS_CPU_ISA", name)
        try:
            assert native.op("cpu_isa")() == name
        except RuntimeError:  # not built, or not for this machine
            continue
        runs.append(name)
    monkeypatch.delenv("NCOPS_CPU_ISA")
    if runs[0] == "avx512_bf16" and native.op("cpu_isa")() == "avx512":  # pairs of bfloat16 that are slow: Intel's
        del runs[0]
    assert native.op("cpu_isa")() == runs[0]
