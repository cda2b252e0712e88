"""What a tile of pairs is made of: products of rows, squared distances that keep their digits, values and slopes."""

from __future__ import annotations

import triton
import triton.language as tl

from ._products import add_products

NAMES = ("dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv")
CODES = {name: code for code, name in enumerate(NAMES)}
DOT, COSINE, ANGLE, DISTANCE, LOG_DISTANCE, RIESZ, GAUSSIAN, CDNV = (tl.constexpr(code) for code in CODES.values())
CLOSE = tl.constexpr(0.01)  # below this share of |u|^2 + |v|^2 a squared distance is formed from the difference
# The angle between unit rows over the length of their difference, 2 asin(sqrt(e) / 2) / sqrt(e) for e in [0, 2], in
# powers of e - 1, by interpolation at Chebyshev nodes: to 4e-10 and 5e-19.
ANGLE_TERMS = tl.constexpr(
    (
        1.04719755151029794, 0.0537514941037954206, 0.00779888670509045628, 0.00151965839828624658,
        0.000340986213401259919,
        0.0000830790789628994031, 0.0000210106857068670036, 5.57731083064131489e-6, 1.93182714061091946e-6,
        5.58328936449417877e-7,
    )
)
ANGLE_TERMS_64 = tl.constexpr(
    (
        1.04719755119659775, 0.0537514935913268831, 0.00779890223897362983, 0.00151966853960070431,
        0.000340863723422356588,
        0.0000830231778741789102, 0.0000213455525023407982, 5.70178362063615142e-6, 1.56696342252377888e-6,
        4.40196531028930638e-7, 1.25842626704542896e-7, 3.64941768612148443e-8, 1.07088463647073778e-8,
        3.1690560120946854e-9, 9.46796605847488798e-10, 2.91273204815047482e-10, 8.86808218416318716e-11,
        2.213168513203876e-11, 6.58956868182935644e-12, 4.20458578523451423e-12, 1.33711797207490416e-12,
    )
)
ANY_POWER = tl.constexpr(-1)


def exponent_class(kernel: str, power: float) -> int:
    """Twice the exponent e of (squared distance)^-e where a few multiplications give it, else ``ANY_POWER``."""
    twice = power if kernel == "riesz" else 2 * power
    return int(twice) if kernel in ("riesz", "cdnv") and twice in range(7) else -1


def launch_row(kernel: str, power: float, by_class: bool = False) -> str:
    """The name of the launch parameters for tiles of ``kernel``."""
    if kernel in ("dot", "cosine"):
        return "pair_products"
    slow = kernel in ("riesz", "cdnv") and exponent_class(kernel, power) == -1
    if slow:
        return "pair_distances_power"
    return "pair_distances_labels" if by_class else "pair_distances"


def split_power(power: float) -> tuple[float, float]:
    """Launches pass floats in float32: ``power`` as the sum of two of them."""
    import numpy

    high = float(numpy.float32(power))
    return high, power - high


@triton.jit
def inverse_power(d2, exponent, TWICE: tl.constexpr):
    """d2^-exponent, where TWICE is 2 * exponent unless it is ANY_POWER."""
    if TWICE == 0:
        result = d2 * 0 + 1
    elif TWICE == 1:
        result = tl.rsqrt(d2)
    elif TWICE == 2:
        result = 1 / d2
    elif TWICE == 3:
        result = tl.rsqrt(d2) / d2
    elif TWICE == 4:
        result = (1 / d2) * (1 / d2)
    elif TWICE > 4:
        result = inverse_power(d2, exponent, TWICE - 4) * inverse_power(d2, exponent, 4)
    else:
        # The logarithm times the exponent needs more digits than float32 has to give float32 its own.
        result = tl.exp2(-exponent * tl.log2(d2.to(tl.float64))).to(d2.dtype)
    return result


