"""linear_loss: blocks of rows whose logits are kept until their columns are known, then turned into gradients.

Three products per block, torch's, as in linear_stats_backward.py, whose float32 sums these are; between them the
kernels of logit_stats read the float32 logits twice and write their gradient, of bfloat16 inputs in bfloat16 where
nothing else is made of it. A block's logits take 512 MB: with 128k classes 1024 rows, for which the running sums of
g_weight move 8 bytes per 2048 flops. Blocks that stay in an L2 cache would be 64 rows, whose sums move 8 bytes per 128
flops: 540 GB for 8192 rows of 4096 features, where here they are 34 GB and 18 bytes of every logit 19 GB more (not
measured).
"""

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..reference.linear_loss import column_gradients
from ._gradient_sums import GradientSums
from ._launch import device_of
from ._logit_columns import empty_columns
from .linear_stats_backward import add_product
from .logit_stats import logit_stats, logit_stats_backward

WORKSPACE_BYTES = 512 << 20


def linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, coefficients: Tensor, scale: float,
    softcap: float, ignore_index: int, allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``(floats, indices, g_x, g_weight, g_bias)``: planes, of rows that count somewhere, and gradients.

    Workspace: a block's logits and their gradient; for half precision float32 sums of g_weight. Rows that count
    nowhere are left out, which waits for the GPU to tell how many do.
    """
    v, dtype = weight.shape[0], compute_dtype(x.dtype)
    floats, indices = empty_columns(x)
    sums = GradientSums(x, weight, bias, scale, need_x, need_weight, need_bias)
    kept = (coefficients != 0).any(1).nonzero()[:, 0]
    step = max(1, WORKSPACE_BYTES // (v * dtype.itemsize))
    low = x.dtype if scale == 1 and not need_bias else dtype  # what the products take; a bias sums it in full
    with device_of(x):
        for rows in kept.split(step):
            y = None if target is None else target[rows]
            z = _logits(x[rows], weight, bias, scale, dtype)
            planes = logit_stats(z, y, 1.0, softcap, ignore_index)
            floats[:, rows], indices[:, rows] = planes
            if need_x or need_weight or need_bias:
                grad = column_gradients(coefficients[rows], planes[0])
                g_z = logit_stats_backward(grad, *planes, z, y, 1.0, softcap, ignore_index, low)
                sums.add(rows, g_z, (grad != 0).any(0))
    return floats, indices, *sums.results()


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
    z = x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
    add_product(z, x, weight.mT, True)
    if scale != 1:
        z *= scale
    return z if bias is None else z.add_(bias)
