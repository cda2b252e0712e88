"""What the ops on a head share whose rows, the classes, lie on several ranks: who has which, and how a call begins.

Every rank holds the same rows ``x`` and its own classes, as in tensor-parallel training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.checks import check_shape, is_dtensor, shape
from ..stats.collectives import Group, fingerprint, gather, reduce_in_place
from .agreement import Offer, together


@dataclass(frozen=True)
class Shard:
    """Where this rank's classes are among those of all ranks; None for what is not known yet."""

    group: Group
    start: int | None
    num_classes: int | None

    def check(self) -> None:
        if self.start is not None and self.num_classes is None:
            raise ValueError(f"num_classes: expected together with vocab_start={self.start}, got None")
        if self.start is not None and (self.start < 0 or self.num_classes < 1):
            raise ValueError(
                f"vocab_start, num_classes: expected a start of 0 or more and at least one class, "
                f"got {self.start} and {self.num_classes}"
            )

    def known(self, sizes: list[int]) -> Shard:
        """With start and number, from the rows of weight on all ranks where they were not given."""
        if self.start is not None:
            return self
        total = sum(sizes)
        classes = total if self.num_classes is None else self.num_classes
        if not 1 <= classes <= total:
            raise ValueError(f"num_classes: expected 1 to {total}, the rows of all ranks, got {classes}")
        return Shard(self.group, sum(sizes[: dist.get_rank(self.group)]), classes)

    def own(self, *tensors: Tensor | None) -> list[Tensor | None]:
        """Of tensors with a row for each row of weight those of classes: the rows beyond are padding."""
        classes = max(0, self.num_classes - self.start)
        return [None if t is None else t[:classes] for t in tensors]


def placed(
    weight: Tensor, beside: Mapping[str, Tensor | None], group: Group, start: int | None, num_classes: int | None,
    call: str,
) -> tuple[list[Tensor | None], Shard]:  # fmt: skip
    """``weight`` and what lies ``beside`` it, by name, as local tensors, and what is known of the shard."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{call}: torch.distributed is not initialised (init_process_group, or torchrun)")
    if not is_dtensor(weight):
        for name, t in beside.items():
            if is_dtensor(t):
                raise ValueError(f"{name}: expected a plain tensor beside a plain weight, got a DTensor")
        return [weight, *beside.values()], Shard(group, start, num_classes)
    if group is not None or start is not None:
        raise ValueError("group, vocab_start: expected None beside a DTensor weight, which knows them")
    mesh, places = weight.device_mesh, weight.placements
    sharded = [i for i, place in enumerate(places) if place.is_shard()]
    if len(sharded) != 1 or not places[sharded[0]].is_shard(0) or any(place.is_partial() for place in places):
        hint = ""
        if all(place.is_replicate() for place in places):
            hint = f": every rank has all of it, ncops.{call}(x, weight.to_local(), ...) needs no other"
        raise ValueError(f"weight: expected a DTensor sharded by rows along one mesh dimension, got {places}{hint}")
    axis = sharded[0]
    rows, ranks, rank = weight.shape[0], mesh.size(axis), mesh.get_local_rank(axis)
    for name, t in beside.items():
        if t is None:
            continue
        if not is_dtensor(t) or t.placements != places or t.device_mesh != mesh:
            got = f"placements {t.placements}" if is_dtensor(t) else "a plain tensor"
            raise ValueError(f"{name}: expected a DTensor placed like weight, {places}, got {got}")
        check_shape(t, name, (rows, *t.shape[1:]), "(V,)" if t.ndim < 2 else "(V, E)")
    each = -(-rows // ranks)  # as torch.chunk cuts
    start = min(rank * each, rows)
    local = weight.to_local()
    own = min(each, rows - start)
    if local.shape[0] != own:
        raise ValueError(f"weight: expected rows cut as torch.chunk does, {own} on this rank, got {shape(local)}")
    classes = rows if num_classes is None else num_classes
    if not 1 <= classes <= rows:
        raise ValueError(f"num_classes: expected 1 to {rows}, the rows of weight, got {classes}")
    others = [None if t is None else t.to_local() for t in beside.values()]
    return [local, *others], Shard(mesh.get_group(axis), start, classes)


def begin(call: str, prepare: Callable[[], Offer], shard: Shard, x: Any) -> tuple[Any, Shard]:
    """What ``prepare`` has for this rank, and the shard, known: on all ranks or, where one may ask them, on none.

    ``prepare`` checks the arguments and shares the number of local rows of weight. Nobody asks in a graph, nor on a
    GPU, which would wait, unless sizes have to be exchanged all the same.
    """
    looks = shard.start is None or not isinstance(x, Tensor) or x.device.type == "cpu"
    if looks and not torch.compiler.is_compiling():
        mine, sizes = together(call, prepare, shard.group)
        return mine, shard.known(sizes)
    mine, _, rows = prepare()
    return mine, shard if shard.start is not None else shard.known(_sizes(rows, x.device, shard.group))


def _sizes(rows: int, device: torch.device, group: Group) -> list[int]:
    """``rows`` of every rank."""
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    gather(sizes, torch.tensor([rows], device=device), group)
    return sizes.tolist()


def one_graph(shard: Shard) -> bool:
    """Whether the call is part of a graph, in which nothing looks at values; ``shard`` as it was given."""
    return torch.compiler.is_compiling() and shard.start is not None


def told(value: Any) -> Any:
    """What ranks compare of an option that may be a tensor: its values where they can be looked at."""
    if not isinstance(value, Tensor):
        return value
    if torch.compiler.is_compiling() or value.device.type != "cpu":
        return f"a tensor of shape {shape(value)}"
    return value.item() if value.ndim == 0 else f"values {fingerprint(value.detach().double())}"


def replicated(t: Tensor, name: str) -> Tensor:
    """A plain tensor; a DTensor must be whole on every rank."""
    if not is_dtensor(t):
        return t
    if not all(place.is_replicate() for place in t.placements):
        raise ValueError(
            f"{name}: expected the same rows on every rank, got a DTensor placed {t.placements}: {name}.full_tensor() "
            "has them"
        )
    return t.to_local()


def gather_ranks(mine: Tensor, group: Group) -> Tensor:
    """``(P, *mine.shape)``: the tensor of each of the P ranks."""
    ranks = dist.get_world_size(group)
    every = mine.new_empty((ranks * mine.shape[0], *mine.shape[1:]))
    gather(every, mine, group)
    return every.view(ranks, *mine.shape)


def refuse_other_rows(differ: Tensor, names: str, call: str) -> None:
    """Raises where ``differ (N,)`` says of rows that ranks have others."""
    if differ.any():
        raise ValueError(
            f"{names}: expected the same on every rank, got {int(differ.sum())} of {differ.shape[0]} rows that "
            f"differ, first row {int(differ.nonzero()[0])}: ranks that have batches of their own (FSDP, fully_shard) "
            f"need the whole head, weight.full_tensor(), in ncops.{call}"
        )


def sum_gradient(gradient: Tensor, group: Group) -> None:
    """Replaces the gradient by rows that all ranks have by its sum over these."""
    with torch.no_grad():
        reduce_in_place(gradient, group)
