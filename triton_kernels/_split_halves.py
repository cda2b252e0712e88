"""class_scatter of deviations by float16 products, another way: a deviation is two float16 numbers, whole and rest.

Each column is scaled by a power of two so that the squares of its deviations r sum up to 2^24 at most in every chunk.
high = r rounded to a whole number, low = half((r - high) 2^12), and the scatter is high^T high + 2^-12 (high^T low +
low^T high) + 2^-24 low^T low: torch's products with float32 sums.

Tensor cores cut off what lies two bits below a sum's last, toward zero, so that long sums of squares get too small: a
model of that gives 2.3, 2.4, 3.3, 3.8, 4.1 and 6.2e-6 where raw rows in sums of 2048 were 2.3, 2.4, 3.3, 3.7, 4.1 and
6.2e-6 off on an H200. With halves of 11 digits each it is 4e-5 in sums of 8192 rows, 2e-6 in sums of 512. Hence whole
numbers: within a chunk no sum leaves 2^24, so none is rounded, whatever the cores do; chunks are added in float32. Only
sums with low are rounded. For 40000 rows the model gives 1 to 2e-7 of |r_i| |r_j| for normal columns, their cubes and
offsets of 1000, 5.5e-6 where a column is constant; float32 sums of 256 rows have 4 to 6e-7 and 5e-6.

A deviation is off by 2^-23 of the largest chunk's norm or less; it has 12 bits down to 2^-36 of that, and in columns
where that is below 2^-114. An infinity or a NaN in a row that counts makes the row and the column of its feature NaN,
all of them; class_scatter itself may leave infinities there, never a finite number. Results beyond float32 are infinite
in both.

Not measured: class_scatter takes its own kernel until a GPU has told which is faster, and this one where it is the
candidate (``_candidates.py``; tools/gpu_day measures both).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._deviations import Deviations, load_deviations, row_arguments, row_classes
from ._launch import capability, device_of, launch
from .linear_stats_backward import add_product

CHUNK = 4096  # rows multiplied at once: rounding adds at most 0.5 sqrt(4096) to a norm of 4096, which has 2 % for it
ALIGNED = 16  # features are filled up to a multiple: 32 bytes


@triton.jit
def _exponent(square):
    """Of the power of two by which a column is multiplied, by the bits of its largest sum of squares."""
    biased = (square >> 52).to(tl.int32)
    exponent = tl.minimum((1022 + 24 - biased) >> 1, 126)  # more is no float32 number
    return tl.where((square == 0) | (biased == 2047), 0, exponent)


@triton.jit
def _column_squares(
    x, labels, center, largest, n, dim, num_classes, ignore_index,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """largest[d] = bits of the most that the squared deviations of a chunk of ROWS sum up to, and 4 % for rounding; as
    integers infinities come after numbers, and NaN after those."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.program_id(1).to(tl.int64) * ROWS
    end = tl.minimum(begin + ROWS, n)
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float64)
    for start in range(begin, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        y, keep = row_classes(labels, rows, rows < end, num_classes, ignore_index, stride_y)
        r = load_deviations(of, rows, y, keep, columns, columns < dim, tl.float32).to(tl.float64)
        total += r * r
    square = (tl.sum(total, 0) * 1.04).to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    tl.atomic_max(largest + columns, square, mask=columns < dim)


@triton.jit
def _halves(
    x, labels, center, largest, halves, n, dim, width, num_classes, ignore_index,
    stride_y, stride_xn, stride_xd, stride_cc, stride_cd, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of the scaled deviations whole numbers, ``(n, width)``, and beside them the rests, in ``halves (n, 2 * width)``;
    zero in rows left out and in columns from ``dim`` on."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < dim
    y, keep = row_classes(labels, rows, rows < n, num_classes, ignore_index, stride_y)
    of = Deviations(x, center, stride_xn, stride_xd, stride_cc, stride_cd)
    r = load_deviations(of, rows, y, keep, columns, inside, tl.float32)
    exponent = _exponent(tl.load(largest + columns, mask=inside, other=0))
    r *= ((exponent + 127) << 23).to(tl.float32, bitcast=True)[None, :]
    high = tl.floor(r + 0.5).to(tl.float16)  # beyond 2048 to even numbers
    low = (r - high.to(tl.float32)) * 4096.0
    place = halves + rows[:, None] * (2 * width) + columns[None, :]
    mask = (rows < n)[:, None] & (columns < width)[None, :]
    tl.store(place, high, mask=mask)
    tl.store(place + width, low.to(tl.float16), mask=mask)


@triton.jit
def _finish(squares, rests, largest, out, dim, width, BLOCK_D: tl.constexpr):
    """Tile (i, j), i <= j, of the scatter without its scales, and its mirror image; half of a diagonal tile decides."""
    i, j = tl.program_id(0), tl.program_id(1)
    if i <= j:
        index = tl.arange(0, BLOCK_D)
        row, column = (i * BLOCK_D + index).to(tl.int64), (j * BLOCK_D + index).to(tl.int64)
        here = (row < dim)[:, None] & (column < dim)[None, :]
        there = (column < dim)[:, None] & (row < dim)[None, :]
        place = row[:, None] * width + column[None, :]
        lower = tl.load(rests + tl.cast(width, tl.int64) * width + place, mask=here, other=0)
        mirrored = tl.load(rests + column[:, None] * width + row[None, :], mask=there, other=0)
        crossed = tl.load(rests + place, mask=here, other=0) + tl.trans(mirrored)
        total = tl.load(squares + place, mask=here, other=0) + (crossed + lower * 2.0**-12) * 2.0**-12
        of_rows = _exponent(tl.load(largest + row, mask=row < dim, other=0))
        of_columns = _exponent(tl.load(largest + column, mask=column < dim, other=0))
        both = 1023 - (of_rows[:, None] + of_columns[None, :]).to(tl.int64)
        value = (total.to(tl.float64) * (both << 52).to(tl.float64, bitcast=True)).to(tl.float32)
        if i == j:
            value = tl.where(index[:, None] <= index[None, :], value, tl.trans(value))
        tl.store(out + row[:, None] * dim + column[None, :], value, mask=here)
        if i != j:
            tl.store(out + column[:, None] * dim + row[None, :], tl.trans(value), mask=there)


def fits(x: Tensor, center: Tensor | None, allow_tf32: bool) -> bool:
    """Whether the rows have digits that one float16 product would lose, and products of two have float32 sums."""
    return (
        (x.dtype == torch.float32 or (center is not None and x.element_size() == 2))
        and not allow_tf32
        and torch.version.hip is None
        and not torch.backends.cuda.matmul.allow_fp16_accumulation
    )


def scatter_of_halves(
    x: Tensor, labels: Tensor | None, center: Tensor | None, ignore_index: int, out: Tensor
) -> Tensor:
    """``out (D, D)`` with the scatter, exactly symmetric.

    Workspace: 4096 rows of both halves, 4 bytes per number; three D x D float32 sums.
    """
    with device_of(x):
        return _scatter_of_halves(x, labels, center, ignore_index, out)


def _scatter_of_halves(x, labels, center, ignore_index, out):
    (n, dim), there = x.shape, capability(x.device)
    width = triton.cdiv(dim, ALIGNED) * ALIGNED
    config = launch("split_halves", x.dtype, there)
    block, columns = config["BLOCK_N"], triton.cdiv(width, config["BLOCK_D"])
    largest = torch.zeros(dim, dtype=torch.int64, device=x.device)
    _column_squares[(columns, triton.cdiv(n, CHUNK))](
        largest=largest, n=n, dim=dim, ignore_index=ignore_index, ROWS=CHUNK, **row_arguments(x, labels, center),
        **config.options,
    )  # fmt: skip
    rows = min(n, CHUNK)
    halves = torch.empty((rows, 2 * width), dtype=torch.float16, device=x.device)
    sums = torch.empty((3 * width, width), dtype=torch.float32, device=x.device)
    squares, rests = sums[:width], sums[width:]
    for first in range(0, n, rows):
        part = x[first : first + rows]
        y = None if labels is None else labels[first : first + rows]
        both = halves[: len(part)]
        _halves[(columns, triton.cdiv(len(part), block))](
            largest=largest, halves=both, n=len(part), dim=dim, width=width, ignore_index=ignore_index,
            **row_arguments(part, y, center), **config.options,
        )  # fmt: skip
        high, low = both[:, :width], both[:, width:]
        add_product(squares, high.mT, high, first == 0)
        add_product(rests, both.mT, low, first == 0)
    config = launch("split_halves.finish", x.dtype, there)
    blocks = triton.cdiv(dim, config["BLOCK_D"])
    _finish[(blocks, blocks)](squares, rests, largest, out, dim, width, **config.options)
    return out
