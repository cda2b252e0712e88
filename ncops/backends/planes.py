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
DIVERGENCES = ("kl", "reverse_kl", "js", "overlap", "entropy", "other_entropy", "lse", "other_lse")
"""The columns that linear_divergence and logit_divergence return, followed by those that only their gradients read."""
DIVERGENCE_PLANES = (*DIVERGENCES, "shift", "mixture_kl", "other_mixture_kl", "below")
"""``shift`` is other_lse - lse from sums of the difference of the logits, the next two are KL(p || m) and KL(q || m) of
the mixture m, and ``below`` is the sum of p where p < q, half of it where they are equal."""
DIVERGENCE_SHARE_FLOATS = (
    "kl", "reverse_kl", "entropy", "other_entropy", "lse", "other_lse", "shift", "max", "other_max"
)  # fmt: skip
DIVERGENCE_SHARE_INDICES = ("argmax", "other_argmax")
"""Of some of the classes by themselves, floats in float64: planes, the largest logit of each side and where it is. A
poisoned row has an lse of NaN, a side that has nothing but masked classes one of -inf."""
DIVERGENCE_RATIOS = ("mixture_kl", "other_mixture_kl", "overlap", "below")
"""Float64 sums over some of the classes, as part of all: what needs the log of the ratio of the probabilities."""
