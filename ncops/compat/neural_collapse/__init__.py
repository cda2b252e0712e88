"""The interface of the library ``neural-collapse`` (0.1), module by module, over ncops kernels.

Names, arguments, defaults, returned tuples and floats, and the attributes that callers read and assign are the
library's. What differs is written in docs/neural-collapse.md: cases in which the library fails or is wrong.
"""

from . import accumulate, kernels, measure, util

__all__ = ["accumulate", "kernels", "measure", "util"]
