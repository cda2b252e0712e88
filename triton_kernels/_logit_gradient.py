"""The gradient of a row's logits from the gradients of its columns: folded once per row, then applied per tile.

With p = softmax(z), everything that multiplies a softmax is one affine function of z, so a tile costs one exponential
per logit whatever columns the loss was made of. The columns of the argmax and of the target are written by hand: where
p_j - 1 is meant, ``expm1(-gap)`` stands, which at margin 30 is -9e-14 where the float32 subtraction gives 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import planes
from ._logit_columns import Planes
from ._logit_state import UNDERFLOW, expm1, store_planes
from ._logits_tile import capped, capped_slope

COEFFICIENTS, ROW_INDICES = 11, 4
# The columns' planes, and those of their gradients.
LSE, GAP, MAX, SECOND, TARGET_LOGIT, NLL, ENTROPY, MEAN, VAR, SUM_SQUARED_PROB = map(
    tl.constexpr, range(len(planes.FLOATS))
)
# flat is what multiplies e^(z - shift), tilt (z - shift + offset) e^(z - shift), constant 1, slope z - centre and bend
# e^(2 (z - shift)); shift is the maximum, centre the mean. Three columns apart: at_argmax replaces the softmax part of
# the argmax's, the others are added.
SHIFT, OFFSET, CENTRE, FLAT, TILT, BEND, CONSTANT, SLOPE, AT_ARGMAX, AT_TARGET, AT_SECOND = map(
    tl.constexpr, range(COEFFICIENTS)
)
# The first two as among the columns.
ARGMAX, SECOND_INDEX, TARGET, KIND = map(tl.constexpr, range(ROW_INDICES))
BLOCK, WARPS = 256, 4


@triton.jit
def _times(gradient, value):
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return tl.where(gradient == 0, 0, gradient * value)


@triton.jit
def _wide(floats, PLANE: tl.constexpr, plane, at, here):
    return tl.load(floats + PLANE * plane + at, here, 0).to(tl.float64)


@triton.jit(do_not_specialize=["grad_plane", "num_rows", "num_classes", "ignore_index"])
def fold(
    grad, grad_plane, grad_row, floats, columns_indices, target, stride_target, coefficients, indices,
    num_rows, num_classes, ignore_index,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``grad (10, N)``, the columns' gradients -> ``coefficients (11, N)`` and ``indices (4, N)``, in float64.

    The indices are argmax, second index, target unless it is the argmax (-1 for none), and the row's kind: 0 without
    gradient, 1 with, 2 with one of a poisoned row.
    """
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < num_rows
    plane = tl.cast(num_rows, tl.int64)
    at, step = row * grad_row, tl.cast(grad_plane, tl.int64)
    g_lse, g_gap = _wide(grad, LSE, step, at, here), _wide(grad, GAP, step, at, here)
    g_max, g_second = _wide(grad, MAX, step, at, here), _wide(grad, SECOND, step, at, here)
    g_target, g_nll = _wide(grad, TARGET_LOGIT, step, at, here), _wide(grad, NLL, step, at, here)
    g_entropy = _wide(grad, ENTROPY, step, at, here)
    g_mean, g_var = _wide(grad, MEAN, step, at, here), _wide(grad, VAR, step, at, here)
    g_squared = 2 * _wide(grad, SUM_SQUARED_PROB, step, at, here)
    argmax = tl.load(columns_indices + ARGMAX * plane + row, here, 0)
    second = tl.load(columns_indices + SECOND_INDEX * plane + row, here, -1)
    y = tl.full([BLOCK], -1, tl.int64)
    if target is not None:
        y = tl.load(target + row * stride_target, here, ignore_index).to(tl.int64)
        y = tl.where((y != ignore_index) & (y >= 0) & (y < num_classes), y, -1)
    g_target = tl.where(y >= 0, g_target, 0)
    g_nll = tl.where(y >= 0, g_nll, 0)
    active = (g_lse != 0) | (g_gap != 0) | (g_max != 0) | (g_second != 0) | (g_target != 0)
    active = active | (g_nll != 0) | (g_entropy != 0) | (g_mean != 0) | (g_var != 0) | (g_squared != 0)

    gap = _wide(floats, GAP, plane, row, here)
    offset = _wide(floats, ENTROPY, plane, row, here) - gap
    share, lost = tl.exp(-gap), expm1(-gap)
    total = g_lse + g_gap + g_nll
    # Terms that multiply 1 are collected by hand, so that those which cancel never meet in floating point.
    hit = y == argmax
    at_argmax = tl.where(
        hit,
        _times(total, lost) + (g_lse + g_target + g_max),
        _times(g_gap, lost) + _times(g_lse + g_nll, share) + g_max,
    )
    at_argmax -= _times(g_entropy, share * offset)

    # p_max - sum p^2 is p_max^2 (rest - squared); `squared` is sum p^2 / p_max^2 - 1, which near collapse has no digit
    # left: it lies between the square of the second's term and that term times `rest`.
    max, sum_squared = _wide(floats, MAX, plane, row, here), _wide(floats, SUM_SQUARED_PROB, plane, row, here)
    term, rest = tl.exp(_wide(floats, SECOND, plane, row, here) - max), -lost / share
    squared = sum_squared / (share * share) - 1
    squared = tl.minimum(tl.maximum(squared, term * term), term * rest)
    at_argmax += _times(g_squared, share * share * share * (rest - squared))

    centre = tl.load(floats + MEAN * plane + row, here, 0)
    flat = _times(total, share) - _times(g_squared, share * sum_squared)
    tilt, bend = -_times(g_entropy, share), _times(g_squared, share * share)
    constant, slope = g_mean / num_classes, g_var * 2 / num_classes
    shift, offset = tl.where(max == float("-inf"), 0, max), tl.where(g_entropy == 0, 0, offset)
    planes = (shift, offset, centre, flat, tilt, bend, constant, slope, at_argmax, g_target - g_nll, g_second)
    store_planes(coefficients, row, plane, here, planes)
    kind = tl.where(active, tl.where(argmax < 0, 2, 1), 0)
    store_planes(indices, row, plane, here, (argmax, second, tl.where(hit, -1, y), kind))


