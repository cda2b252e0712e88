"""All ranks go on, or none: what a call found on one rank is known to every rank before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from ..stats.collectives import Group, gather_objects, same_value

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
    offer, error, fault = Offer(None, {}), None, None
    try:
        offer = prepare()
    except CALLERS_FAULT as caught:
        error, fault = caught, (True, str(caught))
    except Exception as caught:  # whatever it is, the other ranks wait for word of it
        error, fault = caught, (False, f"{type(caught).__name__}: {caught}")
    every = gather_objects((call, fault, dict(offer.alike), offer.shared), group)

    faults = [(rank, theirs, *one) for rank, (theirs, one, _, _) in enumerate(every) if one is not None]
    if faults:
        kind = ValueError if all(callers for _, _, callers, _ in faults) else RuntimeError
        raise kind("; ".join(f"{theirs}: rank {rank}: {cause}" for rank, theirs, _, cause in faults)) from error
    same_value("call", {rank: theirs for rank, (theirs, *_) in enumerate(every)})
    for name in offer.alike:
        same_value(f"{call}: {name}", {rank: alike[name] for rank, (_, _, alike, _) in enumerate(every)})
    return offer.mine, [shared for *_, shared in every]
