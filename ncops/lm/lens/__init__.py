"""A logit lens: what every layer of a language model would say, read through its own norm and unembedding."""

from .result import Lens
from .run import lens, measure_lens

__all__ = ["Lens", "lens", "measure_lens"]