@triton.jit
def tile_products(
    rows, stride_row, stride_column, origin, first_a, first_b, count, dim,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Products of BLOCK rows from ``first_a`` with BLOCK rows from ``first_b``, about ``origin`` if there is one.

    Rows are multiplied as they are, half types on their own units, unless they are centred.
    """
    total = tl.zeros((BLOCK, BLOCK), DTYPE)
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    from_a = rows + a.to(tl.int64)[:, None] * stride_row
    from_b = rows + b.to(tl.int64)[None, :] * stride_row
    for depth in range(0, dim, BLOCK_D):
        d = depth + tl.arange(0, BLOCK_D)
        deep = d < dim
        column = d.to(tl.int64) * stride_column
        left = tl.load(from_a + column[None, :], mask=(a < count)[:, None] & deep[None, :], other=0)
        right = tl.load(from_b + column[:, None], mask=(b < count)[None, :] & deep[:, None], other=0)
        if origin is not None:
            centre = tl.load(origin + d, mask=deep, other=0)
            left = left.to(DTYPE) - centre[None, :]
            right = right.to(DTYPE) - centre[:, None]
        total = add_products(total, left, right, PRECISION)
    return total


@triton.jit
def good_rows(first, valid, count, BLOCK: tl.constexpr):
    """Which of BLOCK rows from ``first`` are there and valid."""
    row = first + tl.arange(0, BLOCK)
    good = row < count
    if valid is not None:
        good = tl.load(valid + row, mask=good, other=0) != 0
    return good


@triton.jit
def same_class(labels, first_a, first_b, count, BLOCK: tl.constexpr):
    """Which pairs of a tile are of one class."""
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    of_a, of_b = tl.load(labels + a, mask=a < count, other=-1), tl.load(labels + b, mask=b < count, other=-1)
    return of_a[:, None] == of_b[None, :]


@triton.jit
def wanted_pairs(first_a, first_b, valid, count, UPPER: tl.constexpr, BLOCK: tl.constexpr):
    """Which pairs of a tile count: valid rows a < b (UPPER), or a != b."""
    good_a = good_rows(first_a, valid, count, BLOCK)
    good_b = good_rows(first_b, valid, count, BLOCK)
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    apart = (a[:, None] < b[None, :]) if UPPER else (a[:, None] != b[None, :])
    return apart & good_a[:, None] & good_b[None, :]


@triton.jit
def pair_number(first_a, first_b, valid, count, BLOCK: tl.constexpr):
    """How many pairs of a tile of the upper triangle count."""
    some_a = tl.sum(good_rows(first_a, valid, count, BLOCK).to(tl.int32))
    some_b = tl.sum(good_rows(first_b, valid, count, BLOCK).to(tl.int32))
    return tl.where(first_a == first_b, some_a * (some_a - 1) // 2, some_a * some_b)


@triton.jit
def pair_sums(vector, first_a, first_b, count, BLOCK: tl.constexpr):
    """vector[a] + vector[b] for the pairs of a tile."""
    a, b = first_a + tl.arange(0, BLOCK), first_b + tl.arange(0, BLOCK)
    of_a, of_b = tl.load(vector + a, mask=a < count, other=0), tl.load(vector + b, mask=b < count, other=0)
    return of_a[:, None] + of_b[None, :]


@triton.jit
def _distances_from(
    rows, stride_row, stride_column, one, first_b, count, dim,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Squared distances of row ``one`` from BLOCK rows, each from the difference."""
    total = tl.zeros((BLOCK, BLOCK_D), DTYPE)
    b = first_b + tl.arange(0, BLOCK)
    here, there = rows + one.to(tl.int64) * stride_row, rows + b.to(tl.int64)[:, None] * stride_row
    for depth in range(0, dim, BLOCK_D):
        d = depth + tl.arange(0, BLOCK_D)
        column = d.to(tl.int64) * stride_column
        left = tl.load(here + column, mask=d < dim, other=0).to(DTYPE)
        right = tl.load(there + column[None, :], mask=(b < count)[:, None] & (d < dim)[None, :], other=0).to(DTYPE)
        apart = right - left[None, :]
        total += apart * apart
    return tl.sum(total, 1)


@triton.jit
def _unit_distances_from(
    rows, stride_row, stride_column, scale, one, first_b, count, dim, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Squared distances of unit row ``one`` from BLOCK unit rows, or their opposites if nearer, in float64."""
    minus, plus = tl.zeros((BLOCK, BLOCK_D), tl.float64), tl.zeros((BLOCK, BLOCK_D), tl.float64)
    b = first_b + tl.arange(0, BLOCK)
    here, there = rows + one.to(tl.int64) * stride_row, rows + b.to(tl.int64)[:, None] * stride_row
    size = tl.load(scale + one)
    sizes = tl.load(scale + b, mask=b < count, other=0)
    for depth in range(0, dim, BLOCK_D):
        d = depth + tl.arange(0, BLOCK_D)
        column = d.to(tl.int64) * stride_column
        left = tl.load(here + column, mask=d < dim, other=0).to(tl.float64) * size
        right = tl.load(there + column[None, :], mask=(b < count)[:, None] & (d < dim)[None, :], other=0)
        right = right.to(tl.float64) * sizes[:, None]
        minus += (right - left[None, :]) * (right - left[None, :])
        plus += (right + left[None, :]) * (right + left[None, :])
    return tl.minimum(tl.sum(minus, 1), tl.sum(plus, 1))


@triton.jit
def set_bits(flags, PART: tl.constexpr, BLOCK: tl.constexpr):
    """Flags 64 * PART .. 64 * PART + 63 of a vector as the bits of one integer, to loop over those that are set."""
    place = tl.arange(0, BLOCK)
    return tl.sum(tl.where(place // 64 == PART, flags.to(tl.int64) << (place % 64), 0))


@triton.jit
def close_pairs(product, norms, wanted, first_a, first_b, count, BLOCK: tl.constexpr):
    """``(squared distances, which of them have lost their digits)`` from products of centred rows."""
    size = pair_sums(norms, first_a, first_b, count, BLOCK)
    d2 = size - 2 * product
    return d2, wanted & (d2 < size * CLOSE)


@triton.jit
def close_angles(cosine, wanted):
    """``(squared distances of unit rows or, if nearer, opposites, which of them have lost their digits)``."""
    d2 = 2 - 2 * tl.abs(cosine)
    return d2, wanted & (d2 < 2 * CLOSE)


@triton.jit
def refine(
    d2, close, rows, stride_row, stride_column, scale, first_a, first_b, count, dim,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Close pairs again from their differences, those of unit rows with a ``scale``.

    They are few: only the rows ``a`` that have one are gone through.
    """
    rows_close = tl.max(close.to(tl.int32), 1)
    for part in tl.static_range((BLOCK + 63) // 64):
        bits = set_bits(rows_close, part, BLOCK)
        if bits != 0:
            for bit in range(64):
                if ((bits >> bit) & 1) != 0:
                    at = 64 * part + bit
                    if scale is None:
                        direct = _distances_from(
                            rows, stride_row, stride_column, first_a + at, first_b, count, dim, DTYPE, BLOCK, 16
                        )
                    else:
                        direct = _unit_distances_from(
                            rows, stride_row, stride_column, scale, first_a + at, first_b, count, dim, BLOCK, 16
                        ).to(DTYPE)
                    d2 = tl.where((tl.arange(0, BLOCK) == at)[:, None] & close, direct[None, :], d2)
    return d2


@triton.jit
def angles(d2, opposite):
    """Angles of unit rows from their squared distances, of those that are nearer the other's opposite from that."""
    dtype: tl.constexpr = d2.dtype
    TERMS: tl.constexpr = ANGLE_TERMS_64 if dtype == tl.float64 else ANGLE_TERMS
    LAST: tl.constexpr = 20 if dtype == tl.float64 else 9
    ratio = tl.full(d2.shape, TERMS[LAST], dtype)
    for k in tl.static_range(LAST):
        ratio = ratio * (d2 - 1) + tl.full((), TERMS[LAST - 1 - k], dtype)
    angle = tl.sqrt(d2) * ratio
    return tl.where(opposite, tl.full((), 3.14159265358979323846, dtype) - angle, angle)


@triton.jit
def pair_values(tile, sums, power, exponent, KERNEL: tl.constexpr, TWICE: tl.constexpr):
    """The pair kernel of squared distances; ``sums`` are v_i + v_j (cdnv)."""
    if KERNEL == DISTANCE:
        value = tl.sqrt(tile)
    elif KERNEL == LOG_DISTANCE:
        value = 0.5 * tl.log(tile)
    elif KERNEL == RIESZ:
        value = inverse_power(tile, exponent, TWICE)
    elif KERNEL == GAUSSIAN:
        value = tl.exp(-power * tile)
    else:
        value = sums * 0.5 * inverse_power(tile, exponent, TWICE)
    return value


@triton.jit
def pair_slopes(d2, sums, power, exponent, KERNEL: tl.constexpr, TWICE: tl.constexpr):
    """Twice the derivative of :func:`pair_values` by the squared distance; 0 for coincident rows."""
    STEEPER: tl.constexpr = TWICE + 2 if TWICE >= 0 else TWICE
    if KERNEL == ANGLE:
        slope = 2 * tl.rsqrt(d2 * (4 - d2))
    elif KERNEL == DISTANCE:
        slope = tl.rsqrt(d2)
    elif KERNEL == LOG_DISTANCE:
        slope = 1 / d2
    elif KERNEL == RIESZ:
        slope = -power * inverse_power(d2, exponent + 1, STEEPER)
    elif KERNEL == GAUSSIAN:
        slope = -2 * power * tl.exp(-power * d2)
    else:
        slope = -power * sums * inverse_power(d2, exponent + 1, STEEPER)
    return tl.where(d2 == 0, 0, slope)
