"""ncops.distributed.linear_topk in real processes: plain and padded shards, ties, DTensors, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from test_linear_topk import objective

import ncops
import ncops.distributed

N, D, V, K = 19, 8, 31, 6
OPTIONS = {"plain": {}, "capped": {"scale": 1.3, "softcap": 2.0}}
PARTS = ("values", "lse", "logprob")


def data(dtype=torch.float32):
    """Equal classes on both sides of a border, masked ones, a row that is poisoned."""
    g = torch.Generator().manual_seed(7)
    x, weight, bias = (torch.randn(*size, generator=g).to(dtype) for size in ((N, D), (V, D), (V,)))
    weight[[2, 20, 30]], bias[[2, 20, 30]] = weight[11].clone(), bias[11].clone() + 2
    bias[[3, 18]] = -math.inf
    return x, weight, bias


def numbers(found, inputs):
    """Results and gradients as plain values."""
    grads = torch.autograd.grad(objective(**{name: getattr(found, name) for name in PARTS}), inputs)
    every = found._asdict() | dict(zip(("g_x", "g_weight", "g_bias"), grads, strict=True))
    return {name: t.detach().double().tolist() for name, t in every.items()}


def close(ours, expected, dtype, names):
    for name in names:
        a, b = torch.tensor(ours[name], dtype=torch.float64), torch.tensor(expected[name], dtype=torch.float64)
        atol = 64 * torch.finfo(dtype).eps * max(1.0, b[b.isfinite()].abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def on_shards(rank, starts, padding, given, dtype):
    last, found = rank == len(starts) - 2, {}
    where = {"vocab_start": starts[rank], "num_classes": V} if given else {"num_classes": V if padding else None}
    for option, more in OPTIONS.items():
        x, *head = data(dtype)
        for i, t in enumerate(head):
            rubbish = torch.full((padding, *t.shape[1:]), 1e4, dtype=dtype)
            own = t[starts[rank] : starts[rank + 1]]
            head[i] = torch.cat([own, rubbish]) if last else own
        inputs = [t.detach().requires_grad_() for t in (x, *head)]
        result = numbers(ncops.distributed.linear_topk(*inputs, k=K, **where, **more), inputs)
        if padding and last:
            for name in ("g_weight", "g_bias"):
                assert not torch.tensor(result[name][-padding:]).any()
                del result[name][-padding:]
        found[option] = result
    return found


@pytest.mark.parametrize(
    ("starts", "padding", "given", "dtype"),
    [
        ((0, 17, V), 0, False, torch.float32),
        ((0, 4, 26, V), 4, True, torch.float32),  # some have fewer than k
        ((0, V, V), 3, False, torch.float64),  # all of one rank's rows are padding
        ((0, 0, 12, V), 0, True, torch.bfloat16),  # one rank has none
    ],
    ids=["halves", "padded", "only-padding", "empty-bfloat16"],
)
def test_results_and_gradients_equal_unsharded(on_ranks, starts, padding, given, dtype):
    ranks = on_ranks(len(starts) - 1, on_shards, starts, padding, given, dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for option, more in OPTIONS.items():
        inputs = [t.requires_grad_() for t in data(dtype)]
        want = numbers(ncops.linear_topk(*inputs, k=K, **more), inputs)
        found = [every[option] for every in ranks]
        for mine in found:
            assert mine["indices"] == want["indices"]
            close(mine, want, exact, PARTS)
            close(mine, want, dtype, ["g_x"])
            assert all(mine[name] == found[0][name] for name in PARTS), "every rank has the same bits"
        for name in ("g_weight", "g_bias"):
            close({name: [row for mine in found for row in mine[name]]}, want, dtype, [name])


def with_odd_rows(rank):
    """Classes whose ranks are not in their order; rows that are poisoned, certain, or wholly masked on one rank."""
    x, weight, bias = torch.zeros(4, 2), torch.zeros(8, 2), torch.zeros(8)
    weight[1, 1] = 1
    x[1, 1], x[2, 1], x[3, 1] = math.nan, 60, -60
    bias[4:] = -math.inf
    own = slice(4 * (1 - rank), 4 * (1 - rank) + 4)
    found = ncops.distributed.linear_topk(x, weight[own], bias[own], k=5, vocab_start=own.start, num_classes=8)
    expected = ncops.linear_topk(x, weight, bias, k=5)
    for mine, want in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, want, equal_nan=True, rtol=1e-6, atol=0)
    assert -1e-25 < found.logprob[2, 0] < 0
    nothing = ncops.distributed.linear_topk(
        x, weight[own], torch.full((4,), -math.inf), k=3, vocab_start=own.start, num_classes=8
    )
    assert (nothing.lse[[0, 2]] == -math.inf).all() and nothing.indices[0].tolist() == [0, 1, 2]
    bias[2] = math.nan  # of the second rank alone
    found = ncops.distributed.linear_topk(x, weight[own], bias[own], k=5, vocab_start=own.start, num_classes=8)
    assert found.lse.isnan().all() and (found.indices == -1).all()
    return True


def test_ranks_in_any_order_and_odd_rows(on_ranks):
    assert on_ranks(2, with_odd_rows) == [True, True]


def with_dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    whole = [t.requires_grad_() for t in data()]
    expected = ncops.linear_topk(*whole, k=K)
    objective(expected.values, expected.lse, expected.logprob).backward()
    x, *head = data()
    inputs = [x.requires_grad_(), *(distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t in head)]
    found = ncops.distributed.linear_topk(*inputs, k=K)
    assert torch.equal(found.indices, expected.indices)
    objective(found.values, found.lse, found.logprob).backward()
    torch.testing.assert_close(inputs[0].grad, whole[0].grad)
    for mine, want in zip(inputs[1:], whole[1:], strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), want.grad)
    return True


def test_dtensors(on_ranks):
    assert on_ranks(2, with_dtensors) == [True, True]


def refusals(rank):
    x, weight, bias = data()
    own = slice(0, 16) if rank == 0 else slice(16, V)

    def refused(message, **change):
        arguments = {"x": x, "weight": weight[own], "bias": bias[own], "k": 3} | change
        with pytest.raises(ValueError, match=message):
            ncops.distributed.linear_topk(**arguments)

    refused(r"k: expected at most the 31 classes of all ranks, got 32", k=32)
    refused("linear_topk: k differs between ranks: 2 on rank 0, 3 on rank 1", k=2 + rank)
    refused("rank 1: k: expected an integer of 1 or more, got 0", k=3 - 3 * rank)
    refused("x: expected the same on every rank", x=x if rank == 0 else x.flip(0))
    return True


def test_refusals_on_all_ranks_alike(on_ranks):
    assert on_ranks(2, refusals) == [True, True]


def compiled(rank):
    x, weight, bias = data()
    own = slice(0, 16) if rank == 0 else slice(16, V)
    where = {"vocab_start": own.start, "num_classes": V, "k": K}

    def run(x, w, b):
        return tuple(ncops.distributed.linear_topk(x, w, b, **where))

    found = torch.compile(run, fullgraph=True, backend="aot_eager")(x, weight[own], bias[own])
    for mine, want in zip(found, run(x, weight[own], bias[own]), strict=True):
        torch.testing.assert_close(mine, want, equal_nan=True)
    return True


def test_one_graph(on_ranks):
    assert on_ranks(2, compiled) == [True, True]


def test_no_process_group():
    with pytest.raises(RuntimeError, match="linear_topk: torch.distributed is not initialised"):
        ncops.distributed.linear_topk(torch.randn(2, 3), torch.randn(4, 3), k=1)
