"""Every public class in the surroundings that programs have: pickles, copies, threads, forks, torch's modes."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from testing import held, nan_in_fresh_memory
from torch import Tensor

import ncops
from ncops.stats.state import StreamingState

N, D, C = 400, 12, 5


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=generator, dtype=torch.float32, device="cpu")
    weight = torch.randn(C, D, generator=generator, dtype=torch.float32, device="cpu")
    return x, torch.randint(0, C, (N,), generator=generator, device="cpu"), weight


DATA = problem()


def statistics() -> ncops.ClassStatistics:
    x, y, _ = DATA
    made = ncops.ClassStatistics(C, D, scatter=True)
    made.update(x[:150], y[:150])
    made.update(x[150:], y[150:])
    return made


def decisions() -> ncops.DecisionStatistics:
    x, y, weight = DATA
    made = ncops.DecisionStatistics(statistics().compute(), weight)
    made.update(x, y)
    return made


def accumulators() -> list[Any]:
    from ncops.compat.neural_collapse import accumulate

    x, y, _ = DATA
    mean = accumulate.MeanAccumulator(C, D)
    mean.accumulate(x, y)
    means, overall = mean.compute()
    covariance = accumulate.CovarAccumulator(C, D)
    covariance.accumulate(x, y, means)
    return [means, overall, covariance.compute()]


MADE = {
    "LinearStats": lambda: ncops.linear_stats(DATA[0], DATA[2], None, DATA[1]),
    "LogitStats": lambda: ncops.logit_stats(DATA[0], DATA[1]),
    "ClassMoments": lambda: ncops.class_moments(DATA[0], DATA[1], C),
    "PairStats": lambda: ncops.pair_stats(DATA[2], "cosine"),
    "NearestClassMean": lambda: ncops.nearest_class_mean(DATA[0], DATA[2]),
    "scatter": lambda: ncops.class_scatter(DATA[0]),
    "sqnorms": lambda: ncops.projected_sqnorms(DATA[0], DATA[2]),
    "ClassStatistics": statistics,
    "DecisionStatistics": decisions,
    "ClassGeometry": lambda: statistics().compute(),
    "CollapseReport": lambda: ncops.collapse(statistics().compute(), DATA[2], decisions=decisions()),
    "accumulators": accumulators,
}
every = pytest.mark.parametrize("name", MADE)


def content(value: Any) -> Any:
    """Plain values that two objects can be compared by; NaN equals itself."""
    if isinstance(value, Tensor):
        return value.detach().dtype, value.shape, value.detach().contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(value, StreamingState):
        return content(value.state_dict())
    if isinstance(value, Mapping):
        more = {key: part for key, part in getattr(value, "__dict__", {}).items() if key != "provenance"}  # the time
        return {key: content(part) for key, part in value.items()}, content(more) if more else None
    if dataclasses.is_dataclass(value):
        return {field.name: content(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [content(part) for part in value]
    return repr(value)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return {name: content(make()) for name, make in MADE.items()}


@every
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_equal(name, copied, expected):
    assert content(copied(MADE[name]())) == expected[name]


@pytest.mark.parametrize("make", [statistics, decisions])
def test_deep_copies_and_pickles_go_on_by_themselves(make):
    x, y, _ = DATA
    original = make()
    before = content(original)
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        other.update(x, y)
        assert content(original) == before and content(other) != before
        again = make()
        again.update(x, y)
        assert content(other) == content(again)
    buffer = io.BytesIO()
    torch.save(original.state_dict(), buffer)
    buffer.seek(0)
    fresh = type(original).__new__(type(original))
    fresh.__dict__.update(copy.deepcopy(original.__dict__))
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert content(fresh) == before


def default_dtype(dtype: torch.dtype) -> AbstractContextManager:
    return held(torch.set_default_dtype, torch.get_default_dtype(), dtype)


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": nan_in_fresh_memory,
}


@every
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_surroundings_change_nothing(name, surrounding, expected):
    if surrounding == "autocast" and name == "LinearStats":
        pytest.skip("it follows autocast, as F.linear does")
    with SURROUNDINGS[surrounding]():
        found = content(MADE[name]())
    assert found == expected[name]


@every
def test_the_default_device_is_not_asked(name, expected):
    """Tensors stay where the inputs are; statistics are made where they are told to be."""
    if name in ("ClassStatistics", "DecisionStatistics", "ClassGeometry", "CollapseReport", "accumulators"):
        pytest.skip("their state follows the default device, as that of torch's modules does")
    with held(torch.set_default_device, None, "meta"):
        found = MADE[name]()
    assert content(found) == expected[name]


def test_threads_do_not_disturb_each_other(expected):
    wrong: list[str] = []

    def work(names: list[str]) -> None:
        for name in names * 3:
            if content(MADE[name]()) != expected[name]:
                wrong.append(name)

    names = list(MADE)
    threads = [threading.Thread(target=work, args=(names[i:] + names[:i],)) for i in range(0, len(names), 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes(expected):
    """Its parent has used the thread pool, of which a fork has the state and not the threads."""
    torch.mm(torch.randn(400, 400), torch.randn(400, 400))
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # torch's own operations, as data loaders' workers do
        os._exit(sum(content(make()) != expected[name] for name, make in MADE.items()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_our_kernels_need_no_word_in_a_fork():
    if not hasattr(os, "fork") or ncops.backends.choose("linear_stats", "cpu") != "cpu":
        pytest.skip("needs fork and the native kernels")
    x, weight = torch.randn(400, 64), torch.randn(3000, 64)
    before = ncops.linear_stats(x, weight).lse
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(not torch.equal(ncops.linear_stats(x, weight).lse, before))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


EXIT = """
import atexit, threading, torch, ncops
statistics = ncops.ClassStatistics(5, 8, scatter=True)
statistics.update(torch.randn(40, 8), torch.randint(0, 5, (40,)))
def work(times=1):
    for _ in range(times):
        ncops.linear_stats(torch.randn(50, 64), torch.randn(3000, 64))
        statistics.compute()
atexit.register(work)
threading.Thread(target=work, args=(30,)).start()
print("end")
"""


def test_the_interpreter_exits_while_kernels_run():
    """Not in daemon threads: what torch runs in those is torn down with "terminate called", ncops or not."""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout == "end\n" and not done.stderr, done.stderr
