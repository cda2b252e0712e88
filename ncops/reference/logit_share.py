"""What is known of rows of logits from some of their classes, how shares join, and the columns that whole rows end as.

The names are those of csrc/logit_share.h. Shards of a vocabulary join by the same rules, whoever formed their shares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.planes import FLOATS, INDICES, SHARE_FLOATS

INF, NAN = float("inf"), float("nan")
NOWHERE = torch.iinfo(torch.int64).max


class LogitShare(NamedTuple):
    """Tensors ``(..., N)``, float64 and int64.

    A poisoned row (a NaN or +inf logit) has ``max`` NaN, a masked one (a -inf logit) ``mean`` -inf; without a logit
    above -inf ``max`` is -inf and ``rest`` -1, for no term at all.
    """

    max: Tensor
    second: Tensor
    rest: Tensor
    weighted: Tensor
    squared: Tensor
    mean: Tensor
    squares: Tensor
    argmax: Tensor
    second_index: Tensor
    count: Tensor
    rank: Tensor

    def planes(self) -> tuple[Tensor, Tensor]:
        """``(floats, indices)``, as the raw ops return a share."""
        return torch.stack(self[: len(SHARE_FLOATS)]), torch.stack(self[len(SHARE_FLOATS) :])


def share_of(z: Tensor, target_logit: Tensor | None = None) -> LogitShare:
    """The share of the classes with logits ``z (n, V)``, V >= 1; ranks are counted against ``target_logit (n,)``."""
    classes = z.shape[1]
    argmax = z.argmax(1, keepdim=True)  # the lowest index among equals; a NaN counts as the largest
    top = z.gather(1, argmax)
    below = z - top
    others = z.scatter(1, argmax, -INF)
    second_index = others.argmax(1, keepdim=True)
    second = others.gather(1, second_index)
    # The argmax term is 1 and stays out of the sums, so that in the collapsed regime nothing is added to 1 and lost.
    terms = others.sub_(top).exp_()
    lowest = torch.finfo(z.dtype).min
    drop = below.mean(1, dtype=torch.float64)
    squares = (below - drop.to(z.dtype)[:, None]).square().sum(1, dtype=torch.float64)
    weighted = (terms * below.clamp(min=lowest)).sum(1, dtype=torch.float64)  # 0 * -inf is 0
    rank = argmax.new_zeros(z.shape[0]) if target_logit is None else (z > target_logit[:, None]).sum(1)
    top, argmax = top.double().squeeze(1), argmax.squeeze(1)
    none, poisoned = top == -INF, top.isnan() | (top == INF)
    return LogitShare(
        max=top.masked_fill(poisoned, NAN),
        second=second.double().squeeze(1),
        rest=terms.sum(1, dtype=torch.float64).masked_fill(none, -1),
        weighted=weighted.masked_fill(none, 0),
        squared=terms.double().square().sum(1).masked_fill(none, -1),
        mean=(top + drop).masked_fill(none, -INF),
        squares=squares,
        argmax=argmax,
        second_index=second_index.squeeze(1),
        count=torch.full_like(argmax, classes),
        rank=rank,
    )


def merge(shares: LogitShare) -> LogitShare:
    """One share from those ``(S, N)`` of S disjoint sets of classes, which may be empty (``count`` 0).

    Ties go to the lower class index.
    """
    s = shares
    top = s.max.amax(0)
    argmax = s.argmax.where(s.max == top, NOWHERE).amin(0)
    winner = (s.max == top) & (s.argmax == argmax)
    rivals, rival_index = s.second.where(winner, s.max), s.second_index.where(winner, s.argmax)
    second = rivals.amax(0)
    second_index = rival_index.where(rivals == second, NOWHERE).amin(0)

    some = s.max > -INF
    fall = (s.max - top).where(some, 0)
    factor = fall.exp().where(some, 0)
    rest = s.rest + (~winner).double()  # a share that has not the maximum adds its own to the others
    weighted = (factor * (s.weighted + fall * rest)).sum(0)
    squared = (factor.square() * (s.squared + (~winner).double())).sum(0)
    none = top == -INF

    count = s.count.sum(0)
    mean = (s.mean * s.count).where(s.count > 0, 0).sum(0) / count
    around = s.squares + s.count * (s.mean - mean).square()
    return LogitShare(
        max=top,
        second=second,
        rest=(factor * rest).sum(0).masked_fill(none, -1),
        weighted=weighted.masked_fill(none, 0),
        squared=squared.masked_fill(none, -1),
        mean=mean,
        squares=around.where(s.count > 0, 0).sum(0),
        argmax=argmax,
        second_index=second_index,
        count=count,
        rank=s.rank.sum(0),
    )


def finish(
    share: LogitShare, target: Tensor | None, ignore_index: int, target_logit: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The planes of ``backends/planes.py``, floats in ``dtype``, of rows whose classes are all in ``share``.

    Without a target they are those of ignored rows; ``target_logit (N,)`` counts where the target is a class."""
    s = share
    poisoned, masked, none = s.max.isnan(), s.mean == -INF, s.max == -INF
    gap = s.rest.log1p().masked_fill(none, NAN)
    argmax = s.argmax.masked_fill(none, 0)
    # A search for something above -inf has found nothing where it is all there is: the lowest other index.
    second_index = s.second_index.where(s.second > -INF, (argmax == 0).long())
    columns = {
        "lse": (s.max + gap).masked_fill(none, -INF),
        "gap": gap,
        "max": s.max,
        "second": s.second.masked_fill(s.count == 1, -INF),
        "entropy": gap - s.weighted / (1 + s.rest),
        "sum_squared_prob": (1 + s.squared) / (1 + s.rest).square(),
        "mean": s.mean,
        "var": (s.squares / s.count).masked_fill(masked, NAN),
    }
    columns = {name: column.masked_fill(poisoned, NAN) for name, column in columns.items()}
    indices = {
        "argmax": argmax.masked_fill(poisoned, -1),
        "second_index": second_index.masked_fill((s.count == 1) | poisoned, -1),
    }
    if target is None:
        columns |= dict.fromkeys(("target_logit", "nll"), torch.zeros_like(gap))
        indices["target_rank"] = torch.full_like(argmax, -1)
    else:
        ignored = target == ignore_index
        good = ~ignored & (target >= 0) & (target < s.count) & ~poisoned
        # A target among the top two takes their very value, should a compiler have formed its logit otherwise: one last
        # place of a logit of 30 is 10^7 times the nll at that margin.
        t = s.second.where(target == second_index, target_logit.double())
        t = s.max.where(target == argmax, t)
        for name, value in (("target_logit", t), ("nll", (s.max - t) + gap)):
            columns[name] = value.where(good, NAN).masked_fill(ignored, 0)
        indices["target_rank"] = s.rank.masked_fill(target == argmax, 0).where(good, -1)
    return torch.stack([columns[n].to(dtype) for n in FLOATS]), torch.stack([indices[n] for n in INDICES])
