"""The gradient of a row's logits from the gradients of its columns: folded once per row, then applied per tile.

With p = softmax(z), everything that multiplies a softmax is one affine function of z, so a tile costs one exponential
per logit whatever columns the loss was made of. The columns of the argmax and of the target are written by hand: where
p_j - 1 is meant, ``expm1(-gap)`` stands, which at margin 30 is -9e-14 where the float32 subtraction gives 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._logit_state import UNDERFLOW, expm1

COEFFICIENTS, INDICES = 10, 4
BLOCK, WARPS = 256, 4


@triton.jit
def _times(gradient, value):
    """The product, 0 where the gradient is 0 even if the value is not finite."""
    return tl.where(gradient == 0, 0, gradient * value)


@triton.jit(do_not_specialize=["num_rows", "num_classes", "ignore_index"])
def fold(
    gradients, gap, max, entropy, mean, argmax, second_index, target, stride_target, coefficients, indices,
    num_rows, num_classes, ignore_index,
    HAS_TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``gradients (9, N)`` in the order of the columns -> ``coefficients (10, N)`` and ``indices (4, N)``, in float64.

    The indices are argmax, second index, target unless it is the argmax (-1 for none), and the row's kind: 0 without
    gradient, 1 with, 2 with one of a spoilt row.
    """
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = row < num_rows
    plane = tl.cast(num_rows, tl.int64)
    g_lse = tl.load(gradients + row, here, 0).to(tl.float64)
    g_gap = tl.load(gradients + plane + row, here, 0).to(tl.float64)
    g_max = tl.load(gradients + 2 * plane + row, here, 0).to(tl.float64)
    g_second = tl.load(gradients + 3 * plane + row, here, 0).to(tl.float64)
    g_own = tl.load(gradients + 4 * plane + row, here, 0).to(tl.float64)
    g_nll = tl.load(gradients + 5 * plane + row, here, 0).to(tl.float64)
    g_entropy = tl.load(gradients + 6 * plane + row, here, 0).to(tl.float64)
    g_mean = tl.load(gradients + 7 * plane + row, here, 0).to(tl.float64)
    g_var = tl.load(gradients + 8 * plane + row, here, 0).to(tl.float64)
    at_top = tl.load(argmax + row, here, 0)
    own = tl.full([BLOCK], -1, tl.int64)
    if HAS_TARGET:
        y = tl.load(target + row * stride_target, here, ignore_index).to(tl.int64)
        inside = (y != ignore_index) & (y >= 0) & (y < num_classes)
        own = tl.where(inside, y, -1)
    g_own = tl.where(own >= 0, g_own, 0)
    g_nll = tl.where(own >= 0, g_nll, 0)
    active = (g_lse != 0) | (g_gap != 0) | (g_max != 0) | (g_second != 0) | (g_own != 0)
    active = active | (g_nll != 0) | (g_entropy != 0) | (g_mean != 0) | (g_var != 0)

    row_gap = tl.load(gap + row, here, 0).to(tl.float64)
    offset = tl.load(entropy + row, here, 0).to(tl.float64) - row_gap
    peak = tl.load(max + row, here, 0).to(tl.float64)
    share, lost = tl.exp(-row_gap), expm1(-row_gap)
    total = g_lse + g_gap + g_nll
    # Terms that multiply 1 are collected by hand, so that those which cancel never meet in floating point.
    hit = own == at_top
    in_peak = tl.where(
        hit,
        _times(total, lost) + (g_lse + g_own + g_max),
        _times(g_gap, lost) + _times(g_lse + g_nll, share) + g_max,
    )
    in_peak -= _times(g_entropy, share * offset)

    tl.store(coefficients + row, tl.where(peak == float("-inf"), 0, peak), here)
    tl.store(coefficients + plane + row, _times(total, share), here)
    tl.store(coefficients + 2 * plane + row, _times(g_entropy, share), here)
    tl.store(coefficients + 3 * plane + row, tl.where(g_entropy == 0, 0, offset), here)
    tl.store(coefficients + 4 * plane + row, in_peak, here)
    tl.store(coefficients + 5 * plane + row, g_own - g_nll, here)
    tl.store(coefficients + 6 * plane + row, g_second, here)
    tl.store(coefficients + 7 * plane + row, g_mean / num_classes, here)
    tl.store(coefficients + 8 * plane + row, g_var * 2 / num_classes, here)
    tl.store(coefficients + 9 * plane + row, tl.load(mean + row, here, 0), here)
    tl.store(indices + row, at_top.to(tl.int32), here)
    tl.store(indices + plane + row, tl.load(second_index + row, here, -1).to(tl.int32), here)
    tl.store(indices + 2 * plane + row, tl.where(hit, -1, own).to(tl.int32), here)
    tl.store(indices + 3 * plane + row, tl.where(active, tl.where(at_top < 0, 2, 1), 0), here)


