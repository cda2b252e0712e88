"""Accumulators of class means, class variances, the pooled covariance and decisions, batch by batch.

A batch costs one pass over its rows and touches only the classes in it: no B x C mask, no product of C x B x D. That
means and classifier stay the same between batches is checked by identity, so no batch is hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...backends.dtypes import compute_dtype
from .util import hashify

IGNORED = -1
Indices = Sequence[int] | Sequence[bool] | slice | np.ndarray | Tensor | None


class _Batch(NamedTuple):
    """Rows and labels, and the same labels numbered among the P classes of the batch."""

    x: Tensor  # (B, D)
    y: Tensor  # (B,) int64, IGNORED for rows that count nowhere
    classes: Tensor  # (P,) int64
    local: Tensor  # (B,) int64 in [0, P), or IGNORED
    counts: Tensor  # (P,) int64


class _Fixed:
    """A tensor that must be the same in every batch. Hashed only if someone asks for the hash, or assigns one."""

    def __init__(self, name: str, tensor: Tensor | None = None) -> None:
        self.name = name
        self.assign(None)
        if tensor is not None:
            self.check(tensor)

    def check(self, tensor: Tensor) -> None:
        if tensor is self._tensor and self._unchanged():
            return
        known = self.read()
        if known is not None and known != hashify(tensor):
            raise ValueError(f"{self.name}: expected the same tensor in every batch, got one of other values")
        # Tensors of torch.inference_mode count no versions: a copy tells whether one has changed.
        self._tensor, self._seen = tensor, tensor.clone() if tensor.is_inference() else tensor._version

    def _unchanged(self) -> bool:
        if isinstance(self._seen, Tensor):
            return torch.equal(self._tensor, self._seen)
        return self._tensor._version == self._seen

    def read(self) -> str | None:
        if self.hash is None and self._tensor is not None:
            self.hash = hashify(self._seen if isinstance(self._seen, Tensor) else self._tensor)
        return self.hash

    def assign(self, value: str | None) -> None:
        self.hash, self._tensor, self._seen = value, None, None


def _hash_of(name: str) -> property:
    """The hash of the fixed tensor in the attribute ``name``, to read and to assign."""
    return property(lambda self: getattr(self, name).read(), lambda self, value: getattr(self, name).assign(value))


class Accumulator:
    """Counts per class, and totals that a subclass adds to.

    Args:
        n_classes: K. d_vectors: D. device: where counts and totals live; batches are moved there.
        dtype: of the totals; float64 also computes in float64. ctype: of the counts.

    Attributes:
        ns_samples: ``(K,)`` rows per class. totals: what has been added up. Both may be assigned.
    """

    def __init__(
        self,
        n_classes: int,
        d_vectors: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        ctype: torch.dtype = torch.int32,
    ) -> None:
        self.n_classes, self.d_vectors = n_classes, d_vectors
        self.device, self.ctype = device, ctype
        self.dtype = torch.float64 if dtype is float else dtype
        self.ns_samples = self._zeros(n_classes, dtype=ctype)

    def _zeros(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Counts or totals that can be added to inside and outside of ``torch.inference_mode``."""
        with torch.inference_mode(False):
            return torch.zeros(size, dtype=dtype, device=self.device)

    def filter_indices_by_n_samples(self, minimum: int = 0, maximum: int | None = None) -> Tensor:
        """``(K',) int64``: classes with at least ``minimum`` rows, and fewer than ``maximum`` where that is given."""
        counts = self.ns_samples.reshape(-1)
        chosen = counts >= minimum
        if maximum:
            chosen &= counts < maximum
        return chosen.nonzero().reshape(-1)

    def class_idxs(self, X: Tensor, Y: Tensor) -> Tensor:  # noqa: N803
        """The ``(B, K)`` mask of class membership; counts the rows, as every ``accumulate`` does by itself."""
        batch = self._batch(X, Y)
        self._count(batch)
        return batch.y[:, None] == torch.arange(self.n_classes, device=batch.y.device)

    def compute(self, idxs: Indices = None, weighted: bool = False) -> tuple[Tensor, Tensor]:
        """Totals over counts per class (0 for a class without rows), and their mean over the chosen classes.

        Args:
            idxs: the classes to take, by anything that indexes a tensor: numbers, a mask, a slice; None takes all.
            weighted: weigh the mean by the counts.

        Raises:
            IndexError: a class that is not there, or a mask of another length.
        """
        counts, totals = self.ns_samples.reshape(-1), self.totals
        if idxs is not None:
            chosen = self._chosen(idxs)
            counts, totals = counts[chosen], totals[chosen]
        n = counts.to(self.dtype)
        average = totals / n.clamp(min=1).view(-1, *[1] * (totals.ndim - 1))
        if weighted:
            return average, (n / n.sum()) @ average.to(self.dtype)
        return average, average.mean(0)

    def _chosen(self, idxs: Indices) -> Tensor:
        """The numbers of the classes that ``idxs`` selects."""
        every = torch.arange(self.n_classes, device=self.totals.device)
        if not isinstance(idxs, slice):
            idxs = torch.as_tensor(idxs, device=every.device)
            idxs = (idxs if idxs.numel() else idxs.long()).reshape(-1)  # an empty list has no dtype of its own
        try:
            return every[idxs]
        except IndexError as error:
            expected = f"classes below {self.n_classes}, a mask of them or a slice"
            raise IndexError(f"idxs: expected {expected}: {error}") from None

    def accumulate(self, *args):
        raise NotImplementedError("accumulate: use one of the subclasses")

    def _batch(self, x: Tensor, y: Tensor) -> _Batch:
        """Checks a batch: ``x (B, D)``, or ``(D,)`` for a single row, ``y`` B integers, negative ones ignored.

        Labels of data loaders, arrays and lists among them, are taken as ``torch.as_tensor`` takes them.
        """
        y = torch.as_tensor(y)
        x = x.detach().to(self.device)
        x = x[None] if x.ndim == 1 else x
        y = y.detach().to(self.device).reshape(-1)
        if x.ndim != 2 or x.shape[1] != self.d_vectors:
            raise ValueError(f"X: expected shape (B, D) with D = {self.d_vectors}, got {tuple(x.shape)}")
        if y.shape[0] != x.shape[0] or y.is_floating_point():
            raise ValueError(f"Y: expected {x.shape[0]} integer labels, got {y.dtype} of shape {tuple(y.shape)}")
        y = y.long().clamp_(min=IGNORED)
        if y.numel() and int(y.max()) >= self.n_classes:
            raise ValueError(f"Y: expected labels below {self.n_classes}, got {int(y.max())}")
        if self.dtype == torch.float64 or not x.is_floating_point():
            x = x.to(self.dtype)
        classes, local, counts = torch.unique(y, return_inverse=True, return_counts=True)
        if classes.numel() and int(classes[0]) == IGNORED:
            classes, local, counts = classes[1:], local - 1, counts[1:]
        return _Batch(x, y, classes, local, counts)

    def _count(self, batch: _Batch) -> None:
        self.ns_samples = self.ns_samples.reshape(-1)
        self.ns_samples.index_add_(0, batch.classes, batch.counts.to(self.ns_samples.dtype))

    def _add(self, batch: _Batch, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds to the totals at ``index``, counts the rows and returns what ``accumulate`` does."""
        self.totals.index_add_(0, index, values.to(self.totals.dtype))
        self._count(batch)
        return self.ns_samples, self.totals

    def _about(self, batch: _Batch, center: Tensor) -> Tensor:
        """``(P, D)``: the rows of ``center (K, D)`` for the classes of the batch, as the ops take them."""
        return center[batch.classes].to(compute_dtype(batch.x.dtype))

    def _moments(self, batch: _Batch, center: Tensor | None = None) -> ops.ClassMoments:
        """Moments of the P classes of the batch, about their rows of ``center (K, D)``."""
        about = None if center is None else self._about(batch, center)
        return ops.class_moments(batch.x, batch.local, batch.classes.numel(), center=about, ignore_index=IGNORED)


class MeanAccumulator(Accumulator):
    """Class means: ``totals (K, D)`` are class sums, ``compute()[0]`` the means."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.totals = self._zeros(self.n_classes, self.d_vectors, dtype=self.dtype)

    def accumulate(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Adds a batch; returns ``(ns_samples, totals)``."""
        batch = self._batch(X, Y)
        return self._add(batch, batch.classes, self._moments(batch).sums)


class _AboutMeans(Accumulator):
    """What needs the class means of an earlier pass; ``hash_M`` is their sha256 and may be assigned."""

    def __init__(self, *args, M: Tensor | None = None, **kwargs) -> None:  # noqa: N803
        super().__init__(*args, **kwargs)
        self._means = _Fixed("M", M)

    hash_M = _hash_of("_means")  # noqa: N815

    def _given(self, fixed: _Fixed, tensor: Tensor | None) -> Tensor:
        """``(K, D)`` means or classifier rows, checked, detached, on this device."""
        if tensor is None or tuple(tensor.shape) != (self.n_classes, self.d_vectors):
            got = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{fixed.name}: expected shape (K, D) = {(self.n_classes, self.d_vectors)}, got {got}")
        fixed.check(tensor)
        return tensor.detach().to(self.device)


class CovarAccumulator(_AboutMeans):
    """The within-class covariance of all classes together: ``totals (D, D)``."""

    def __init__(self, *args, M: Tensor | None = None, **kwargs) -> None:  # noqa: N803
        super().__init__(*args, M=M, **kwargs)
        self.totals = self._zeros(self.d_vectors, self.d_vectors, dtype=self.dtype)

    def accumulate(self, X: Tensor, Y: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Adds the scatter of a batch about ``M (K, D)``; returns ``(ns_samples, totals)``."""
        batch = self._batch(X, Y)
        means = self._given(self._means, M)
        if batch.classes.numel():
            self.totals += ops.class_scatter(batch.x, batch.local, self._about(batch, means), ignore_index=IGNORED)
        self._count(batch)
        return self.ns_samples, self.totals

    def compute(self, idxs: Indices = None) -> Tensor:
        """``(D, D)``: the scatter over the number of rows. Of all classes: what was pooled cannot be divided again."""
        if idxs is not None:
            raise ValueError("idxs: expected None: the covariance pools all classes and cannot be taken apart")
        return self.totals / self.ns_samples.sum().clamp(min=1).to(self.dtype)


class VarNormAccumulator(_AboutMeans):
    """Class variances: ``totals (K)`` sums of squared distances to the class mean."""

    def __init__(self, *args, M: Tensor | None = None, **kwargs) -> None:  # noqa: N803
        super().__init__(*args, M=M, **kwargs)
        self.totals = self._zeros(self.n_classes, dtype=self.dtype)

    def accumulate(self, X: Tensor, Y: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Adds a batch about ``M (K, D)``; returns ``(ns_samples, totals)``."""
        batch = self._batch(X, Y)
        return self._add(batch, batch.classes, self._moments(batch, self._given(self._means, M)).sqnorms)


class DecAccumulator(_AboutMeans):
    """Rows in which classifier (without bias) and nearest class mean agree, by true class: ``totals (K)``."""

    def __init__(self, *args, M: Tensor | None = None, W: Tensor | None = None, **kwargs) -> None:  # noqa: N803
        super().__init__(*args, M=M, **kwargs)
        self._weight = _Fixed("W", W)
        self.index: Tensor | None = None
        self.totals = self._zeros(self.n_classes, dtype=self.ctype)

    hash_W = _hash_of("_weight")  # noqa: N815

    def create_index(self, M: Tensor) -> None:  # noqa: N803
        """Keeps ``M (K, D)`` so that ``accumulate`` can do without it. The search is exact."""
        self.index = self._given(self._means, M)

    def accumulate(self, X: Tensor, Y: Tensor, W: Tensor, M: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: N803
        """Adds a batch decided by ``W (K, D)`` and by the means ``M (K, D)``; returns ``(ns_samples, totals)``."""
        batch = self._batch(X, Y)
        weight = self._given(self._weight, W)
        means = self.index if M is None and self.index is not None else self._given(self._means, M)
        wide = torch.promote_types(batch.x.dtype, weight.dtype)  # a wider head is not rounded to the features
        chosen = ops.linear_stats(batch.x.to(wide), weight.to(wide)).argmax
        nearest = ops.nearest_class_mean(batch.x, means).index
        agree = (chosen == nearest) & (batch.y != IGNORED)
        return self._add(batch, batch.y.clamp(min=0), agree)
