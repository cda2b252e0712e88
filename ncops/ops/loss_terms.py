"""What a loss of a row's columns is made of: its factors, a coefficient for every term of every row, and their sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype, outside_autocast
from ..backends.planes import FLOATS, LOSS_TERMS
from .checks import check_number
from .columns import check_class_weight, check_reduction, check_smoothing


class LossFactors(NamedTuple):
    """The arguments of :func:`ncops.linear_loss` that say what the loss is, checked."""

    nll: float
    z_loss: float
    entropy: float
    label_smoothing: float
    reduction: str
    num_items: float | Tensor | None

    def check(
        self, target: Tensor | None, class_weight: Any, classes: int | None, softcap: float, like: Tensor
    ) -> None:
        """Raises ValueError for what does not go together; ``classes`` None: not known yet."""
        if target is None and self.nll != 0:
            raise ValueError(f"target: expected the class of each row for nll={self.nll}, got None")
        if class_weight is not None:
            check_class_weight(class_weight, "class_weight", classes, like, "x")
            if softcap and self.label_smoothing:
                raise ValueError(
                    f"label_smoothing: expected 0 with both class_weight and softcap, got {self.label_smoothing}: the "
                    "weighted mean of capped logits is no product"
                )


def loss_factors(
    nll: Any, z_loss: Any, entropy: Any, label_smoothing: Any, reduction: Any, num_items: Any
) -> LossFactors:
    """Raises ValueError for what is no number of its range, or no reduction."""
    instead = "multiply a loss by it"
    nll, z_loss = check_number(nll, "nll", instead), check_number(z_loss, "z_loss", instead)
    entropy = check_number(entropy, "entropy", instead)
    label_smoothing = check_smoothing(label_smoothing)
    check_reduction(reduction)
    if num_items is not None and reduction != "mean":
        raise ValueError(f"num_items: expected None with reduction={reduction!r}, got {num_items!r}")
    return LossFactors(nll, z_loss, entropy, label_smoothing, reduction, num_items)


class LossTable(NamedTuple):
    """What the terms of each row count for.

    Attributes:
        coefficients: ``(N, len(LOSS_TERMS)) float64``, 0 in rows that count nowhere.
        weighted_mean: ``(N,) float64`` coefficients of the :func:`weighted_mean` of the row's logits, which no column
            has; None where that counts nowhere.
        valid: ``(N,)`` bool, the rows that are not ignored.
    """

    factors: LossFactors
    coefficients: Tensor
    weighted_mean: Tensor | None
    valid: Tensor

    def of_planes(self, floats: Tensor, indices: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss from planes of float columns, and the planes as :class:`LinearLoss` has them.

        The gradient is that of the planes; with ``reduction="none"`` the loss is a value per row, and columns of rows
        that count nowhere stay.
        """
        none = self.factors.reduction == "none"
        loss = terms(floats, self.coefficients).sum(1 if none else None).to(floats.dtype)
        floats = floats.detach()
        return loss, (floats, indices) if none else counted(floats, indices, self.coefficients)

    def finished(self, loss: Tensor, mean: Tensor | None) -> Tensor:
        """The loss with what it takes of the rows' weighted ``mean``; NaN is the mean over no row."""
        f = self.factors
        if mean is not None:
            rest = self.weighted_mean * mean
            loss = loss + (rest if f.reduction == "none" else rest.sum()).to(loss.dtype)
        if f.reduction != "mean":
            return loss
        some = self.valid.any()
        if f.num_items is not None:  # no rows by 0 items are NaN
            some = some | (f.num_items != 0)
        return loss.where(some, torch.nan)


def loss_table(
    factors: LossFactors, x: Tensor, target: Tensor | None, class_weight: Tensor | None, classes: int,
    ignore_index: int,
) -> LossTable:  # fmt: skip
    """Of rows ``x (N, D)`` with targets among ``classes``; ``class_weight (classes,)``."""
    f, rows = factors, x.shape[0]
    valid = torch.ones(rows, dtype=torch.bool, device=x.device) if target is None else target != ignore_index
    counts = valid.double()
    class_weight = None if class_weight is None else class_weight.double()
    weighted = counts
    if class_weight is not None and target is not None:
        weighted = class_weight[target.clamp(0, classes - 1)] * counts
    per_row = per_weight = 1.0 if f.num_items is None else f.num_items
    if f.reduction == "mean" and f.num_items is None:
        per_row, per_weight = counts.sum(), weighted.sum()
    smooth = (f.nll * f.label_smoothing) * counts / per_weight
    coefficients = {
        "nll": (f.nll * (1 - f.label_smoothing)) * weighted / per_weight,
        "lse": smooth if class_weight is None else smooth * class_weight.mean(),
        "lse_squared": f.z_loss * counts / per_row,
        "entropy": f.entropy * counts / per_row,
        "mean": -smooth if class_weight is None else torch.zeros_like(smooth),
    }
    table = torch.stack([coefficients[name] for name in LOSS_TERMS], 1).where(valid[:, None], 0)
    of_mean = -smooth.where(valid, 0) if class_weight is not None and f.label_smoothing != 0 else None
    return LossTable(factors, table, of_mean, valid)


def terms(floats: Tensor, coefficients: Tensor) -> Tensor:
    """``(N, len(LOSS_TERMS)) float64``: terms times coefficients; 0 where those are 0, whatever the term."""
    of = dict(zip(FLOATS, floats.double().unbind(), strict=True))
    of["lse_squared"] = of["lse"].where(coefficients[:, LOSS_TERMS.index("lse_squared")] != 0, 0).square()
    columns = zip(LOSS_TERMS, coefficients.unbind(1), strict=True)
    return torch.stack([c * of[name].where(c != 0, 0) for name, c in columns], 1)


def counted(floats: Tensor, indices: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The planes without what stands in the rows that count nowhere: 0 in the columns of the target, NaN, -1."""
    nowhere = (coefficients == 0).all(1)
    floats = floats.masked_fill(nowhere, torch.nan)
    for name in ("target_logit", "nll"):
        floats[FLOATS.index(name)].masked_fill_(nowhere, 0)
    return floats, indices.masked_fill(nowhere, -1)


def weighted_sums(weight: Tensor, bias: Tensor | None, class_weight: Tensor) -> Tensor:
    """``(D + 1,)`` in the compute dtype: the sum over these classes of ``class_weight`` times weight row and bias."""
    dtype = compute_dtype(weight.dtype)
    factors, row = class_weight.to(dtype), weight.new_zeros(weight.shape[1], dtype=dtype)
    with outside_autocast(weight.device):
        for i in range(0, weight.shape[0], 4096):  # half-precision weights are never converted all at once
            row = row + factors[i : i + 4096] @ weight[i : i + 4096].to(dtype)
        offset = factors.new_zeros(()) if bias is None else factors @ bias.to(dtype)
    return torch.cat([row, offset[None]])


def weighted_mean(x: Tensor, counts: Tensor, sums: Tensor, classes: int, scale: float) -> Tensor:
    """``(N,)`` mean over ``classes`` of ``class_weight * logit``, from the :func:`weighted_sums` of all of them.

    Of the rows that ``counts (N,)`` says; the others, whatever they hold, are as rows of zeros.
    """
    with outside_autocast(x.device):
        return (scale * (x.where(counts[:, None], 0).to(sums.dtype) @ sums[:-1]) + sums[-1]) / classes
