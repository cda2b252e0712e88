"""linear_stats of a classifier whose rows are sharded over ranks: vocabulary-parallel, as in tensor-parallel training.

Every rank holds the same rows ``x`` and its own classes. The logits of the targets are summed over the ranks first, so
that each can count its own classes above them; then one sweep over the local classes, and one exchange of thirteen
numbers per row, the share of those classes and what tells rows apart, from which every rank forms the same columns. The
gradient reuses the recomputing backward on the local classes, with the columns of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..ops.checks import check_label_values, check_shape, is_dtensor, shape
from ..ops.columns import LinearStats, columns_of
from ..ops.linear_stats import check_arguments
from ..ops.precision import allow_tf32
from ..stats.collectives import Group, gather, reduce_in_place
from .agreement import Offer, together
from .shard_columns import (
    PACKED,
    local_share,
    marks_differ,
    merge_shares,
    row_marks,
    shard_gradients,
    target_logits,
)


def linear_stats(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, target: Tensor | None = None, *,
    group: Group = None, vocab_start: int | None = None, num_classes: int | None = None,
    scale: float = 1.0, softcap: float | None = None, ignore_index: int = -100,
) -> LinearStats:  # fmt: skip
    """:func:`ncops.linear_stats` where each rank of ``group`` holds some of the classes; all ranks get all columns.

    Collective: every rank calls it, with the same ``x`` and ``target``. Traffic of the forward is 8 bytes per row and
    then 104 per row and rank, whatever D and V are.

    Args:
        x: ``(..., D)`` features, the same on every rank; float32, float64, bfloat16 or float16.
        weight: ``(V_local, D)`` rows of this rank's classes, possibly none. Or a ``DTensor`` of all ``(V, D)``, sharded
            by rows (``Shard(0)``) along one dimension of its mesh: ``group`` and ``vocab_start`` follow from it, the
            gradient is such a DTensor too.
        bias: ``(V_local,)``, or a DTensor ``Shard(0)`` along the same dimension, or None; ``-inf`` masks a class.
        target: ``(...)`` integer classes, numbered over all ranks; or None.
        group: the process group; None for all ranks.
        vocab_start: the class of ``weight[0]``. None: the ranks' shards follow each other, and their sizes are
            exchanged, which synchronises a GPU; give both this and ``num_classes`` to avoid that.
        num_classes: V, over all ranks. Rows of ``weight`` beyond it are padding: no class, gradient zero. None takes
            all rows of all ranks.
        scale, softcap, ignore_index: as for :func:`ncops.linear_stats`.

    Returns:
        :class:`ncops.ops.LinearStats` with ``num_classes = V``, indices numbered over all ranks.

    Raises:
        ValueError: shape, dtype or device mismatch; a DTensor with other placements; no class on any rank; on CPU also
            a target outside ``[0, V)``, and ranks with other rows ``x`` or ``target``, as data-parallel ones have. What
            one rank refuses is the same error on every rank, on a GPU too unless ``vocab_start`` is given; a row that
            differs between ranks there has NaN columns.
        RuntimeError: ``torch.distributed`` is not initialised; or another rank has raised, died or not answered within
            the group's timeout.

    Under ``torch.compile`` a call with ``vocab_start`` and ``num_classes``, or with a DTensor, is part of one graph, in
    which nothing looks at values: a row that differs between ranks has NaN columns, a target outside ``[0, V)`` NaN and
    rank -1. Without them the graph breaks (``fullgraph=True`` is an error): sizes that ranks exchange while it runs
    decide about what it computes.

    The gradient of ``x`` is summed over the ranks (each returns the whole), those of ``weight`` and ``bias`` stay where
    their classes are: a loss of these columns is to be counted once, not once per rank.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("linear_stats: torch.distributed is not initialised (init_process_group, or torchrun)")
    if vocab_start is not None and num_classes is None:
        raise ValueError(f"num_classes: expected together with vocab_start={vocab_start}, got None")
    weight, bias, shard = _placed(weight, bias, group, vocab_start, num_classes)

    def prepare() -> Offer:
        shard.check()
        rows, targets = _replicated(x, "x"), None if target is None else _replicated(target, "target")
        checked = check_arguments(rows, weight, bias, targets, scale, softcap, ignore_index, "V_local", 0)
        flat, y = checked[0], checked[3]
        alike = {
            "rows of x": flat.shape[0], "columns of x": flat.shape[1], "dtype of x": flat.dtype, "scale": checked[4],
            "softcap": checked[5] or None, "ignore_index": checked[6],
            "target": "None" if y is None else "given", "num_classes": num_classes,
        }  # fmt: skip
        return Offer(checked, alike, weight.shape[0])

    one_graph = torch.compiler.is_compiling() and shard.start is not None
    looks = shard.start is None or not isinstance(x, Tensor) or x.device.type == "cpu"
    if looks and not torch.compiler.is_compiling():
        (flat, weight, bias, y, *options), sizes = together("linear_stats", prepare, shard.group)
        shard = shard.known(sizes)
    else:
        flat, weight, bias, y, *options = prepare().mine
        shard = shard if shard.start is not None else shard.known(_sizes(weight.shape[0], flat.device, shard.group))
    classes = max(0, shard.num_classes - shard.start)  # rows beyond are padding
    weight, bias = weight[:classes], None if bias is None else bias[:classes]
    planes = _Parallel.apply(flat, weight, bias, y, shard, *options, allow_tf32(x))
    if y is not None and not one_graph:  # all ranks have the same by now, and raise the same
        check_label_values(y, shard.num_classes, options[-1], "target")
    return columns_of(planes, tuple(x.shape[:-1]), y, shard.num_classes, options[-1])


