"""Peak memory of a contestant in a process of its own, beyond inputs and results."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
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
    receiver, sender = context.Pipe(duplex=False)
    bare = dataclasses.replace(case, bench=None)  # its functions do not travel
    of = (case.bench.op, case.bench.mode)
    process = context.Process(target=_child, args=(sender, bare, of, name, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
        receiver.close()


def _child(sender, bare: Case, of: tuple[str, str], name: str, threads: int) -> None:
    from .plan import bench

    torch.set_num_threads(threads)
    case = dataclasses.replace(bare, bench=bench(*of))
    warm = case if name == COMPILE else case.at_most(dict.fromkeys(case.sizes, SMALL))
    sender.send(_growth(case, case.bench.contestants[name], warm))
    sender.close()


def _growth(case: Case, run, warm: Case) -> float | None:
    run(*warm.inputs())
    inputs = case.inputs()
    gc.collect()
    if case.device == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed: the call would grow into that
            ctypes.CDLL(None).malloc_trim(0)
        before = memory.resident()
        if before is None or not memory.reset_peak():
            return None
        results = run(*inputs)
        peak = memory.peak()
    else:
        torch.cuda.synchronize(case.device)
        torch.cuda.reset_peak_memory_stats(case.device)
        before = torch.cuda.memory_allocated(case.device)
        results = run(*inputs)
        torch.cuda.synchronize(case.device)
        peak = torch.cuda.max_memory_allocated(case.device)
    results = results if isinstance(results, tuple) else (results,)
    kept = {t.data_ptr(): t.nbytes for t in results if isinstance(t, Tensor)}
    return max(0.0, (peak - before - sum(kept.values())) / 1e6)
