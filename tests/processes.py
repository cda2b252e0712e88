"""Runs a function in several real processes that talk over the loopback interface."""

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


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(rank: int, size: int, port: int, function: Callable, args: tuple, results) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
        results.put((rank, function(rank, *args), None))
        dist.barrier()
    except Exception:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def on_ranks(size: int, function: Callable, *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returned on each of ``size`` ranks: plain values of an importable function."""
    context = mp.get_context("spawn")
    results, port = context.Queue(), _free_port()
    ranks = [context.Process(target=_rank, args=(r, size, port, function, args, results)) for r in range(size)]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in ranks:
            rank, value, error = results.get(timeout=SECONDS)
            assert error is None, f"rank {rank}:\n{error}"
            found[rank] = value
    finally:
        for process in ranks:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(size)]
