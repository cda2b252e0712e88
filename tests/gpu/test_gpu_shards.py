"""Columns of linear_stats put together from shards of the classes, and from ranks with a GPU each."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from logit_columns import problem
from op_cases import gpu_backends
from test_vocabulary_shards import assert_same, sharded, whole
from testing import dtypes

import ncops
import ncops.distributed


def on_gpu(*tensors):
    return [t.cuda() for t in tensors]


@dtypes
@pytest.mark.parametrize("rows", [1, 19, 300])
@gpu_backends("linear_stats")
def test_shards_equal_all_classes(gpu_backend, rows, dtype):
    x, weight, bias, target = on_gpu(*problem(rows, 72, 1000, dtype))
    with ncops.use_backend(gpu_backend):
        assert_same(sharded(x, weight, bias, target, (300, 650)), whole(x, weight, bias, target), eps=16)


@gpu_backends("linear_stats")
def test_targets_are_formed_as_their_rivals(gpu_backend):
    """Every row's target is its argmax, then its second: ranks are 0 and 1 only if the logits have the same bits."""
    x, weight, bias, target = on_gpu(*problem(300, 72, 1000, torch.float32))
    with ncops.use_backend(gpu_backend):
        best = whole(x, weight, bias, target)
        for name, rank in (("argmax", 0), ("second_index", 1)):
            ours = sharded(x, weight, bias, best[name], (300, 650))
            assert (ours["target_rank"] == rank).all()


def one_gpu_each(rank):
    torch.cuda.set_device(rank)
    group = dist.new_group(backend="nccl")
    torch.manual_seed(0)
    x, weight, bias, target = on_gpu(*problem(64, 72, 500, torch.float32))
    mine = slice(rank * 250, rank * 250 + 250)
    inputs = [t.requires_grad_() for t in (x, weight[mine].clone(), bias[mine].clone())]
    stats = ncops.distributed.linear_stats(*inputs, target, group=group)
    stats.loss("nll").backward()
    truth = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    every = ncops.linear_stats(*truth, target)
    every.loss("nll").backward()
    torch.testing.assert_close(stats.nll, every.nll)
    assert torch.equal(stats.target_rank, every.target_rank)
    torch.testing.assert_close(inputs[0].grad, truth[0].grad)
    torch.testing.assert_close(inputs[1].grad, truth[1].grad[mine])


def test_ranks_with_a_gpu_each(on_ranks):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    on_ranks(2, one_gpu_each)