@dataclass(frozen=True)
class Shard:
    """Where this rank's classes are among those of all ranks; None for what is not known yet."""

    group: Group
    start: int | None
    num_classes: int | None

    def check(self) -> None:
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


def _sizes(rows: int, device: torch.device, group: Group) -> list[int]:
    """``rows`` of every rank."""
    sizes = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    gather(sizes, torch.tensor([rows], device=device), group)
    return sizes.tolist()


def _placed(
    weight: Tensor, bias: Tensor | None, group: Group, start: int | None, num_classes: int | None
) -> tuple[Tensor, Tensor | None, Shard]:
    """Local weight and bias, and what is known of the shard."""
    if not is_dtensor(weight):
        if is_dtensor(bias):
            raise ValueError("bias: expected a plain tensor beside a plain weight, got a DTensor")
        return weight, bias, Shard(group, start, num_classes)
    if group is not None or start is not None:
        raise ValueError("group, vocab_start: expected None beside a DTensor weight, which knows them")
    mesh, places = weight.device_mesh, weight.placements
    sharded = [i for i, place in enumerate(places) if place.is_shard()]
    if len(sharded) != 1 or not places[sharded[0]].is_shard(0) or any(place.is_partial() for place in places):
        hint = ""
        if all(place.is_replicate() for place in places):
            hint = ": every rank has all of it, ncops.linear_stats(x, weight.to_local(), ...) needs no other"
        raise ValueError(f"weight: expected a DTensor sharded by rows along one mesh dimension, got {places}{hint}")
    axis = sharded[0]
    if bias is not None:
        if not is_dtensor(bias) or bias.placements != places or bias.device_mesh != mesh:
            got = f"placements {bias.placements}" if is_dtensor(bias) else "a plain tensor"
            raise ValueError(f"bias: expected a DTensor placed like weight, {places}, got {got}")
        check_shape(bias, "bias", (weight.shape[0],), "(V,)")
        bias = bias.to_local()
    rows, ranks, rank = weight.shape[0], mesh.size(axis), mesh.get_local_rank(axis)
    each = -(-rows // ranks)  # as torch.chunk cuts
    start = min(rank * each, rows)
    local = weight.to_local()
    own = min(each, rows - start)
    if local.shape[0] != own:
        raise ValueError(f"weight: expected rows cut as torch.chunk does, {own} on this rank, got {shape(local)}")
    classes = rows if num_classes is None else num_classes
    if not 1 <= classes <= rows:
        raise ValueError(f"num_classes: expected 1 to {rows}, the rows of weight, got {classes}")
    return local, bias, Shard(mesh.get_group(axis), start, classes)


def _replicated(t: Tensor, name: str) -> Tensor:
    """A plain tensor; a DTensor must be whole on every rank."""
    if not is_dtensor(t):
        return t
    if not all(place.is_replicate() for place in t.placements):
        raise ValueError(
            f"{name}: expected the same rows on every rank, got a DTensor placed {t.placements}: {name}.full_tensor() "
            "has them"
        )
    return t.to_local()


def _refuse_other_rows(differ: Tensor) -> None:
    if differ.any():
        raise ValueError(
            f"x, target: expected the same on every rank, got {int(differ.sum())} of {differ.shape[0]} rows that "
            f"differ, first row {int(differ.nonzero()[0])}: ranks that have batches of their own (FSDP, fully_shard) "
            "need the whole head, weight.full_tensor(), in ncops.linear_stats"
        )


class _Parallel(torch.autograd.Function):
    """The planes of all columns, formed alike on every rank."""

    @staticmethod
    def forward(ctx, x, weight, bias, target, shard, scale, softcap, ignore_index, tf32):
        options = (scale, softcap, ignore_index, tf32)
        level = None
        if target is not None:
            level = target_logits(x, weight, bias, target, shard.start, *options)
            reduce_in_place(level, shard.group)
        share = local_share(x, weight, bias, level, shard.start, scale, softcap, tf32)
        mine = torch.cat([share, row_marks(x, target)])
        ranks = dist.get_world_size(shard.group)
        every = mine.new_empty((ranks * mine.shape[0], mine.shape[1]))
        gather(every, mine, shard.group)
        every = every.view(ranks, *mine.shape)
        differ = marks_differ(every[:, PACKED:])
        planes = merge_shares(every[:, :PACKED], level, target, ignore_index, compute_dtype(x.dtype))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            _refuse_other_rows(differ)
        else:  # to look at it would wait for the device
            planes = planes[0].masked_fill(differ, torch.nan), planes[1].masked_fill(differ, -1)
        ctx.save_for_backward(*planes, x, weight, bias, target)
        ctx.mark_non_differentiable(planes[1])
        ctx.shard, ctx.options = shard, options
        return planes

    @staticmethod
    def backward(ctx, grad, _):
        shard, needs = ctx.shard, [bool(need) for need in ctx.needs_input_grad[:3]]
        g_x, g_weight, g_bias = shard_gradients(
            grad, *ctx.saved_tensors, shard.start, shard.num_classes, *ctx.options, needs
        )
        if needs[0]:
            with torch.no_grad():
                reduce_in_place(g_x, shard.group)
        results = (g if need else None for g, need in zip((g_x, g_weight, g_bias), needs, strict=True))
        return *results, None, None, None, None, None, None
