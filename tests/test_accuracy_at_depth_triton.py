"""Triton's sums over thousands of features: exact float32 products lose no more digits than torch's own.

A running sum takes what a block of features gives, block by block. The interpreter adds the products of a block at once
and in float32, so this is a test of the chain over blocks; tools/gpu_day also meets the split into three tf32 products.
"""

from __future__ import annotations

import pytest
import torch

from ncops.reference import pair_stats as reference
from ncops.reference.center import row_center

pytestmark = pytest.mark.triton
launch = pytest.importorskip("ncops.triton_kernels._launch")
if not launch.interpreted():
    pytest.skip("tests/gpu runs the compiled kernels", allow_module_level=True)

DEPTH = 2048
A_FEW_EPS = 2 * torch.finfo(torch.float32).eps


def worst(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).abs().max() / truth.abs().max())


def two_clusters(count: int, dim: int) -> torch.Tensor:
    """Rows far from their common mean: products of centred rows all have the sign of their clusters."""
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    return side[:, None] * torch.rand(dim) + 0.5 * torch.randn(count, dim)


@pytest.mark.parametrize("kernel", ["dot", "riesz"])
def test_pair_stats(kernel):
    from ncops.triton_kernels.pair_stats import pair_stats

    rows = two_clusters(14, DEPTH)
    with launch.override("pair_products", BLOCK_D=32), launch.override("pair_distances", BLOCK_D=32):
        ours = pair_stats(rows, kernel, None, 2.0, None, None, -100, False)[4]
    truth = reference.pair_stats(rows.double(), kernel, None, 2.0, None, None, -100, False)[4]
    if kernel == "dot":
        plain = rows @ rows.t()
    else:
        plain = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist") ** -2
    plain = plain.fill_diagonal_(float("-inf")).amax(1)
    assert worst(ours, truth) <= 2 * worst(plain, truth) + A_FEW_EPS


def test_nearest_class_mean():
    from ncops.triton_kernels import nearest_class_mean as nearest

    means = two_clusters(10, DEPTH)
    x = means[:7] + 0.1 * torch.randn(7, DEPTH)
    with launch.override("nearest_class_mean", BLOCK_D=32):
        config = launch.launch("nearest_class_mean", x.dtype, None)
        value, index = nearest.best_scores(config, x, means, None, False)
    origin = row_center(means, None, means.double().mean(0))
    rows, classes = x.double() - origin, means.double() - origin
    truth = (rows @ classes.t() - classes.square().sum(1) / 2).amax(1)
    plain = (rows.float() @ classes.float().t() - classes.float().square().sum(1) / 2).amax(1)
    assert worst(value[0], truth) <= 2 * worst(plain, truth) + A_FEW_EPS
    assert index[0].tolist() == list(range(7))


def test_linear_stats():
    from ncops.backends.planes import FLOATS
    from ncops.triton_kernels.linear_stats import linear_stats

    x, weight = torch.rand(6, DEPTH), torch.rand(9, DEPTH)
    with launch.override("linear_stats_16_classes", BLOCK_D=32):
        peak = linear_stats(x, weight, None, None, 1.0, 0.0, -100, False)[0][FLOATS.index("max")]
    truth = (x.double() @ weight.double().t()).amax(1)
    assert worst(peak, truth) <= 2 * worst((x @ weight.t()).amax(1), truth) + A_FEW_EPS


def test_pair_gradients_of_many_rows():
    """Two rows between two clusters, whose rows come one cluster after the other."""
    from ncops.triton_kernels._pair_backward import _apply

    count, dim, block = DEPTH, 8, 2
    near = torch.arange(count) < count // 2
    rows = torch.where(near, 1.0, -1.0)[:, None] + 0.1 * torch.randn(count, dim)
    rows[:block] *= 0.1
    origin = rows.double().mean(0).float()
    factors = torch.rand(block, count) * torch.where(near, 1, 0.1)
    close = torch.zeros(count // block, dtype=torch.int64)
    partial = torch.empty(block, dim)
    _apply[(1, 1, 1)](
        rows, *rows.stride(), None, origin, None, factors, None, close, partial,
        0, block, count, dim, count // block, count // block, BLOCK=block, BLOCK_D=dim, FOLD=256,
    )  # fmt: skip
    truth = (factors.double()[:, :, None] * (rows.double()[:block, None] - rows.double())).sum(1)
    plain = (factors[:, :, None] * (rows[:block, None] - rows)).sum(1)
    assert worst(partial, truth) <= 2 * worst(plain, truth) + A_FEW_EPS
