"""linear_loss: blocks of rows whose logits are kept until their columns are known, then turned into gradients.

Three products per block, torch's, as in linear_stats_backward.py, whose sums these are; between them the kernels of
logit_stats read the float32 logits twice and write their gradient. A block's logits take 256 MB: with 128k classes 512
rows, for which the running sums of g_weight move as many bytes as 85 flops each (docs/gpu.md; not measured).
"""

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..reference.linear_loss import column_gradients
from ._launch import device_of
from ._logit_columns import empty_columns
from .linear_stats_backward import add_parts, add_product, parts_of
from .logit_stats import logit_stats, logit_stats_backward

WORKSPACE_BYTES = 256 << 20
CLASSES = 16384  # multiplied at a time


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, coefficients: Tensor, scale: float,
    softcap: float, ignore_index: int, allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(floats, indices, g_x, g_weight, g_bias)``: planes, of rows that count somewhere, and gradients.

    Workspace: a block's logits and their gradient; for half precision float32 sums of g_weight. Rows that count
    nowhere are left out, which waits for the GPU to tell how many do.
    """
    d, v, dtype = x.shape[1], weight.shape[0], compute_dtype(x.dtype)
    floats, indices = empty_columns(x)
    g_x = x.new_zeros(x.shape if need_x else 0)
    sums = weight.new_zeros(weight.shape if need_weight else 0, dtype=dtype)
    g_bias = weight.new_zeros(v if need_bias else 0, dtype=torch.float64)
    kept = (coefficients != 0).any(1).nonzero()[:, 0]
    step = max(1, WORKSPACE_BYTES // (v * dtype.itemsize))
    with device_of(x):
        for rows in kept.split(step):
            own, y = x[rows], None if target is None else target[rows]
            z = _logits(own, weight, bias, scale, dtype)
            planes = logit_stats(z, y, 1.0, softcap, ignore_index)
            floats[:, rows], indices[:, rows] = planes
            if not (need_x or need_weight or need_bias):
                continue
            grad = column_gradients(coefficients[rows], planes[0])
            g_z = logit_stats_backward(grad, *planes, z, y, 1.0, softcap, ignore_index)
            if need_bias:
                g_bias += g_z.sum(0, dtype=torch.float64)
            block = g_z.new_zeros((len(rows), d) if need_x else 0)
            counted = parts_of(own.where((grad != 0).any(0)[:, None], 0)) if need_weight else ()
            for start in range(0, v, CLASSES):
                these = slice(start, start + CLASSES)
                part = parts_of(scale * g_z[:, these], x.dtype)
                if need_x:
                    add_parts(block, part, parts_of(weight[these]), False)
                if need_weight:
                    add_parts(sums[these], tuple(p.mT for p in part), counted, False)
            if need_x:
                g_x[rows] = block.to(x.dtype)
    return floats, indices, g_x, sums.to(weight.dtype), g_bias.to((x if bias is None else bias).dtype)


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    z = x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
    add_product(z, x, weight.mT, True)
    z *= scale
    return z if bias is None else z.add_(bias)
