"""Losses that sort the stored logits of each row: what no column knows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.checks import check_beside, check_floating, check_integer, check_number, flatten_labels, raise_bad_label


class ShrunkCrossEntropy(NamedTuple):
    """See :func:`shrunk_cross_entropy`."""

    loss: Tensor
    confidence: Tensor
    removed: Tensor


def plackett_luce(logits: Tensor, teacher_logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Likelihood of a teacher's ranking, each place weighed by its probability: PLD. Bassam et al. 2025.

    ``sum_k q_{pi_k} (log sum_{j >= k} e^(z_{pi_j}) - z_{pi_k})`` with ``q = softmax(teacher_logits)``; pi is the target
    and then the other classes by falling q. The first term is ``q_y`` times the cross entropy.

    Args:
        logits: ``(N, V)``, z, of the student. teacher_logits: ``(N, V)``, taken as constants.
        target: ``(N,)`` classes in [0, V). ignore_index: the target to skip.

    Returns:
        ``(N,)``, 0 or more; 0 on ignored rows. The row is sorted: for the classes of images, not for a vocabulary.
    """
    check_floating(logits, "logits", 2)
    check_beside(teacher_logits, "teacher_logits", tuple(logits.shape), "logits.shape", logits, "logits")
    y = flatten_labels(target, "target", logits, "logits")
    valid = y != check_integer(ignore_index, "ignore_index")
    if bool((valid & ((y < 0) | (y >= logits.shape[1]))).any()):
        raise_bad_label(y, logits.shape[1], ignore_index, "target")
    teacher = teacher_logits.detach()
    order = teacher.scatter(1, y.where(valid, 0)[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    ranked = logits.gather(1, order)
    values = teacher.softmax(1).gather(1, order) * (_log_tails(ranked) - ranked)
    return values.sum(1).where(valid, 0.0)


def shrunk_cross_entropy(logits: Tensor, weak_logits: Tensor, *, threshold: float = 0.95) -> ShrunkCrossEntropy:
    """Cross entropy among fewer classes, of rows that are not sure enough among all. ShrinkMatch, Yang et al. 2023.

    The weak view ranks the classes. Of a row with ``p_(1) < threshold`` the classes of rank 2 to c are removed, with
    the smallest c >= 2 for which ``p_(1) / (p_(1) + sum_{r > c} p_(r)) >= threshold``, c < V; the loss is ``p_(1)``
    times the cross entropy of class (1) among those left, in the logits of the strong view.

    Args:
        logits: ``(N, V)`` of the strong view. weak_logits: ``(N, V)``, taken as constants. threshold: in (0, 1).

    Returns:
        ``loss (N,)``, 0 where the row is sure, or no c suffices; ``confidence (N,)``, that of the weak view among the
        classes left; ``removed (N,) int64``, ``c - 1``, 0 where the row has no loss.
    """
    check_floating(logits, "logits", 2)
    check_beside(weak_logits, "weak_logits", tuple(logits.shape), "logits.shape", logits, "logits")
    threshold = check_number(threshold, "threshold", "it has no gradient")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a number between 0 and 1, got {threshold}")
    ranked, order = weak_logits.detach().sort(dim=1, descending=True, stable=True)
    strong = logits.gather(1, order)
    log_p = ranked.log_softmax(1)
    top, classes = log_p[:, 0], logits.shape[1]
    if classes < 3:
        return ShrunkCrossEntropy(strong.sum(1) * 0, top.exp(), torch.zeros_like(order[:, 0]))
    # Column i: the classes of rank 2 to i + 2 removed.
    confidence = torch.sigmoid(top[:, None] - _log_tails(log_p[:, 2:]))
    enough = confidence >= threshold
    at = enough.int().argmax(1, keepdim=True)  # the first
    shrunk = (top.exp() < threshold) & enough.any(1)
    loss = top.exp() * F.softplus(_log_tails(strong[:, 2:]).gather(1, at)[:, 0] - strong[:, 0])
    return ShrunkCrossEntropy(
        loss.where(shrunk, 0 * top.exp()),  # NaN of a row that has one
        confidence.gather(1, at)[:, 0].where(shrunk, top.exp()),
        (at[:, 0] + 1).where(shrunk, 0),
    )


def _log_tails(values: Tensor) -> Tensor:
    """Log-sum-exp of each entry and those after it."""
    return values.flip(1).logcumsumexp(1).flip(1)
