"""Peak memory of a contestant in a process of its own, beyond inputs and results."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing

import torch
from torch import Tensor

from .. import memory
from .case import COMPILE, Case

SMALL = 64  # sizes of the call that loads code before the measured one


def measure(case: Case, name: str) -> float | None:
    """Megabytes (10^6 bytes) that contestant ``name`` needs at its peak beyond inputs and results; None if unknown.

    The process is fresh: a copy of one that has imported torch and ncops and done nothing yet. None where the system
    does not tell (only Linux does) or the contestant fails, for example for want of memory.
    """
    methods = multiprocessing.get_all_start_methods()
    forkserver = "forkserver" in methods and case.device == "cpu"
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload([__name__])
    bench, threads = case.bench, torch.get_num_threads()
    key = (bench.op, bench.mode, dict(case.sizes), case.dtype, case.data, threads, case.device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, key, name))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
        receiver.close()


def _child(sender, key: tuple, name: str) -> None:
    from .plan import bench

    op, mode, sizes, dtype, data, threads, device = key
    torch.set_num_threads(threads)
    chosen = bench(op, mode)
    case = Case(chosen, "memory", sizes, dtype, data, device=device)
    sender.send(_growth(case, chosen.contestants[name], warm=case if name == COMPILE else _small(case)))
    sender.close()


def _small(case: Case) -> Case:
    return case.at_most(dict.fromkeys(case.sizes, SMALL))


def _growth(case: Case, run, warm: Case) -> float | None:
    run(*warm.inputs())
    inputs = case.inputs()
    gc.collect()
    if case.device != "cpu":
        return _growth_on_gpu(run, inputs)
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed: the call would grow into that
        ctypes.CDLL(None).malloc_trim(0)
    before = memory.resident()
    if before is None or not memory.reset_peak():
        return None
    results = run(*inputs)
    return _beyond(memory.peak() - before, results)


def _growth_on_gpu(run, inputs: tuple) -> float:
    """By torch's allocator."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = run(*inputs)
    torch.cuda.synchronize()
    return _beyond(torch.cuda.max_memory_allocated() - before, results)


def _beyond(grown: int, results) -> float:
    kept = {t.data_ptr(): t.nbytes for t in (results if isinstance(results, tuple) else (results,)) if _is_tensor(t)}
    return max(0.0, (grown - sum(kept.values())) / 1e6)


def _is_tensor(value) -> bool:
    return isinstance(value, Tensor)
