"""The processes of one run under torchrun, or the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ..errors import CommandError


class Ranks(NamedTuple):
    """This process and how many there are; rank 0 speaks for all."""

    rank: int = 0
    size: int = 1

    @property
    def speaks(self) -> bool:
        return self.rank == 0

    def share(self, indices: range) -> range:
        """The indices of this rank: every ``size``-th, so that parts differ by one at most."""
        return indices[self.rank :: self.size]

    def agree(self, value: bool) -> bool:
        """What rank 0 says; ranks need not see the same disk."""
        if self.size > 1:
            import torch.distributed as dist

            said = [value]
            dist.broadcast_object_list(said)
            value = said[0]
        return value


@contextmanager
def join(device: str) -> Iterator[tuple[Ranks, str]]:
    """Joins the processes that torchrun started, if it did; gives them and the device of this one.

    gloo joins CPUs, nccl GPUs, one GPU per process of a machine.

    Raises:
        CommandError: fewer GPUs than processes on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Ranks(), device
        return
    import torch.distributed as dist

    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise CommandError(f"torchrun: process {local} of this machine has no GPU of its own (--device cpu)")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(dist.get_rank(), size), device
        dist.barrier()  # a rank that leaves while another still talks to it may be taken down by the C++ runtime
    finally:
        dist.destroy_process_group()
