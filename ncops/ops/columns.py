"""What linear_stats and logit_stats share: the result and its derived columns, and the planes that ops pass."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from ..backends.planes import FLOATS, INDICES
from ..names import Loss, Reduction
from .checks import check_beside, check_number, shape

LOSSES, REDUCTIONS = get_args(Loss), get_args(Reduction)
SHOWN = 10
"""Rows that a notebook shows."""
PLANES = "(Tensor floats, Tensor indices)"


class LinearStats(NamedTuple):
    """Statistics of each row's V logits ``z``, with ``p = softmax(z)``. Natural logarithms throughout.

    Shapes are those of the rows. Floats are float32 (float64 for float64 inputs). Without a target, ``target_logit``,
    ``target_rank``, ``nll``, ``valid`` and ``target`` are None. A row with a NaN or +inf logit has NaN floats and
    indices -1. On rows with ``ignore_index``: ``target_logit = nll = margin = 0``, ``target_rank = -1``.

    Attributes:
        lse: log-sum-exp.
        gap: ``lse - max``, summed without the largest term, so that it keeps its digits when it is tiny.
        max, argmax: the largest logit and the lowest index that has it (int64).
        second, second_index: the largest of the others; ``-inf`` and -1 when V = 1.
        target_logit: the logit of the target.
        target_rank: how many logits are strictly greater than the target's (int64; 0 is top-1).
        nll: ``lse - target_logit`` as ``(max - target_logit) + gap``.
        entropy: ``-sum p log p``.
        sum_squared_prob: ``sum p^2``: ``-log`` of it is the Renyi-2 entropy; the Brier score of a target t is
            ``1 - 2 p_t + sum p^2``.
        mean, var: over the V logits; the variance divides by V. With a masked class (-inf) -inf and NaN.
        valid: bool, the target is not ``ignore_index``.
        target: the targets, int64. num_classes: V.

    Under ``torch.compile`` torch 2.10 cannot compute with the properties below; with columns and ``loss`` it can.
    """

    lse: Tensor
    gap: Tensor
    max: Tensor
    argmax: Tensor
    second: Tensor
    second_index: Tensor
    target_logit: Tensor | None
    target_rank: Tensor | None
    nll: Tensor | None
    entropy: Tensor
    mean: Tensor
    var: Tensor
    valid: Tensor | None
    target: Tensor | None
    num_classes: int
    sum_squared_prob: Tensor

    def __repr__(self) -> str:
        columns = ", ".join(self.to_dict())
        dtype = str(self.lse.dtype).removeprefix("torch.")
        return (
            f"LinearStats(rows={tuple(self.lse.shape)}, num_classes={self.num_classes}, {dtype} on {self.lse.device}: "
            f"{columns})"
        )

    def to_dict(self) -> dict[str, Tensor]:
        """The columns that there are: name -> tensor with a number per row."""
        return {name: column for name, column in zip(self._fields, self, strict=True) if isinstance(column, Tensor)}

    def to_frame(self):
        """A ``pandas.DataFrame`` with a row per row and a column per column, detached and on the CPU.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        return tables.frame({name: c.detach().cpu().flatten().tolist() for name, c in self.to_dict().items()})

    def _repr_html_(self) -> str:
        """The first rows, for a notebook."""
        columns = {name: c.detach().flatten()[:SHOWN].tolist() for name, c in self.to_dict().items()}
        rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in zip(*columns.values(), strict=True)]
        more = self.lse.numel() - SHOWN
        return tables.html_table(list(columns), rows, notes=[f"and {more:,} more rows"] if more > 0 else [])

    @property
    def margin(self) -> Tensor:
        """``target_logit`` minus the largest logit of the other classes; +inf when V = 1; 0 on ignored rows."""
        need_target(self, "margin")
        return self._margin()

    def _margin(self) -> Tensor:
        rival = torch.where(self.target == self.argmax, self.second, self.max)
        return torch.where(self.valid, self.target_logit - rival, 0.0)

    @property
    def logprob(self) -> Tensor:
        """Log-probability of the target, ``-nll``; 0 on ignored rows."""
        need_target(self, "logprob")
        return -self.nll

    @property
    def max_prob(self) -> Tensor:
        """The largest probability, ``exp(-gap)``."""
        return torch.exp(-self.gap)

    @property
    def correct(self) -> Tensor:
        """bool: the target is the argmax; False on ignored and on NaN rows."""
        need_target(self, "correct")
        return self.valid & (self.target == self.argmax) & (self.argmax >= 0)

    @property
    def sum(self) -> Tensor:
        """Sum of the V logits."""
        return self.mean * self.num_classes

    @property
    def sumsq(self) -> Tensor:
        """Sum of the V squared logits; +inf, without a gradient, where a class is masked by -inf (var is NaN there)."""
        masked = self.mean == -torch.inf
        mean, var = self.mean.masked_fill(masked, 0.0), self.var.masked_fill(masked, 0.0)
        return (self.num_classes * (var + mean.square())).masked_fill(masked, torch.inf)

    def loss(
        self, kind: Loss, reduction: Reduction = "mean", *, label_smoothing: float = 0.0, weight: Tensor | None = None
    ) -> Tensor:
        """A training loss from the columns; differentiable.

        Args:
            kind: ``"nll"`` (also ``"cross_entropy"``), ``"z_loss"`` (``lse^2``), ``"entropy"``, or ``"margin"``
                (``-margin``: smaller is better separated). ``nll`` and ``margin`` need a target.
            reduction: ``"mean"`` over valid rows (NaN if there is none, as ``F.cross_entropy``), ``"sum"``, or
                ``"none"``: one value per row, 0 on ignored rows. Without a target every row is valid.
            label_smoothing: of ``nll``, as in ``F.cross_entropy``: share of the target that is spread evenly over all
                V classes, in [0, 1]; ``lse - mean`` is their mean ``nll``, +inf where a class is masked.
            weight: of ``nll``, as in ``F.cross_entropy``: ``(V,)`` factors by the row's target, which ``"mean"``
                divides by; rows of weight 0 count nowhere. Not with label smoothing, whose weighted mean of logits no
                column has: :func:`ncops.linear_loss` forms it.

        Raises:
            ValueError: another kind or reduction, or a kind that needs a target where there was none; label smoothing
                or a weight of another kind, or both; a weight that requires a gradient.
        """
        if kind not in LOSSES:
            raise ValueError(f"kind: expected one of {', '.join(LOSSES)}, got {kind!r}")
        check_reduction(reduction)
        label_smoothing = check_smoothing(label_smoothing)
        if kind in ("nll", "cross_entropy"):
            return self._cross_entropy(kind, reduction, label_smoothing, weight)
        if label_smoothing:
            raise ValueError(f"label_smoothing: expected 0 for loss({kind!r}), got {label_smoothing}")
        if weight is not None:
            raise ValueError(f"weight: expected None for loss({kind!r}), got a tensor of shape {shape(weight)}")
        if kind == "margin":
            need_target(self, f"loss({kind!r})")
            values = -self._margin()  # torch 2.10 traces methods, not properties
        elif kind == "z_loss":
            # Masked before the square: the gradient of an ignored NaN row would be 0 * NaN.
            values = (self.lse if self.valid is None else self.lse.where(self.valid, 0.0)).square()
        else:
            values = self.entropy if self.valid is None else self.entropy.where(self.valid, 0.0)
        return _reduced(values, reduction, values.numel() if self.valid is None else self.valid)

    def _cross_entropy(self, kind: str, reduction: str, label_smoothing: float, weight: Tensor | None) -> Tensor:
        need_target(self, f"loss({kind!r})")
        if weight is None:
            values = self.nll.where(self.valid, 0.0)
            if label_smoothing == 1:
                values = torch.zeros_like(values)  # not 0 * inf, where the target is masked
            if label_smoothing:
                even = (self.lse - self.mean).where(self.valid, 0.0)
                values = (1 - label_smoothing) * values + label_smoothing * even
            return _reduced(values, reduction, self.valid)
        check_class_weight(weight, "weight", self.num_classes, self.lse, "the columns")
        if label_smoothing:
            raise ValueError(
                f"weight: expected None with label_smoothing={label_smoothing}, for no column has the weighted mean of "
                "the logits: ncops.linear_loss(..., class_weight=weight, label_smoothing=...) forms it"
            )
        of_row = weight.to(self.nll.dtype)[self.target.clamp(0, self.num_classes - 1)].where(self.valid, 0.0)
        return _reduced(of_row * self.nll.where(of_row != 0, 0.0), reduction, of_row)


