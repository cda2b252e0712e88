"""Class statistics whose C x D state fits no single device: every rank keeps a range of the classes."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.checks import raise_bad_label
from ..stats.batch import check_batch, leave_out
from ..stats.classes import ClassStatistics
from ..stats.collectives import Group, sum_over_ranks
from ..stats.files import read_state, save_state
from ..stats.geometry import (
    ClassGeometry,
    class_geometry,
    class_variances,
    describe_classes,
    kept_classes,
    pool_rows,
)
from ..stats.state import stateful
from ..stats.stored import check_config
from .agreement import Offer, together
from .exchange import concatenate, rows_to_owners
from .shard_files import ShardFiles

KIND = "ClassShard"
_CONFIG = {**ClassStatistics.CONFIG, "updates": int, "classes": list, "ranks": int}
RECEIVE_BYTES = 256 << 20
"""A rank receives features in pieces of at most so many bytes: frequent classes often lie together in one range, whose
owner would otherwise have to hold nearly all rows of all ranks at once."""
NO_LABEL = -1
"""Only rows that count are sent, so the local statistics have nothing to ignore."""


class ShardedClassStatistics:
    """:class:`ncops.ClassStatistics` of C classes in D dimensions, spread over the P ranks of a process group.

    Rank r keeps the classes ``[r * ceil(C / P), (r + 1) * ceil(C / P))`` as far as they exist; the last ranks may keep
    none. Every rank brings rows of any classes; each row travels once, to the owner of its class.

    Every rank of the group must call ``update``, ``compute``, ``gather``, ``save`` and ``load``, in the same order.
    Arguments that one rank must refuse raise the same error on every rank, naming that rank, and change nothing
    anywhere; so do ranks that have come to different calls.

    Args:
        num_classes, dim, scatter, nonfinite, ignore_index, normalize, diagonal: as :class:`ncops.ClassStatistics` has
            them, the same on every rank. The ``(D, D)`` scatter is kept by every rank.
        group: the process group; None is the default one.
        device: where the state lives and the rows are: a CPU with gloo, this rank's GPU with nccl.

    Memory per rank: the state of ``ceil(C / P)`` classes. An update needs this rank's rows once more, at most 256 MB of
    rows received at a time, and what :meth:`ncops.ClassStatistics.update` needs for these.

    Traffic of an update per rank: its counted rows out, the rows of its classes in, and a few hundred bytes to all.

    Attributes:
        num_classes, dim: C, over all ranks, and D.
        rank, ranks: this rank of the group, and P.
        classes: this rank's range of classes, ``(start, stop)``.
        local: the :class:`ncops.ClassStatistics` of this rank's classes, numbered from 0 (one class that never gets a
            row where the range is empty). Its skipped and ignored rows are those that this rank has brought.
        updates: how many updates there have been, the same on every rank.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: an argument out of range, or a process that is not in the group.
    """

    @stateful
    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scatter: bool = False,
        group: Group = None,
        device: torch.device | str | None = None,
        nonfinite: str = "propagate",
        ignore_index: int = -100,
        normalize: bool = False,
        diagonal: bool = False,
    ):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "ShardedClassStatistics: torch.distributed is not initialised: call init_process_group first"
            )
        self._group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: this process is not one of its ranks")
        # All the classes, without their memory.
        self._whole = ClassStatistics(num_classes, dim, scatter, "meta", nonfinite, ignore_index, normalize, diagonal)
        self.num_classes, self.dim = self._whole.num_classes, self._whole.dim
        self._width = -(-self.num_classes // self.ranks)  # classes of a full range
        start, stop = (min(r * self._width, self.num_classes) for r in (self.rank, self.rank + 1))
        self.classes = start, stop
        self.local = ClassStatistics(
            max(1, stop - start), dim, scatter, device, ignore_index=NO_LABEL, normalize=normalize, diagonal=diagonal
        )
        self.updates, self._halfway = 0, False

    @property
    def device(self) -> torch.device:
        return self.local.device

    @property
    def input_dtype(self) -> torch.dtype | None:
        return self.local.input_dtype

    def __repr__(self) -> str:
        start, stop = self.classes
        return (
            f"ShardedClassStatistics(num_classes={self.num_classes}, dim={self.dim}, "
            f"scatter={self.local.scatter is not None}, rank={self.rank} of {self.ranks}, classes=[{start}, {stop}), "
            f"device={str(self.device)!r})"
        )

    def _together(self, call: str, prepare: Callable[[], Offer]) -> tuple[Any, list[Any]]:
        """:func:`together`, for statistics that must be the same on all ranks and in step."""

        def checked() -> Offer:
            if self._halfway:
                raise RuntimeError("an update has failed halfway: reset() the statistics, or load them, on every rank")
            offer = prepare()
            settings = {**self._config(), "updates": self.updates}
            return offer._replace(alike={**settings, **offer.alike})

        return together(call, checked, self._group)

    def _config(self) -> dict[str, Any]:
        return {**self._whole.config(), "input_dtype": self.local.config()["input_dtype"]}

    # -- one pass -----------------------------------------------------------------------------------------------------

    @stateful
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Adds a batch; collective. Ranks may bring different numbers of rows, also none (``x`` of shape ``(0, D)``).

        The result does not depend on timing: rows of lower ranks enter first.

        Args:
            x: ``(..., D)`` features of this rank; float32, float64, bfloat16 or float16, the same dtype in every update
                and on every rank.
            labels: ``(...)`` integer classes in ``[0, C)``; ``ignore_index`` rows count nowhere and are not sent.

        Raises:
            ValueError: on every rank, and nothing has changed: shape, dtype or device mismatch, a label outside
                ``[0, C)`` (on every device), a row that is not finite under ``nonfinite="raise"``.
            RuntimeError: memory ran out on some rank before rows were sent; likewise. Later than that the error is that
                rank's alone, others may wait for its rows until the group's timeout, and the next call is refused on
                every rank, because the statistics are no longer in step.
        """
        (flat, y, order, left_out), counts = self._together("update", lambda: self._sort_by_owner(x, labels))
        self._halfway = True
        limit = max(1, RECEIVE_BYTES // (self.dim * flat.element_size()))
        for rows, classes in rows_to_owners((flat, y), order, torch.tensor(counts), limit, self._group):
            self.local.update(rows, classes - self.classes[0])
        self.local.skipped += left_out[0]
        self.local.ignored += left_out[1]
        self.updates += 1
        self._halfway = False

    def _sort_by_owner(self, x: Tensor, labels: Tensor) -> Offer:
        whole = self._whole
        flat, y = check_batch(
            x, labels, num_classes=whole.num_classes, dim=whole.dim, ignore_index=whole.ignore_index,
            device=self.device, input_dtype=self.input_dtype,
        )  # fmt: skip
        if (((y < 0) | (y >= whole.num_classes)) & (y != whole.ignore_index)).any():  # sizes cross to the host anyway
            raise_bad_label(y, whole.num_classes, whole.ignore_index, "labels")
        y, *left_out = leave_out(flat, y, nonfinite=whole.nonfinite, ignore_index=whole.ignore_index)
        counted = (y != whole.ignore_index).nonzero()[:, 0]
        owner = y[counted] // self._width
        order = counted[owner.argsort(stable=True)]
        sizes = torch.bincount(owner, minlength=self.ranks).tolist()
        return Offer((flat, y, order, left_out), {"dtype of x": flat.dtype}, sizes)

    def reset(self) -> None:
        """Forgets everything seen, the dtype of the features included. Every rank must do it; nothing is sent."""
        self.local.reset()
        self.updates, self._halfway = 0, False

    # -- results ------------------------------------------------------------------------------------------------------

    @stateful
    def compute(
        self, min_count: int = 1, dst: int | None = None, device: torch.device | str = "cpu"
    ) -> ClassGeometry | None:
        """The geometry of the classes with at least ``min_count`` rows, as one process would have it; collective.

        Args:
            min_count: the same on every rank.
            dst: the rank of the group that gets it; None is every rank.
            device: where the result goes, ``K * D`` float64 (and ``D * D`` with scatter).

        Returns:
            The geometry, or None on a rank other than ``dst``.

        Only kept classes travel, in blocks of 8 MB: ``K * D`` float64 in all to each rank that gets the result.

        Raises:
            ValueError: ``min_count < 1``, ``dst`` no rank of the group, or not the same on every rank; on every rank.
        """

        def prepare() -> Offer:
            self._check_dst(dst)
            kept, pooled = kept_classes(self.local, min_count), pool_rows(self.local)
            numbers = {name: value for name, value in vars(pooled).items() if isinstance(value, int)}
            return Offer((kept, pooled), {"min_count": min_count, "dst": dst}, (kept.numel(), numbers))

        (kept, pooled), every = self._together("compute", prepare)
        sums = [t for t in (pooled.trace, pooled.total, pooled.within) if t is not None]
        sum_over_ranks(sums, self._group, dst)

        local = self.local

        def part(rows: slice) -> tuple[Tensor, ...]:
            classes = kept[rows]
            variances = () if local.squares is None else (class_variances(local, classes),)
            return classes + self.classes[0], local.counts[classes], *describe_classes(local, classes), *variances

        like = [t[:0] for t in (kept, local.counts, local.sqnorms, local.sums, local.squares) if t is not None]
        columns = concatenate(
            [size for size, _ in every], like, part, group=self._group, dst=dst, device=device,
        )  # fmt: skip
        if columns is None:
            return None
        summed = {name: sum(numbers[name] for _, numbers in every) for name in every[0][1]}
        tensors = {name: t.to(device) for name, t in vars(pooled).items() if isinstance(t, Tensor)}
        return class_geometry(
            *columns[:4], replace(pooled, **summed, **tensors), num_classes=self.num_classes, min_count=min_count,
            input_dtype=self.input_dtype, variances=None if local.squares is None else columns[4],
        )  # fmt: skip

    def _check_dst(self, dst: int | None) -> None:
        if dst is not None and (isinstance(dst, bool) or not isinstance(dst, int) or not 0 <= dst < self.ranks):
            raise ValueError(f"dst: expected None or a rank in [0, {self.ranks}), got {dst!r}")

    @stateful
    def gather(self, dst: int | None = None) -> ClassStatistics | None:
        """The whole state as one :class:`ncops.ClassStatistics` on the CPU, to merge or to go on elsewhere; collective.

        Args:
            dst: the rank of the group that gets its ``C * D`` numbers; None is every rank.

        Returns:
            The statistics, or None on a rank other than ``dst``. These here go on unchanged.

        Raises:
            ValueError: ``dst`` is no rank of the group, or not the same on every rank; on every rank.
        """
        start, stop = self.classes
        local = self.local

        def prepare() -> Offer:
            self._check_dst(dst)
            return Offer(None, {"dst": dst}, stop - start)

        _, sizes = self._together("gather", prepare)
        by_class = ("counts", "center", "sums", "sqnorms", "squares")
        names = [name for name in by_class if getattr(local, name) is not None]
        state = [getattr(local, name) for name in names]
        columns = concatenate(
            sizes, [t[:0] for t in state], lambda rows: [t[rows] for t in state],
            group=self._group, dst=dst, device="cpu",
        )  # fmt: skip
        added = {name: t.clone() for name, t in local.tensors().items() if name not in names}
        sum_over_ranks(added.values(), self._group, dst)
        if columns is None:
            return None
        tensors = dict(zip(names, columns, strict=True)) | {name: t.cpu() for name, t in added.items()}
        return ClassStatistics.from_state(self._config(), tensors)

    # -- storing ------------------------------------------------------------------------------------------------------

    @stateful
    def save(self, folder: str | os.PathLike) -> None:
        """Writes every rank's part to a file of its own in ``folder``, which is made if need be; collective.

        Ranks may share the folder or have one each. A job killed at any moment leaves the files of this save, or those
        of the one before, whole: the old ones are removed once every rank has written, hence there must be room for
        both.

        Raises:
            ValueError: on every rank: some rank's folder holds shards of another number of ranks.
            RuntimeError: on every rank: some rank could not write. What was saved before is still there.
        """

        def prepare() -> Offer:
            os.makedirs(folder, exist_ok=True)
            files = ShardFiles(folder, self.rank, self.ranks)
            return Offer(files, {}, files.saves)

        files, saves = self._together("save", prepare)
        number = 1 + max(set.union(*saves), default=0)
        whole = set.intersection(*saves)
        if whole:
            files.keep_only(max(whole))  # what saves that were cut short have left needs no room any more

        def write() -> Offer:
            config = {**self._config(), "updates": self.updates, "classes": self.classes, "ranks": self.ranks}
            save_state(files.path(number), KIND, config, self.local.tensors())
            files.saves.add(number)
            return Offer(None, {})

        self._together("save", write)
        files.keep_only(number)

    @classmethod
    @stateful
    def load(
        cls, folder: str | os.PathLike, *, group: Group = None, device: torch.device | str = "cpu"
    ) -> ShardedClassStatistics:
        """What :meth:`save` has written, by a group of as many ranks; collective.

        Args:
            folder: where the files are.
            group: the process group; None is the default one. device: where the state goes.

        Raises:
            ValueError: on every rank: a folder that is missing, or holds shards of another number of ranks or of other
                classes; a file that is missing, damaged, or from another save than those of the other ranks.
            RuntimeError: torch.distributed is not initialised.
        """
        here = cls(1, 1, group=group)

        def find() -> Offer:
            files = ShardFiles(folder, here.rank, here.ranks)
            if not files.saves:
                raise ValueError(f"folder: {files.folder} holds no shard of rank {here.rank}")
            return Offer(files, {}, files.saves)

        files, saves = together("load", find, group)

        def read() -> Offer:
            common = set.intersection(*saves)
            if not common:
                raise ValueError(f"folder: {files.folder}: the ranks' shards are of different saves")
            loaded = cls._read(files.path(max(common)), group, device)
            return Offer(loaded, {**loaded._config(), "updates": loaded.updates})

        return together("load", read, group)[0]

    @classmethod
    def _read(cls, path: Path, group: Group, device: torch.device | str) -> ShardedClassStatistics:
        kind, config, tensors = read_state(path, device)
        if kind != KIND:
            raise ValueError(f"path: {path} holds {kind!r}, expected {KIND}")
        try:
            config = check_config(config, _CONFIG, later=ClassStatistics.LATER)
            updates, kept, ranks, dtype = (config.pop(n) for n in ("updates", "classes", "ranks", "input_dtype"))
            self = cls(**config, group=group, device="meta")
            if ranks != self.ranks or tuple(kept) != self.classes:
                raise ValueError(
                    f"it holds the classes {reprlib.repr(kept)} of {ranks} ranks, rank {self.rank} of {self.ranks} "
                    f"keeps {list(self.classes)}"
                )
            self.local = ClassStatistics.from_state({**self.local.config(), "input_dtype": dtype}, tensors)
            self.local.check_values()
        except ValueError as error:
            raise ValueError(f"path: {path} does not fit: {error}") from error
        self.updates = updates
        return self
