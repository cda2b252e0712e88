"""One block of a sum of products, for every kernel that multiplies rows with rows."""

import triton
import triton.language as tl

from ._launch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def add_products(products, a, b, PRECISION: tl.constexpr):
    """``products + a @ b``, for one block of features after another.

    Three tf32 products have a sum of their own for each block, by Triton itself, and so have plain float32 ones here:
    in one chain over thousands of features the late ones lose digits. The interpreter of Triton 3.9 multiplies the bit
    patterns of bfloat16, so it is given float32.
    """
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if PRECISION == "ieee":
        return products + tl.dot(a, b, input_precision=PRECISION, out_dtype=products.dtype)
    else:
        return tl.dot(a, b, products, input_precision=PRECISION, out_dtype=products.dtype)
