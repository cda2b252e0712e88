"""The planes that linear_stats and logit_stats return on every backend, one number per row in each.

``floats (len(FLOATS), N)`` in the compute dtype and ``indices (len(INDICES), N) int64`` are the columns of
:class:`ncops.ops.LinearStats`. A raw share of the classes (csrc/logit_share.h says what it holds) is
``(len(SHARE_FLOATS), N) float64`` and ``(len(SHARE_INDICES), N) int64``.
"""

FLOATS = ("lse", "gap", "max", "second", "target_logit", "nll", "entropy", "mean", "var", "sum_squared_prob")
INDICES = ("argmax", "second_index", "target_rank")
SHARE_FLOATS = ("max", "second", "rest", "weighted", "squared", "mean", "squares")
SHARE_INDICES = ("argmax", "second_index", "count", "rank")
LOSS_TERMS = ("nll", "lse", "lse_squared", "entropy", "mean")
"""What the coefficients (N, len(LOSS_TERMS)) of ``linear_loss`` multiply, row by row."""
