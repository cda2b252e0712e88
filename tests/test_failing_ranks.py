"""A rank that raises or dies in the middle: the others end in bounded time, with one line, their state as it was."""

from __future__ import annotations

import os
import time
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from rank_pool import PROCESSES, free_port
from test_distributed import C, D, data

import ncops
import ncops.distributed
from ncops.stats import collectives

pytestmark = pytest.mark.slow

SECONDS = 5
LINE = "another rank has raised, died or not answered within the timeout: "


def last_rank_fails(how: str, after: int) -> None:
    """From the ``after``-th exchange of this process on, it raises, ends or sleeps instead."""
    left = [after]
    inner = dist.all_reduce

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            return inner(*args, **kwargs)
        if how == "dies":
            os._exit(3)
        raise MemoryError("planted")

    dist.all_reduce = failing


def all_reduce(rank: int, how: str, after: int, kind: str) -> None:
    x, y = data(0)
    stats = ncops.ClassStatistics(C, D, scatter=True)
    stats.update(x, y)
    if kind == "decisions":
        stats = ncops.DecisionStatistics(stats.compute(), torch.randn(C, D, generator=torch.Generator().manual_seed(0)))
        stats.update(x, y)
    before = {name: tensor.clone() for name, tensor in stats.tensors().items()}
    if rank == 1:
        last_rank_fails(how, after)
    with pytest.raises((RuntimeError, MemoryError)) as error:
        stats.all_reduce(inplace=True)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("planted" if rank == 1 else LINE)
    for name, tensor in stats.tensors().items():
        assert torch.equal(tensor, before[name]), name
    stats.update(x, y)  # not taken for reduced


def linear_stats(rank: int, how: str, after: int) -> None:
    x, weight, target = torch.ones(4, D), torch.ones(3, D), torch.zeros(4, dtype=torch.long)
    ncops.distributed.linear_stats(x, weight, None, target)
    if rank == 1:
        last_rank_fails(how, after)
    with pytest.raises((RuntimeError, MemoryError)) as error:
        ncops.distributed.linear_stats(x, weight, None, target)
    assert str(error.value).startswith("planted" if rank == 1 else LINE) and "\n" not in str(error.value)


def serve(rank: int, port: int, results, function, args) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    start = time.monotonic()
    try:
        function(rank, *args)
        results.put((rank, time.monotonic() - start, ""))
    except BaseException:
        results.put((rank, 0, traceback.format_exc()))
    if rank == 1:
        time.sleep(2 * SECONDS)  # it has raised and lives on: only the timeout tells the other
    os._exit(0)


@pytest.mark.parametrize("how", ("raises", "dies"))
@pytest.mark.parametrize(
    ("function", "after", "args"),
    [
        (all_reduce, 0, ("classes",)), (all_reduce, 5, ("classes",)), (all_reduce, 4, ("decisions",)),
        (linear_stats, 0, ()),
    ],  # fmt: skip
    ids=["classes-first", "classes-middle", "decisions", "linear_stats"],
)
def test_the_other_ranks_end(function, after, args, how):
    results, port = PROCESSES.SimpleQueue(), free_port()
    ranks = [PROCESSES.Process(target=serve, args=(r, port, results, function, (how, after, *args))) for r in range(2)]
    for process in ranks:
        process.start()
    try:
        ranks[0].join(60)
        assert ranks[0].exitcode == 0
        ended = {}
        while not results.empty():
            rank, seconds, problem = results.get()
            assert not problem, f"rank {rank}: {problem}"
            ended[rank] = seconds
        assert ended[0] < SECONDS + 3
    finally:
        for process in ranks:
            process.kill()
            process.join()


def test_every_exchange_goes_through_one_place():
    """What talks to other ranks says in one line what a failure means: nobody calls torch.distributed beside it."""
    from pathlib import Path

    root = Path(collectives.__file__).parent.parent
    for path in (*root.glob("stats/*.py"), *root.glob("distributed/*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if any(f"dist.{call}" in line for call in ("all_", "broadcast", "send(", "recv(", "reduce(")):
                assert any("exchanging()" in before for before in lines[max(0, number - 6) : number]), (path, line)
