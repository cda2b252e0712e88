"""Arithmetic of anchored class states: moving anchors without losing a digit, and undoing an update that failed.

A state holds, per class c with anchor a_c and deviations r = x - a_c, the count n, the sum s of r, the sum q of
|r|^2, and over all classes S, the sum of r r^T. With delta = a - b, the same rows seen from anchor b have
s' = s + n delta, q' = q + 2 delta.s + n |delta|^2 and
S' = S + sum_c (s delta^T + delta s^T + n delta delta^T).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends import native
from .blocks import blocks
from .signals import uninterrupted

DRIFT = 16.0
"""A class is re-anchored to its mean when |s / n|^2 exceeds this many times its variance."""


def shifted(
    n: Tensor, s: Tensor, q: Tensor, delta: Tensor, scatter: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(s', q')`` of P classes seen from anchors moved by ``-delta``; the change of S is added to ``scatter``.

    Args:
        n: ``(P,) float64``. s, delta: ``(P, D) float64``. q: ``(P,) float64``.
        scatter: ``(D, D) float64`` to add to in place, or None.
    """
    moved = n[:, None] * delta
    if scatter is not None:
        cross = s.T @ delta
        scatter += cross
        scatter += cross.T
        scatter += moved.T @ delta
    new_q = q + 2 * (delta * s).sum(1) + n * delta.square().sum(1)
    new_s = s + moved
    # What is left cannot be below |s'|^2 / n, whatever rounding says.
    return new_s, torch.maximum(new_q, new_s.square().sum(1) / n)


