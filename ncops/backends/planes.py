"""The planes of the raw ops' results: a row's columns, and a row's share of some classes."""

FLOATS = ("lse", "gap", "max", "second", "target_logit", "nll", "entropy", "mean", "var")
INDICES = ("argmax", "second_index", "target_rank")
SHARE_FLOATS = ("max", "second", "rest", "weighted", "mean", "squares")
SHARE_INDICES = ("argmax", "second_index", "count", "rank")