@triton.jit
def _of_row(values, PLANE: tl.constexpr, plane, row):
    return tl.load(values + PLANE * plane + row)


@triton.jit
def _by_moments(z, constant, slope, coefficients, plane, row):
    apart = z - _of_row(coefficients, CENTRE, plane, row)[:, None]
    return constant[:, None] + tl.where(slope[:, None] == 0, 0, slope[:, None] * apart)


@triton.jit
def logit_gradient(uncapped, column, row, coefficients, indices, num_rows, SOFTCAP: tl.constexpr):
    """Gradient of a tile of logits before ``SOFTCAP`` for classes ``column`` and existing rows ``row``; without
    ``scale``."""
    z = capped(uncapped, SOFTCAP)
    plane = tl.cast(num_rows, tl.int64)
    column = column[None, :]
    shift = _of_row(coefficients, SHIFT, plane, row)[:, None]
    flat = _of_row(coefficients, FLAT, plane, row)[:, None]
    tilt = _of_row(coefficients, TILT, plane, row)[:, None]
    offset = _of_row(coefficients, OFFSET, plane, row)[:, None]
    below = tl.maximum(z - shift, UNDERFLOW)
    bend, power = _of_row(coefficients, BEND, plane, row)[:, None], tl.exp(below)
    gradient = power * (flat + tilt * (below + offset) + bend * power)
    argmax = _of_row(indices, ARGMAX, plane, row)[:, None]
    gradient = tl.where(column == argmax, _of_row(coefficients, AT_ARGMAX, plane, row)[:, None], gradient)
    second = _of_row(indices, SECOND_INDEX, plane, row)[:, None]
    gradient += tl.where(column == second, _of_row(coefficients, AT_SECOND, plane, row)[:, None], 0)
    target = _of_row(indices, TARGET, plane, row)[:, None]
    gradient += tl.where(column == target, _of_row(coefficients, AT_TARGET, plane, row)[:, None], 0)
    constant, slope = _of_row(coefficients, CONSTANT, plane, row), _of_row(coefficients, SLOPE, plane, row)
    if SOFTCAP is not None:  # without a branch, across which `z` and `uncapped` would both have to be kept
        gradient += _by_moments(z, constant, slope, coefficients, plane, row)
        gradient = tl.where(z == float("-inf"), 0, gradient * capped_slope(uncapped, SOFTCAP))
    elif tl.max(((constant != 0) | (slope != 0)).to(tl.int32), 0) > 0:  # the usual losses have neither
        gradient += _by_moments(z, constant, slope, coefficients, plane, row)
    kind = _of_row(indices, KIND, plane, row)[:, None]
    return tl.where(kind == 1, gradient, tl.where(kind == 0, 0, float("nan")).to(gradient.dtype))


def row_coefficients(
    grad: Tensor, columns: Planes, target: Tensor | None, num_classes: int, ignore_index: int
) -> Planes:
    """The ``coefficients`` and ``indices`` of ``fold``, from the columns, which are contiguous, and their gradients."""
    n = grad.shape[1]
    coefficients = grad.new_empty((COEFFICIENTS, n))
    indices = grad.new_empty((ROW_INDICES, n), dtype=torch.int32)
    fold[(triton.cdiv(n, BLOCK),)](
        grad, *grad.stride(), *columns, target, 0 if target is None else target.stride(0), coefficients, indices,
        n, num_classes, ignore_index, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return coefficients, indices
