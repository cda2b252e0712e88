"""The benchmark behind ``ncops bench``: one file per op with its cases, goals and peers, and the harness they share.

In one run it measures the machine's limits, every op, and what a user would pick instead, contestants alternating, so
that every figure is a ratio between neighbours in time. Nothing here is imported by ``import ncops``.
"""

OPS = (
    "linear_stats", "linear_loss", "linear_topk", "logit_stats", "linear_divergence", "logit_divergence",
    "class_moments", "class_scatter", "pair_stats", "nearest_class_mean", "projected_sqnorms",
)  # fmt: skip
