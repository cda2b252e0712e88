"""One pass over training data: counts, means, variances and the within-class covariance of every class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..names import Nonfinite
from ..ops import accumulate_class_moments_
from ..ops.checks import FLOATING, check_integer
from ..ops.unit_rows import row_parts, squared_deviations, unit_rows
from .anchored import Reach, Room, Undo, drifted, move, shifted, shifted_squares
from .batch import NONFINITE, check_batch, leave_out
from .blocks import blocks
from .collectives import reduce_class_state, sum_over_ranks
from .geometry import ClassGeometry, class_geometry, class_variances, describe_classes, kept_classes, pool_rows
from .scatter import batch_scatter
from .signals import uninterrupted
from .state import StreamingState, stateful
from .stored import check_class_moments, check_config, check_counts, check_scatter, check_squares, check_tensors

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


class ClassStatistics(StreamingState):
    """Streaming statistics of C classes in D dimensions, exact also when classes are tight and far from the origin.

    The state keeps an anchor inside every class and moments of the deviations from it, so that a class variance of
    1e-6 at a distance of 100 from the origin keeps its digits with float32 features.

    Args:
        num_classes: C.
        dim: D.
        scatter: also keep the ``(D, D)`` scatter that ``within_cov``, ``nc1_pinv`` and ``vci`` need.
        device: where the state lives; features and labels must be there too.
        nonfinite: what a row with a NaN or an infinity does: ``"propagate"`` spoils its class (and the scatter),
            ``"skip"`` leaves the row out and counts it in the coverage, ``"raise"`` is a ValueError that changes
            nothing (it has to look at the values, hence synchronises CUDA).
        ignore_index: label of rows that count nowhere.
        normalize: statistics of ``x / |x|`` instead of ``x``; a row of zeros stays zero. Rows are divided in blocks of
            8 MB.
        diagonal: also keep the second moments of each class by dimension, ``(C, D)``, that
            :attr:`ClassGeometry.variances` needs: diagonal Gaussians, naive Bayes.

    Memory: ``C * D`` float64 sums and, from the first update on, ``C * D`` anchors in float32 (float64 for float64
    features), ``D * D`` float64 with scatter, ``C * D`` with diagonal. An update needs, for the P classes in it, the
    state of these P classes once more (to undo a failure; kept for the next update; with diagonal three times) and
    blocks of 8 MB. A batch whose scatter float32 would spoil is added up in float64.

    Attributes:
        counts: ``(C,) int64``. center: ``(C, D)`` anchors, None before the first update. sums: ``(C, D) float64``, sum
            of ``x - center[label]``. sqnorms: ``(C,) float64``, sum of its squared norms. scatter: ``(D, D) float64``,
            sum of its outer products, or None. squares: ``(C, D) float64``, sum of its squares, or None. invalid,
            skipped, ignored: ``() int64`` counts of rows.
        input_dtype: dtype of the features, None before the first update.
    """

    CONFIG = {
        "num_classes": int, "dim": int, "scatter": bool, "normalize": bool, "diagonal": bool, "nonfinite": str,
        "ignore_index": int, "input_dtype": (str, type(None)),
    }  # fmt: skip
    """Names and types of :meth:`config`."""
    LATER = {"normalize": False, "diagonal": False}
    """What the configurations of files that know no such option stand for."""
    _TENSORS = ("counts", "center", "sums", "sqnorms", "scatter", "squares", "invalid", "skipped", "ignored")

    @stateful
    def __init__(
        self,
        num_classes: int,
        dim: int,
        scatter: bool = False,
        device: torch.device | str | None = None,
        nonfinite: Nonfinite = "propagate",
        ignore_index: int = -100,
        normalize: bool = False,
        diagonal: bool = False,
    ):
        num_classes, dim = check_integer(num_classes, "num_classes", 1), check_integer(dim, "dim", 1)
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite: expected one of {', '.join(NONFINITE)}, got {nonfinite!r}")
        if 8 * dim * max(num_classes, dim) >= 2**63:
            raise ValueError(f"num_classes, dim: expected sums of fewer than 2^63 bytes, got {num_classes} and {dim}")
        self.num_classes, self.dim, self.normalize = num_classes, dim, bool(normalize)
        self.nonfinite, self.ignore_index = nonfinite, check_integer(ignore_index, "ignore_index")
        self.input_dtype: torch.dtype | None = None
        self.center: Tensor | None = None
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.sums = torch.zeros((num_classes, dim), dtype=torch.float64, device=device)
        self.sqnorms = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.scatter = torch.zeros((dim, dim), dtype=torch.float64, device=device) if scatter else None
        self.squares = torch.zeros_like(self.sums) if diagonal else None
        self.room, self.reach = Room(), Reach()
        self.invalid, self.skipped, self.ignored = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))

    @property
    def device(self) -> torch.device:
        return self.counts.device

    def __repr__(self) -> str:
        return (
            f"ClassStatistics(num_classes={self.num_classes}, dim={self.dim}, scatter={self.scatter is not None}, "
            f"samples={int(self.counts.sum())}, device={str(self.device)!r})"
        )

    # -- one pass -----------------------------------------------------------------------------------------------------

    @stateful
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Adds a batch. Whatever it raises, the state is then as it was before the call.

        Args:
            x: ``(..., D)`` features; float32, float64, bfloat16 or float16, the same dtype in every update.
            labels: ``(...)`` integer classes; ``ignore_index`` rows count nowhere.

        Raises:
            ValueError: shape, dtype or device mismatch; a label outside ``[0, C)`` on the CPU (elsewhere such rows are
                skipped and :meth:`compute` raises); a row that is not finite under ``nonfinite="raise"``.
        """
        self._check_not_reduced("update")
        flat, y = check_batch(
            x, labels, num_classes=self.num_classes, dim=self.dim, ignore_index=self.ignore_index, device=self.device,
            input_dtype=self.input_dtype,
        )  # fmt: skip
        y, skipped, ignored = leave_out(flat, y, nonfinite=self.nonfinite, ignore_index=self.ignore_index)
        center = self.center
        if center is None:
            center = torch.zeros(self.sums.shape, dtype=compute_dtype(flat.dtype), device=self.device)
        counts = (y >= 0) & (y < self.num_classes) & (y != self.ignore_index)
        present = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=self.device)
        present = present.scatter_(0, y.where(counts, self.num_classes), True)[:-1].nonzero()[:, 0]
        state = (self.counts, center, self.sums, self.sqnorms)
        growth = moved = None
        with Undo(self, present, *state, self.squares) as undo:
            self._accumulate(state, flat, y)
            doubtful = self.reach.doubtful(undo.old, self.counts, self.sqnorms, undo.before)
            far = drifted(doubtful, *state, self.reach)
            if far is not None:
                # The batch has shown that some anchors lie outside their classes, hence its own float32 sums about them
                # are worth little. From the state before it, move those anchors, and add the batch once more.
                undo.restore()
                undo.remember(far[0])
                moved = None if self.scatter is None else torch.zeros_like(self.scatter)
                move(*far, *state, moved, self.squares)
                self._accumulate(state, flat, y)
            if self.scatter is not None and present.numel():
                # With the anchors that the moments have used, those of new classes included.
                before = self.scatter if moved is None else self.scatter + moved
                growth = self._scatter_of(flat, y, center, before)
                growth = growth if moved is None else growth + moved
            if self.squares is not None and present.numel():
                self._add_squares(flat, y, center, present)
            self.center, self.input_dtype = center, flat.dtype
            self.skipped += skipped
            self.ignored += ignored
            if growth is not None:
                self.scatter += growth  # the last step, which nothing has to undo

    def _parts(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows that are counted: ``x`` as it is, or its unit rows block by block."""
        return row_parts(x) if self.normalize else iter([(slice(None), x)])

    def _accumulate(self, state: tuple[Tensor, ...], x: Tensor, y: Tensor) -> None:
        for rows, part in self._parts(x):
            accumulate_class_moments_(*state, self.invalid, part, y[rows], ignore_index=self.ignore_index)

    def _scatter_of(self, x: Tensor, y: Tensor, center: Tensor, before: Tensor) -> Tensor:
        growth = None
        for rows, part in self._parts(x):
            known = before if growth is None else before + growth
            more = batch_scatter(part, y[rows], center, known, ignore_index=self.ignore_index)
            growth = more if growth is None else growth.double() + more
        return growth

    def _add_squares(self, x: Tensor, y: Tensor, center: Tensor, present: Tensor) -> None:
        """Adds the squares of ``x - center[y]`` by class, of which those ``present`` occur."""
        total = self.sums.new_zeros((present.numel(), self.dim))
        origin = torch.zeros_like(total, dtype=center.dtype)
        rest = self.counts.new_ones(present.numel()), self.sqnorms.new_zeros(present.numel()), self.counts.new_zeros(())
        counted = ((y >= 0) & (y < self.num_classes) & (y != self.ignore_index)).nonzero()[:, 0]
        for part in blocks(counted.numel(), self.dim):
            rows = counted[part]
            block = unit_rows(x[rows]) if self.normalize else x[rows]
            squares = squared_deviations(block, y[rows], center)
            counts, sqnorms, invalid = rest
            accumulate_class_moments_(
                counts, origin, total, sqnorms, invalid, squares, torch.searchsorted(present, y[rows])
            )
        for rows in blocks(present.numel(), self.dim):
            self.squares[present[rows]] += total[rows]

    def reset(self) -> None:
        """Forgets everything seen, the dtype of the features included."""
        self.reach.forget()
        with uninterrupted():
            self.center = None
            for tensor in self.tensors().values():
                tensor.zero_()
            self.input_dtype, self._reduced = None, False

    # -- merging ------------------------------------------------------------------------------------------------------

    @stateful
    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Adds what ``other`` has seen, as if self had seen it too; ``other`` is not changed. Returns self.

        Raises:
            TypeError: ``other`` is not a ClassStatistics.
            ValueError: it differs in ``num_classes``, ``dim``, ``scatter``, ``normalize``, ``diagonal`` or
                ``input_dtype``; nothing has changed then.
        """
        if not isinstance(other, ClassStatistics):
            raise TypeError(f"other: expected ClassStatistics, got {type(other).__name__}")
        for name, theirs in other._alike().items():
            mine = self._alike()[name]
            if mine != theirs and None not in (mine, theirs):
                raise ValueError(f"other: {name}: expected {mine}, got {theirs}")
        change = None if self.scatter is None else other.scatter.to(self.device, copy=True)
        self.reach.forget()
        with uninterrupted():
            if other.center is not None:
                if self.center is None:
                    self.center = torch.zeros_like(other.center, device=self.device)
                for rows in blocks(self.num_classes, self.dim):
                    self._merge_rows(other, rows, change)
            if change is not None:
                self.scatter += change
            self.input_dtype = self.input_dtype or other.input_dtype
            for name in ("invalid", "skipped", "ignored"):
                getattr(self, name).add_(getattr(other, name).to(self.device))
        return self

    def _merge_rows(self, other: ClassStatistics, rows: slice, change: Tensor | None) -> None:
        state = (self.counts, self.center, self.sums, self.sqnorms)
        theirs = tuple(t[rows].to(self.device) for t in (other.counts, other.center, other.sums, other.sqnorms))
        both = ((self.counts[rows] > 0) & (theirs[0] > 0)).nonzero()[:, 0]
        take = ((self.counts[rows] == 0) & (theirs[0] > 0)).nonzero()[:, 0]
        if both.numel():
            n, a, s, q = (t[both] for t in theirs)
            classes = both + rows.start
            delta = a.double() - self.center[classes].double()
            if self.squares is not None:
                t = other.squares[rows].to(self.device)[both]
                self.squares[classes] += shifted_squares(n.double(), s, t, delta)
            s, q = shifted(n.double(), s, q, delta, change)
            for mine, more in zip((self.counts, self.sums, self.sqnorms), (n, s, q), strict=True):
                mine[classes] += more
            far = drifted(classes, *state)
            if far is not None:
                move(*far, *state, change, self.squares)
        if self.squares is not None:
            self.squares[take + rows.start] = other.squares[rows].to(self.device)[take]
        for mine, their in zip(state, theirs, strict=True):
            mine[take + rows.start] = their[take]

    def _alike(self) -> dict[str, Any]:
        return {**self._identity(), "input_dtype": self.input_dtype}

    def _reduce(self, group, agreed: dict[str, Any]) -> None:
        self.reach.forget()
        self.input_dtype = agreed["input_dtype"]
        sum_over_ranks([self.invalid, self.skipped, self.ignored], group)
        if self.input_dtype is None:  # no rank has seen a row
            return
        if self.center is None:
            self.center = torch.zeros(self.sums.shape, dtype=compute_dtype(self.input_dtype), device=self.device)
        reduce_class_state(self.counts, self.center, self.sums, self.sqnorms, self.scatter, self.squares, group)

    def _identity(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "dim": self.dim,
            "scatter": self.scatter is not None,
            "normalize": self.normalize,
            "diagonal": self.squares is not None,
        }

    # -- storing ------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        dtype = None if self.input_dtype is None else str(self.input_dtype).removeprefix("torch.")
        return {
            **self._identity(),
            "nonfinite": self.nonfinite,
            "ignore_index": self.ignore_index,
            "input_dtype": dtype,
        }

    @classmethod
    def from_state(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> ClassStatistics:
        """The statistics that :meth:`state_dict` described; takes the tensors over without a copy.

        Raises:
            ValueError: names, types, shapes or dtypes that are not those of such statistics.
        """
        settings = check_config(config, cls.CONFIG, later=cls.LATER)
        dtype = settings.pop("input_dtype")
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"config: input_dtype: expected one of {', '.join(_DTYPES)} or None, got {dtype!r}")
        stats = cls(**settings, device="meta")
        if dtype is not None:
            stats.input_dtype = _DTYPES[dtype]
            stats.center = torch.zeros(stats.sums.shape, dtype=compute_dtype(stats.input_dtype), device="meta")
        check_tensors(tensors, stats.tensors())
        for name, tensor in tensors.items():
            setattr(stats, name, tensor.contiguous())
        return stats

    def check_values(self) -> None:
        check_counts({name: getattr(self, name) for name in ("counts", "invalid", "skipped", "ignored")})
        check_class_moments(self.counts, self.center, self.sums, self.sqnorms)
        if self.scatter is not None:
            check_scatter(self.scatter, self.sqnorms)
        if self.squares is not None:
            check_squares(self.squares, self.counts, self.sqnorms)

    def _check_fits(self, loaded: ClassStatistics) -> None:
        for name, value in self._identity().items():
            if loaded._identity()[name] != value:
                raise ValueError(f"state: {name}: expected {value}, got {loaded._identity()[name]}")

    # -- results ------------------------------------------------------------------------------------------------------

    @stateful
    def compute(self, min_count: int = 1) -> ClassGeometry:
        """The geometry of the classes with at least ``min_count`` rows. The state can be updated further afterwards.

        Temporaries are blocks of 8 MB and, with scatter, two ``(D, D)``; the result holds ``K * D`` float64.

        Raises:
            ValueError: ``min_count`` is no integer or below 1, or rows with labels outside ``[0, C)`` were met on a
                device that cannot raise while it runs.
        """
        kept, pooled = kept_classes(self, min_count), pool_rows(self)
        means = self.sums.new_empty((kept.numel(), self.dim))
        class_var = self.sqnorms.new_empty(kept.numel())
        variances = None if self.squares is None else torch.empty_like(means)
        for rows in blocks(kept.numel(), self.dim):
            class_var[rows], means[rows] = describe_classes(self, kept[rows])
            if variances is not None:
                variances[rows] = class_variances(self, kept[rows])
        return class_geometry(
            kept, self.counts[kept], class_var, means, pooled, num_classes=self.num_classes, min_count=int(min_count),
            input_dtype=self.input_dtype, variances=variances,
        )  # fmt: skip
