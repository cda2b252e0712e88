"""How far confidence is from accuracy, from the columns of logit statistics or from counts by bins."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.checks import check_floating, check_integer, check_shape
from ..ops.columns import LinearStats, need_target


def expected_calibration_error(counts: Tensor, correct: Tensor, confidence: Tensor) -> Tensor:
    """``sum_b (n_b / N) |accuracy_b - confidence_b|`` over bins of confidence. Naeini et al. 2015, Guo et al. 2017.

    Args:
        counts: ``(B,)`` rows of each bin. correct: ``(B,)`` right ones among them. confidence: ``(B,)`` sums of the
            largest probability.
    """
    return (correct.double() - confidence.double()).abs().sum() / counts.sum().double()


def adaptive_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    """The same over bins that hold equally many rows, in the order of their confidence. Nguyen and O'Connor 2015.

    Args:
        confidence: ``(N,)``, the largest probability of each row. correct: ``(N,)`` bool.
        bins: number of them; where N is no multiple, the first ones hold one row more.

    Returns:
        float64 scalar; NaN for N = 0.
    """
    check_floating(confidence, "confidence", 1)
    check_shape(correct, "correct", tuple(confidence.shape), "that of confidence")
    bins = check_integer(bins, "bins", 1)
    order = confidence.argsort(stable=True)
    gaps = (correct.double() - confidence.double())[order]
    return torch.stack([part.sum().abs() for part in gaps.tensor_split(bins)]).sum() / len(gaps)


def brier_score(stats: LinearStats) -> Tensor:
    """``(...)`` Brier score of each row, ``sum_k (p_k - 1{k = y})^2 = 1 - 2 p_y + sum p^2``; 0 on ignored rows.

    Brier 1950. Differentiable. ``stats`` need a target.
    """
    need_target(stats, "stats")
    return (1 - 2 * (-stats.nll).exp() + stats.sum_squared_prob).where(stats.valid, 0.0)


def fit_temperature(
    columns: Callable[[float], LinearStats], *, low: float = 0.01, high: float = 100.0, rtol: float = 1e-4
) -> float:
    """The temperature T that minimises the mean ``nll`` of ``softmax(z / T)``. Guo et al. 2017.

    The mean nll is convex in 1 / T, and its slope is ``E_p[z] - z_y``, which columns hold: ``E_p[z / T]`` is
    ``lse - entropy``. So bisection takes one sweep for each bit, twenty or so.

    Args:
        columns: gives the statistics of logits times its argument, ``lambda scale: ncops.linear_stats(x, weight, None,
            target, scale=scale)``; a bias has to be multiplied too.
        low, high: bounds of T, one of which is the answer where the minimum lies beyond it.
        rtol: relative width at which bisection stops.
    """
    if not 0 < low < high:
        raise ValueError(f"low, high: expected 0 < low < high, got {low} and {high}")

    def rises(temperature: float) -> bool:  # the nll with 1 / T
        stats = columns(1 / temperature)
        need_target(stats, "columns")
        slope = (stats.lse.double() - stats.entropy - stats.target_logit).where(stats.valid, 0.0).sum()
        return bool(slope > 0)

    if not rises(low):
        return low
    if rises(high):
        return high
    while high / low > 1 + rtol:
        middle = math.sqrt(low * high)
        if rises(middle):
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
