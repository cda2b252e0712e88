"""The names that arguments take, for type checkers and the command line; free of torch."""

from __future__ import annotations

from typing import Literal

Backend = Literal["cpu", "cuda", "triton", "reference"]
Kernel = Literal["dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv"]
Loss = Literal["nll", "cross_entropy", "z_loss", "entropy", "margin"]
Metric = Literal["euclidean", "cosine"]
Nonfinite = Literal["propagate", "skip", "raise"]
Panels = Literal["ncops", "papyan"]
Preset = Literal["ncops", "neural-collapse", "linguistic-collapse", "linguistic-collapse-script", "papyan", "zhu"]
Reduction = Literal["mean", "sum", "none"]
