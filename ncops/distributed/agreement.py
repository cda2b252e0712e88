"""All ranks go on, or none: what a call found on one rank is known to every rank before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from ..stats.collectives import Group

T = TypeVar("T")

CALLERS_FAULT = (ValueError, TypeError, FileNotFoundError)


class Offer(NamedTuple):
    """What a rank brings to a call: ``mine`` stays here, ``alike`` must be the same everywhere, all see ``shared``."""

    mine: Any
    alike: Mapping[str, Any]
    shared: Any = None


def together(call: str, prepare: Callable[[], Offer], group: Group) -> tuple[Any, list[Any]]:
    """Runs ``prepare``, which may change nothing, on every rank of the group; all ranks must come to the same call.

    Returns:
        ``mine`` of this rank, and ``shared`` of every rank in rank order.

    Raises:
        ValueError: on every rank, with the same words: ``prepare`` refused its arguments on some rank, ``alike``
            differs, or ranks have come to different calls. RuntimeError: likewise, for any other error of ``prepare``.
    """
    offer, error = Offer(None, {}), None
    try:
        offer = prepare()
    except Exception as caught:  # whatever it is, the other ranks wait for word of it
        error = caught
    fault = None if error is None else (isinstance(error, CALLERS_FAULT), _words(error))
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, (call, fault, dict(offer.alike), offer.shared), group=group)

    faults = [(rank, theirs, *one) for rank, (theirs, one, _, _) in enumerate(every) if one is not None]
    if faults:
        kind = ValueError if all(callers for _, _, callers, _ in faults) else RuntimeError
        raise kind("; ".join(f"{theirs}: rank {rank}: {cause}" for rank, theirs, _, cause in faults)) from error
    _check_same("call", [theirs for theirs, *_ in every], call)
    for name in offer.alike:
        _check_same(name, [alike[name] for _, _, alike, _ in every], call)
    return offer.mine, [shared for *_, shared in every]


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, CALLERS_FAULT) else f"{type(error).__name__}: {error}"


def _check_same(name: str, values: list[Any], call: str) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            where = "" if name == "call" else f"{call}: "
            raise ValueError(f"{where}{name} differs between ranks: {values[0]} on rank 0, {value} on rank {rank}")