def shifted_squares(n: Tensor, s: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    """The sums of squares by dimension ``t (P, D)`` of P classes, seen from there too; ``s`` as before the move."""
    n = n[:, None]
    return torch.maximum(t + 2 * delta * s + n * delta.square(), (s + n * delta).square() / n)


class Reach:
    """How long the sum s of each class can be by now, so that few classes have to be looked at for drift.

    Rows that add m to n and g to q add at most sqrt(m g) to |s|: a class whose anchor is inside it is looked at about
    once while n grows thirtyfold. Whatever else changes a state forgets what was known.
    """

    _SLACK = 1.001  # float32 sums of a batch

    def __init__(self) -> None:
        self._longest: Tensor | None = None

    def __reduce__(self) -> tuple[type[Reach], tuple[()]]:
        return Reach, ()

    def forget(self) -> None:
        self._longest = None

    def doubtful(self, classes: Tensor, counts: Tensor, sqnorms: Tensor, old: tuple[Tensor, Tensor]) -> Tensor:
        """Those of the ``classes`` that may have drifted by rows added to counts and sqnorms since ``old``."""
        if self._longest is None:
            self._longest = torch.full_like(sqnorms, math.inf)
        n, q = counts[classes].double(), sqnorms[classes]
        longest = self._longest[classes] + self._SLACK * ((n - old[0]) * (q - old[1]).clamp_min(0)).sqrt()
        self._longest[classes] = longest
        return classes[~((1 + DRIFT) * longest.square() < DRIFT * n * q / self._SLACK)]

    def seen(self, classes: Tensor, lengths: Tensor) -> None:
        self._longest[classes] = lengths


def drifted(
    present: Tensor, counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor, reach: Reach | None = None
) -> tuple[Tensor, Tensor] | None:
    """Those of the classes ``present`` whose mean lies far from their anchor for their spread, and better anchors.

    An anchor outside its class makes every deviation as long as that distance, and float32 sums of squares of such
    deviations carry no digit of the spread. ``reach`` learns how long the sums are.
    """
    found = []
    for rows in blocks(present.numel(), sums.shape[1]):
        classes = present[rows]
        n = counts[classes].double()
        block = sums.index_select(0, classes)
        lengths = torch.linalg.vector_norm(block, dim=1)
        if reach is not None:
            reach.seen(classes, lengths)
        squared = (lengths / n).square()
        far = squared > DRIFT * (sqnorms[classes] / n - squared).clamp_min(0)
        if not far.any():
            continue
        classes, old = classes[far], center[classes[far]]
        new = (old.double() + block[far] / n[far, None]).to(center.dtype)
        moved = new.ne(old).any(1) & torch.isfinite(new).all(1)  # a residue of rounding stays where it is
        if moved.any():
            found.append((classes[moved], new[moved]))
    return (torch.cat([c for c, _ in found]), torch.cat([a for _, a in found])) if found else None


def move(
    classes: Tensor, anchors: Tensor, counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor,
    change: Tensor | None, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """Gives the classes these anchors, in place; what S grows by is added to ``change (D, D)``, unless that is None.

    ``squares (C, D)``, sums of squares by dimension, move with them where there are any.
    """
    for rows in blocks(classes.numel(), sums.shape[1]):
        block, new = classes[rows], anchors[rows]
        delta = center[block].double() - new.double()
        n = counts[block].double()
        if squares is not None:
            squares[block] = shifted_squares(n, sums[block], squares[block], delta)
        state = shifted(n, sums[block], sqnorms[block], delta, change)
        for tensor, value in zip((center, sums, sqnorms), (new, *state), strict=True):
            tensor[block] = value


class Room:
    """Memory for the rows that an update keeps, used again by the next: on a CPU fresh pages take 3 times the copy."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()  # a copy has its own

    def rows(self, name: str, source: Tensor, rows: Tensor) -> Tensor:
        """``source[rows]``, until the next call with this name."""
        if source.device.type != "cpu":
            return source.index_select(0, rows)
        shape = rows.numel(), *source.shape[1:]
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != source.dtype:
            flat = self._flat[name] = source.new_empty(min(source.numel(), size * 5 // 4))
            if (advise := native.op("prefer_huge_pages")) is not None:
                advise(flat)  # first touched in 0.25 s instead of 0.42 (392 MB)
        return torch.index_select(source, 0, rows, out=flat[:size].view(shape))


class Undo:
    """Context manager that makes ``statistics`` what they were, bit for bit, if its body raises; only S is not its own.

    Of the classes, the rows of those ``present`` are kept, in the statistics' room. Anchors of classes seen before are
    not copied: whoever moves one says so by :meth:`remember` first.
    """

    def __init__(
        self, statistics: Any, present: Tensor, counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor,
        squares: Tensor | None = None,
    ):  # fmt: skip
        seen = counts[present] > 0
        self.old, self.new = present[seen], present[~seen]  # rows of a class not seen before are all zero
        self.center, self.per_class = center, (counts, sums, sqnorms) + (() if squares is None else (squares,))
        self.saved = [statistics.room.rows(str(i), tensor, self.old) for i, tensor in enumerate(self.per_class)]
        self.statistics, self.attributes = statistics, (statistics.center, statistics.input_dtype)
        numbers = (statistics.invalid, statistics.skipped, statistics.ignored)
        self.numbers = [(number, number.clone()) for number in numbers]
        self.anchors: tuple[Tensor, Tensor] | None = None

    def remember(self, classes: Tensor) -> None:
        self.anchors = classes, self.center.index_select(0, classes)

    @property
    def before(self) -> tuple[Tensor, Tensor]:
        """Counts and squared norms of the classes seen before."""
        return self.saved[0], self.saved[2]

    def restore(self) -> None:
        self.statistics.reach.forget()
        for tensor, rows in zip(self.per_class, self.saved, strict=True):
            tensor[self.new] = 0
            tensor[self.old] = rows
        self.center[self.new] = 0
        if self.anchors is not None:
            self.center[self.anchors[0]] = self.anchors[1]
        for number, saved in self.numbers:
            number.copy_(saved)
        self.statistics.center, self.statistics.input_dtype = self.attributes

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            with uninterrupted():
                self.restore()
