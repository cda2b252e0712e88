"""Processes that stay for a whole file of tests, forks of one that has imported torch, which takes seconds."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 120
# The server imports what most ranks need, runs none of it and has one thread.
PROCESSES = mp.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ncops.distributed", "ncops.losses", "torch.distributed.run", "pytest"])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(rank: int, size: int, port: int, jobs, results) -> None:
    """Runs one job after the other until it gets None."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
    )
    for function, args in iter(jobs.get, None):
        try:
            results.put((rank, function(rank, *args), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class RankPool:
    """``pool(size, function, *args)``: what ``function(rank, *args)`` returned on each of ``size`` ranks.

    Values are plain, functions importable; the ranks talk over the loopback interface.
    """

    def __init__(self) -> None:
        self.groups: dict[int, tuple[list, list, Any]] = {}

    def __call__(self, size: int, function: Callable, *args: Any) -> list[Any]:
        if size not in self.groups:
            self._start(size)
        _, jobs, results = self.groups[size]
        for job in jobs:
            job.put((function, args))
        found: dict[int, Any] = {}
        try:
            for _ in range(size):
                rank, value, error = results.get(timeout=SECONDS)
                assert error is None, f"rank {rank}:\n{error}"
                found[rank] = value
        except BaseException:
            self._stop(size, now=True)  # the ranks are no longer in step: the next call starts others
            raise
        return [found[rank] for rank in range(size)]

    def _start(self, size: int) -> None:
        jobs, results, port = [PROCESSES.Queue() for _ in range(size)], PROCESSES.Queue(), free_port()
        ranks = [PROCESSES.Process(target=_serve, args=(r, size, port, jobs[r], results)) for r in range(size)]
        for process in ranks:
            process.start()
        self.groups[size] = ranks, jobs, results

    def _stop(self, size: int, now: bool = False) -> None:
        ranks, jobs, _ = self.groups.pop(size)
        for job in jobs:
            job.put(None)
        for process in ranks:
            process.join(timeout=0 if now else 10)
            if process.is_alive():
                process.kill()
                process.join()

    def stop(self) -> None:
        for size in list(self.groups):
            self._stop(size)
