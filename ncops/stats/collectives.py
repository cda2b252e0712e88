"""Statistics of many processes made one: the sums over ranks, each process left with the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .anchored import drifted, move
from .blocks import blocks

Group = dist.ProcessGroup | None if dist.is_available() else Any


@contextmanager
def exchanging() -> Iterator[None]:
    """An exchange that fails says in one line what that means; when, is up to the group's timeout."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise RuntimeError(f"another rank has raised, died or not answered within the timeout: {why}") from error


def gather_objects(mine: Any, group: Group) -> list[Any]:
    """``mine`` of every rank, in rank order."""
    every: list[Any] = [None] * dist.get_world_size(group)
    with exchanging():
        dist.all_gather_object(every, mine, group=group)
    return every


def check_alike(what: dict[str, Any], group: Group) -> dict[str, Any]:
    """The values that all ranks have; None fits everything. Other values raise the same ValueError on every rank."""
    every = gather_objects(what, group)
    return {
        name: same_value(f"all_reduce: {name}", {r: one[name] for r, one in enumerate(every) if one[name] is not None})
        for name in what
    }


def same_value(what: str, by_rank: dict[int, Any]) -> Any:
    """The value that all these ranks have, None of no rank. ValueError where they differ."""
    first, expected = next(iter(by_rank.items()), (0, None))
    for rank, value in by_rank.items():
        if value != expected:
            raise ValueError(f"{what} differs between ranks: {expected} on rank {first}, {value} on rank {rank}")
    return expected


def fingerprint(tensor: Tensor) -> str:
    """A short name for a tensor's bits, to compare between ranks without sending it."""
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def gather(every: Tensor, mine: Tensor, group: Group) -> None:
    """Fills ``every (P * n, ...)`` with ``mine (n, ...)`` of each of the P ranks, in their order."""
    # The second name is that of torch before 2.13, and warns since.
    with exchanging():
        (getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor)(every, mine, group=group)


def reduce_in_place(tensor: Tensor, group: Group, op: Any = None) -> None:
    """Replaces the tensor by its sum over the ranks, or what another ``dist.ReduceOp`` makes of theirs."""
    with exchanging():
        dist.all_reduce(tensor, dist.ReduceOp.SUM if op is None else op, group=group)


def sum_over_ranks(tensors: Iterable[Tensor], group: Group, dst: int | None = None) -> None:
    """Replaces each tensor by its sum over the ranks, on every rank or on rank ``dst``; elsewhere it is then spoilt."""
    for tensor in tensors:
        if dst is None:
            reduce_in_place(tensor, group)
        else:
            with exchanging():
                dist.reduce(tensor, group=group, group_dst=dst)


def reduce_class_state(
    counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor, scatter: Tensor | None, squares: Tensor | None,
    group: Group,
) -> None:  # fmt: skip
    """Sums anchored class states over the ranks, in place. Ranks may have other anchors, and no rows at all.

    The anchor of a class is that of the lowest rank that has the class; every rank moves its own state there before
    anything is added, so that deviations stay as small as the spread. Traffic per rank: twice ``C x D`` (anchors and
    sums), with ``squares`` three times, and, with scatter, ``D x D``; temporaries are blocks of 8 MB.
    """
    rank = dist.get_rank(group)
    owner = torch.where(counts > 0, rank, dist.get_world_size(group))
    reduce_in_place(owner, group, dist.ReduceOp.MIN)
    change = None if scatter is None else torch.zeros_like(scatter)
    for rows in blocks(counts.shape[0], sums.shape[1]):
        anchors = torch.where((owner[rows] == rank)[:, None], center[rows], 0)
        reduce_in_place(anchors, group)  # all but one rank add zeros: exact
        foreign = ((counts[rows] > 0) & (owner[rows] != rank)).nonzero()[:, 0]
        move(foreign + rows.start, anchors[foreign], counts, center, sums, sqnorms, change, squares)
        center[rows] = anchors
        for tensor in (sums,) if squares is None else (sums, squares):
            part = tensor[rows].contiguous()
            reduce_in_place(part, group)
            tensor[rows] = part
    sum_over_ranks([counts, sqnorms], group)
    if scatter is not None:
        scatter += change
        reduce_in_place(scatter, group)
    far = drifted((counts > 0).nonzero()[:, 0], counts, center, sums, sqnorms)
    if far is not None:  # every rank holds the same bits by now, and moves the same anchors
        change = None if scatter is None else torch.zeros_like(scatter)
        move(*far, counts, center, sums, sqnorms, change, squares)
        if scatter is not None:
            scatter += change
