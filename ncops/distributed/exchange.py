"""Rows on their way between ranks: each to the owner of its class, or all of them to who asks for the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..stats.blocks import blocks
from ..stats.collectives import Group, exchanging


def rounds(counts: Tensor, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts the rows that each owner receives, in the order of the senders, into pieces of at most ``limit`` rows.

    Args:
        counts: ``(P, P) int64``, how many rows sender s has for owner o.

    Yields:
        ``(start, stop)``, ``(P, P)`` each: of sender s's rows for owner o, those from start to stop travel in this
        round. At least one round, so that ranks without rows take part too.
    """
    first = counts.cumsum(0) - counts  # the place of the sender's first row among all that the owner receives
    for begin in range(0, max(1, int(counts.sum(0).max())), limit):
        start, stop = ((place - first).clamp_min(0).minimum(counts) for place in (begin, begin + limit))
        yield start, stop


def rows_to_owners(
    tensors: Sequence[Tensor], order: Tensor, counts: Tensor, limit: int, group: Group
) -> Iterator[list[Tensor]]:
    """Sends rows of ``tensors``, all of the same length, to their owners; collective.

    Args:
        order: ``(M,) int64``, the rows to send, those of owner 0 first.
        counts: ``(P, P) int64``, of every sender (this rank's own is its row of ``order``) and owner; the same on all
            ranks.
        limit: the most rows a rank receives at once, the same on all ranks.

    Yields:
        What this rank has received, round by round: the rows of rank 0 in their order, then those of rank 1, ...
    """
    rank = dist.get_rank(group)
    begin = (counts[rank].cumsum(0) - counts[rank]).tolist()
    for start, stop in rounds(counts, limit):
        cuts = zip(begin, start[rank].tolist(), stop[rank].tolist(), strict=True)
        rows = torch.cat([order[b + low : b + high] for b, low, high in cuts])
        send, receive = (stop - start)[rank].tolist(), (stop - start)[:, rank].tolist()
        yield [_all_to_all(tensor[rows], send, receive, group) for tensor in tensors]


def _all_to_all(rows: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    received = rows.new_empty((sum(receive), *rows.shape[1:]))
    with exchanging():
        dist.all_to_all_single(received, rows, receive, send, group=group)
    return received


def concatenate(
    sizes: Sequence[int],
    like: Sequence[Tensor],
    part: Callable[[slice], Sequence[Tensor]],
    *,
    group: Group,
    dst: int | None,
    device: torch.device | str,
) -> list[Tensor] | None:
    """Columns whose rows lie spread over the ranks, whole, in rank order; collective.

    Args:
        sizes: rows of each rank.
        like: for each column an empty tensor with its dtype, trailing shape and the device that the group talks over.
        part: these rows of this rank's columns. Called with blocks of 8 MB, one after the other.
        dst: the rank of the group that gets them; None is every rank.
        device: where the result goes.

    Returns:
        The columns, or None on a rank other than ``dst``.
    """
    rank = dist.get_rank(group)
    gets = dst is None or rank == dst
    whole = [t.new_empty((sum(sizes), *t.shape[1:]), device=device) for t in like] if gets else None
    begin = 0
    for source, size in enumerate(sizes):
        for rows in blocks(size, max(t.shape[1:].numel() for t in like)):
            if not (gets or rank == source):
                continue
            if rank == source:
                block = [t.contiguous() for t in part(rows)]
            else:
                block = [t.new_empty((rows.stop - rows.start, *t.shape[1:])) for t in like]
            for tensor in block:
                _transfer(tensor, source, dst, group)
            if gets:
                for column, tensor in zip(whole, block, strict=True):
                    column[begin + rows.start : begin + rows.stop] = tensor
        begin += size
    return whole


def _transfer(tensor: Tensor, source: int, dst: int | None, group: Group) -> None:
    """Brings the ``tensor`` of rank ``source`` into that of rank ``dst``, or of every rank."""
    with exchanging():
        if dst is None:
            dist.broadcast(tensor, group=group, group_src=source)
        elif source != dst and dist.get_rank(group) == source:
            dist.send(tensor, group=group, group_dst=dst)
        elif source != dst:
            dist.recv(tensor, group=group, group_src=source)