@triton.jit
def logit_gradient(z, column, row, coefficients, indices, num_rows):
    """Gradient of a tile of logits ``z`` for classes ``column`` and existing rows ``row``; without ``scale``."""
    plane = tl.cast(num_rows, tl.int64)
    column = column[None, :]
    peak = tl.load(coefficients + row)[:, None]
    slope = tl.load(coefficients + plane + row)[:, None]
    bend = tl.load(coefficients + 2 * plane + row)[:, None]
    offset = tl.load(coefficients + 3 * plane + row)[:, None]
    below = tl.maximum(z - peak, UNDERFLOW)
    gradient = tl.exp(below) * (slope - bend * (below + offset))
    at_top = tl.load(indices + row)[:, None]
    gradient = tl.where(column == at_top, tl.load(coefficients + 4 * plane + row)[:, None], gradient)
    at_second = tl.load(indices + plane + row)[:, None]
    gradient += tl.where(column == at_second, tl.load(coefficients + 6 * plane + row)[:, None], 0)
    own = tl.load(indices + 2 * plane + row)[:, None]
    gradient += tl.where(column == own, tl.load(coefficients + 5 * plane + row)[:, None], 0)
    g_mean = tl.load(coefficients + 7 * plane + row)
    g_var = tl.load(coefficients + 8 * plane + row)
    if tl.max(((g_mean != 0) | (g_var != 0)).to(tl.int32), 0) > 0:  # the usual losses have neither
        mean = tl.load(coefficients + 9 * plane + row)
        gradient += g_mean[:, None] + tl.where(g_var[:, None] == 0, 0, g_var[:, None] * (z - mean[:, None]))
    kind = tl.load(indices + 3 * plane + row)[:, None]
    return tl.where(kind == 1, gradient, tl.where(kind == 0, 0, float("nan")).to(gradient.dtype))


def row_coefficients(
    gradients: tuple[Tensor, ...], saved: tuple[Tensor, ...], target: Tensor | None, num_classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The ``coefficients`` and ``indices`` of ``fold``, from the columns' gradients and what the forward kept."""
    n = saved[0].shape[0]
    stacked = torch.stack([g if g.numel() == n else g.new_zeros(n) for g in gradients])
    coefficients = stacked.new_empty((COEFFICIENTS, n))
    indices = stacked.new_empty((INDICES, n), dtype=torch.int32)
    gap, peak, entropy, mean, argmax, second_index = (s.contiguous() for s in saved)
    fold[(triton.cdiv(n, BLOCK),)](
        stacked, gap, peak, entropy, mean, argmax, second_index, target, 0 if target is None else target.stride(0),
        coefficients, indices, n, num_classes, ignore_index, HAS_TARGET=target is not None,
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return coefficients, indices


def fold_signature():
    """``ahead_of_time`` of the fold."""
    for name in ("fp32", "fp64"):
        floats = ("gradients", "gap", "max", "entropy", "mean", "coefficients")
        signature = {
            **dict.fromkeys(floats, f"*{name}"), **dict.fromkeys(("argmax", "second_index", "target"), "*i64"),
            "indices": "*i32", "num_rows": "i32", "num_classes": "i32", "ignore_index": "i32",
        }  # fmt: skip
        constexprs = {"stride_target": 1, "HAS_TARGET": True, "BLOCK": BLOCK}
        yield f"logit_gradient_fold[{name}]", fold, signature, constexprs, {"num_warps": WARPS, "num_stages": 2}