def need_target(stats: LinearStats, name: str) -> None:
    if stats.target is None:
        raise ValueError(f"{name}: expected statistics computed with a target, got target=None")


def check_reduction(reduction: Any) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_smoothing(label_smoothing: Any) -> float:
    found = check_number(label_smoothing, "label_smoothing", "it has none, give float(label_smoothing)")
    if not 0 <= found <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {found}")
    return found


def check_class_weight(weight: Any, name: str, classes: int | None, like: Tensor, like_name: str) -> None:
    check_beside(weight, name, (classes,), "(V,)", like, like_name)
    if weight.requires_grad:
        raise ValueError(f"{name}: expected a tensor that requires no gradient, got one that does")


def _reduced(values: Tensor, reduction: str, counts: Tensor | int) -> Tensor:
    """``counts``: what the mean divides by, or what adds up to it."""
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (counts.sum() if isinstance(counts, Tensor) else counts)


def columns_of(
    planes: tuple[Tensor, Tensor], shape: tuple[int, ...], target: Tensor | None, num_classes: int, ignore_index: int
) -> LinearStats:
    """The op's planes as a LinearStats whose columns have the rows' own shape."""
    if len(shape) != 1:
        planes = tuple(plane.reshape(plane.shape[0], *shape) for plane in planes)
        target = None if target is None else target.reshape(shape)
    columns = dict(zip((*FLOATS, *INDICES), (*planes[0].unbind(), *planes[1].unbind()), strict=True))
    if target is None:
        columns |= dict.fromkeys(("target_logit", "nll", "target_rank"))
    valid = None if target is None else target != ignore_index
    return LinearStats(**columns, valid=valid, target=target, num_classes=num_classes)


def fake_planes(x: Tensor, *_) -> tuple[Tensor, Tensor]:
    """The fake kernel of an op whose first argument has a row for each number of a plane."""
    rows = x.shape[0]
    floats = x.new_empty((len(FLOATS), rows), dtype=compute_dtype(x.dtype))
    return floats, x.new_empty((len(INDICES), rows), dtype=torch.int64)
