"""The columns of a shard of the classes, packed for one exchange, and the columns of all classes from them.

Free of communication, so that every backend can be tested with shards in one process.
"""

from __future__ import annotations

import torch
from torch import Tensor

INF, NAN = float("inf"), float("nan")
PACKED = ("max", "second", "gap", "entropy", "mean", "var", "argmax", "second_index", "rank", "classes")


def target_columns(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, start: int, scale: float, ignore_index: int,
    tf32: bool,
) -> Tensor:  # fmt: skip
    """``(N)`` logits of the targets that are among these classes, 0 for the others: their sum over shards is all."""
    own = target - start
    own = own.where((own >= 0) & (own < weight.shape[0]) & (target != ignore_index), -1)
    if not weight.shape[0]:
        return x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.ops.ncops.linear_stats_targets(x, weight, bias, own, scale, -1, tf32)


def local_columns(
    x: Tensor, weight: Tensor, bias: Tensor | None, level: Tensor | None, start: int, scale: float, tf32: bool
) -> Tensor:
    """``(10, N)`` float64, rows as ``PACKED``; indices are those of all classes (exact below 2^53).

    ``level (N)``: the logits of the targets, whose rivals among these classes are counted.
    """
    n, classes = x.shape[0], weight.shape[0]
    packed = torch.zeros((len(PACKED), n), dtype=torch.float64, device=x.device)
    if not classes:
        packed[:2] = -INF
        return packed
    first = None if level is None else torch.zeros(n, dtype=torch.int64, device=x.device)
    columns = torch.ops.ncops.linear_stats(x, weight, bias, first, scale, -1, tf32, level)
    _, gap, peak, second, _, _, entropy, mean, var, argmax, second_index, rank, _ = columns
    for row, column in enumerate((peak, second, gap, entropy, mean, var)):
        packed[row] = column
    packed[6] = torch.where(argmax < 0, -1, argmax + start)
    packed[7] = second_index + start  # read only where `second` is a number above -inf
    if level is not None:
        packed[8] = rank
    packed[9] = classes
    return packed


def merge_columns(
    every: Tensor, level: Tensor | None, target: Tensor | None, num_classes: int, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The op's 13 columns over all classes from ``every (shards, 10, N)``, in float64 until they are stored."""
    peak, second, gap, entropy, mean, var, argmax, second_index, above, classes = every.unbind(1)
    some = classes > 0
    poisoned = (some & (argmax < 0)).any(0)
    top = peak.where(some, -INF).amax(0)
    none = top == -INF  # every class is masked
    at_top = some & (peak == top)
    best = argmax.where(at_top, INF).amin(0)
    owner = at_top & (argmax == best)
    rival = torch.where(owner, second, peak).where(some, -INF)
    next_top = rival.amax(0)
    next_index = torch.where(owner, second_index, argmax).where(some & (rival == next_top), INF).amin(0)

    # Sums over e^{z - top}, the argmax's own term left out, so that in the collapsed regime nothing is added to 1.
    live = some & (peak > -INF)
    drop = (peak - top).where(live, 0)
    factor = drop.exp().where(live, 0)
    rest = (factor * torch.where(owner, gap.expm1(), gap.exp())).where(live, 0).sum(0)
    spread = (gap - entropy) * gap.exp() + drop * gap.exp()  # sums of (z - top) e^{z - max}
    all_gap = rest.log1p()
    all_entropy = all_gap - (factor * spread).where(live, 0).sum(0) / (1 + rest)

    total = mean.where(some, 0) * classes
    all_mean = total.sum(0) / num_classes
    around = (var + (mean - all_mean).square()) * classes
    all_var = around.where(some, 0).sum(0) / num_classes
    masked = all_mean == -INF

    nan = torch.full_like(top, NAN)
    all_gap, all_entropy = nan.where(none, all_gap), nan.where(none, all_entropy)
    lse = torch.where(none, -INF, top + all_gap)
    floats = [lse, all_gap, top, next_top, all_entropy, all_mean, nan.where(masked, all_var)]
    lse, all_gap, peak, second, all_entropy, all_mean, all_var = (nan.where(poisoned, f).to(dtype) for f in floats)
    argmax = best.where(~none & ~poisoned, 0).long()
    other = (argmax == 0).long() if num_classes > 1 else torch.full_like(argmax, -1)
    found = next_top > -INF
    second_index = torch.where(found, next_index.where(found & ~poisoned, 0).long(), other)
    argmax, second_index = argmax.masked_fill(poisoned, -1), second_index.masked_fill(poisoned, -1)
    if target is None:
        empty = lse.new_empty(0)
        own, nll, rank, valid = empty, empty.clone(), argmax.new_empty(0), poisoned.new_empty(0)
    else:
        valid = target != ignore_index
        right = valid & (target >= 0) & (target < num_classes) & ~poisoned
        # A target among the top two takes their very value, should a compiler have formed its logit otherwise: one
        # last place of a logit of 30 is 10^7 times the nll at that margin.
        t = torch.where(target == argmax, top, torch.where(target == second_index, next_top, level.double()))
        own, nll = (c.where(right, nan).masked_fill(~valid, 0).to(dtype) for c in (t, (top - t) + floats[1]))
        rank = above.where(some & (target != argmax), 0).sum(0).where(right, -1).long()
    return lse, all_gap, peak, second, own, nll, all_entropy, all_mean, all_var, argmax, second_index, rank, valid


def shard_gradients(
    grads: tuple[Tensor, ...], columns: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
    target: Tensor | None, start: int, num_classes: int, scale: float, ignore_index: int, tf32: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """This shard's part of the gradient of ``x``, and all of those of its weight and bias.

    ``grads``: by the 9 float columns; ``columns``: gap, max, entropy, mean, argmax and second_index over all classes.
    """
    gap, peak, entropy, mean, argmax, second_index = columns
    classes = weight.shape[0]
    if not classes:
        return torch.zeros_like(x), torch.zeros_like(weight), weight.new_zeros(0)
    g_lse, g_gap, g_max, g_second, g_own, g_nll, g_entropy, g_mean, g_var = grads
    own = None
    if target is not None:
        own = target - start
        here = (own >= 0) & (own < classes) & (target != ignore_index)
        counted = (target != ignore_index) & (target >= 0) & (target < num_classes)
        # Of the nll, all but the target's own logit is the lse; the kernel leaves out the nll of targets it has not.
        g_lse = g_lse + g_nll.where(counted & ~here, 0)
        own = own.where(here, -1)
    share = classes / num_classes  # the kernel divides the gradients of mean and variance by the classes it sees
    return torch.ops.ncops.linear_stats_backward(
        g_lse, g_gap, g_max, g_second, g_own, g_nll, g_entropy, g_mean * share, g_var * share,
        gap, peak, entropy, mean, _local(argmax, start, classes, classes), _local(second_index, start, classes, -1),
        x, weight, bias, own, scale, -1, tf32, *needs,
    )  # fmt: skip


def _local(index: Tensor, start: int, classes: int, elsewhere: int) -> Tensor:
    """Local numbers of classes; ``elsewhere`` for those of other shards; -1 (none) stays."""
    local = index - start
    inside = (local >= 0) & (local < classes)
    return torch.where(index < 0, -1, torch.where(inside, local, elsewhere))
