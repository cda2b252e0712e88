"""ncops.distributed.linear_divergence in real processes: plain and padded shards, DTensors, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from test_divergences import columns, objective

import ncops
import ncops.distributed
from ncops.backends.planes import DIVERGENCES

pytestmark = pytest.mark.slow

N, D, E, V = 19, 8, 6, 31
NAMES = ("x", "weight", "other", "other_weight", "bias", "other_bias")
ROWS = ("x", "other")
OPTIONS = {"plain": {}, "capped": {"scale": 1.3, "softcap": 2.0, "beta": 0.7}}


def data(dtype=torch.float32, two=True):
    g = torch.Generator().manual_seed(7)
    sizes = {"x": (N, D), "weight": (V, D), "other": (N, E), "other_weight": (V, E), "bias": (V,), "other_bias": (V,)}
    tensors = {name: torch.randn(*size, generator=g).to(dtype) for name, size in sizes.items()}
    tensors["bias"][3], tensors["other_bias"][3] = -math.inf, -math.inf
    if not two:
        other = tensors["x"] + 0.3 * torch.randn(N, D, generator=g).to(dtype)
        tensors |= {"other": other, "other_weight": None, "other_bias": None}
    return tensors


def numbers(found, inputs):
    """Columns and gradients as plain values."""
    wanted = {f"g_{name}": t for name, t in inputs.items() if t is not None}
    grads = torch.autograd.grad(objective(columns(found)), list(wanted.values()))
    every = {**columns(found), "agree": found.agree, **dict(zip(wanted, grads, strict=True))}
    return {name: t.detach().double().tolist() for name, t in every.items()}


def leaves(tensors):
    return {name: None if t is None else t.detach().requires_grad_() for name, t in tensors.items()}


def close(ours, expected, dtype, names):
    for name in names:
        a, b = torch.tensor(ours[name], dtype=torch.float64), torch.tensor(expected[name], dtype=torch.float64)
        atol = 64 * torch.finfo(dtype).eps * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def on_shards(rank, starts, padding, given, dtype):
    """Every option; rows [starts[rank], starts[rank + 1]) and ``padding`` rows of rubbish behind the last of all."""
    last, found = rank == len(starts) - 2, {}
    where = {"vocab_start": starts[rank], "num_classes": V} if given else {"num_classes": V if padding else None}
    for two in (False, True):
        for option, more in OPTIONS.items():
            tensors = data(dtype, two)
            for name, t in tensors.items():
                if name not in ROWS and t is not None:
                    t = t[starts[rank] : starts[rank + 1]]
                    rubbish = torch.full((padding, *t.shape[1:]), 1e4, dtype=dtype)
                    tensors[name] = torch.cat([t, rubbish]) if last else t
            inputs = leaves(tensors)
            result = numbers(ncops.distributed.linear_divergence(**inputs, **where, **more), inputs)
            if padding and last:
                for name in [n for n in result if n[:2] == "g_" and n[2:] not in ROWS]:
                    assert not torch.tensor(result[name][-padding:]).any()
                    del result[name][-padding:]
            found[two, option] = result
    return found


@pytest.mark.parametrize(
    ("starts", "padding", "given", "dtype"),
    [
        ((0, 17, V), 0, False, torch.float32),
        ((0, 5, 26, V), 4, True, torch.float32),
        ((0, V, V), 3, False, torch.float64),  # all of one rank's rows are padding
        ((0, 0, 12, V), 0, True, torch.bfloat16),  # one rank has none
    ],
    ids=["halves", "padded", "only-padding", "empty-bfloat16"],
)
def test_columns_and_gradients_equal_unsharded(on_ranks, starts, padding, given, dtype):
    ranks = on_ranks(len(starts) - 1, on_shards, starts, padding, given, dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for two, option in ranks[0]:
        inputs = leaves(data(dtype, two))
        want = numbers(ncops.linear_divergence(**inputs, **OPTIONS[option]), inputs)
        found = [every[two, option] for every in ranks]
        for mine in found:
            close(mine, want, exact, [*DIVERGENCES, "agree"])
            close(mine, want, dtype, [f"g_{name}" for name in ROWS])
            assert all(mine[name] == found[0][name] for name in DIVERGENCES), "every rank has the same bits"
        for name in (n for n in want if n[:2] == "g_" and n[2:] not in ROWS):
            close({name: [row for mine in found for row in mine[name]]}, want, dtype, [name])


def with_dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    for two in (False, True):
        whole = leaves(data(two=two))
        objective(columns(ncops.linear_divergence(**whole))).backward()
        inputs = {
            name: t if t is None or name in ROWS else distribute_tensor(t, mesh, [Shard(0)])
            for name, t in data(two=two).items()
        }
        inputs = leaves(inputs)
        objective(columns(ncops.distributed.linear_divergence(**inputs))).backward()
        for name, t in inputs.items():
            if t is not None:
                grad = t.grad if name in ROWS else t.grad.full_tensor()
                torch.testing.assert_close(grad, whole[name].grad, msg=name)

    def refused(message, **change):
        with pytest.raises(ValueError, match=message):
            ncops.distributed.linear_divergence(**{**inputs, **change})

    plain = data()
    refused("other_weight: expected a DTensor placed like weight", other_weight=plain["other_weight"])
    refused("other_bias: expected a DTensor placed like weight",
            other_bias=distribute_tensor(plain["other_bias"], mesh, [Replicate()]))  # fmt: skip
    refused("bias: expected a plain tensor beside a plain weight", weight=plain["weight"],
            other_weight=plain["other_weight"])  # fmt: skip
    short = distribute_tensor(plain["other_weight"][:30], mesh, [Shard(0)])
    refused(r"other_weight: expected shape \(V, E\) = \(31, 6\), got \(30, 6\)", other_weight=short)
    refused("other: expected the same rows on every rank", other=distribute_tensor(plain["other"], mesh, [Shard(0)]))
    replicated = distribute_tensor(plain["weight"], mesh, [Replicate()])
    refused(r"every rank has all of it, ncops.linear_divergence\(x, weight.to_local\(\)", weight=replicated)


def test_dtensors(on_ranks):
    on_ranks(2, with_dtensors)


def compiled(rank):
    start, stop = ((0, 17), (17, V))[rank]
    where = {"vocab_start": start, "num_classes": V}
    for two in (False, True):
        tensors = {n: t if t is None or n in ROWS else t[start:stop] for n, t in data(two=two).items()}

        def divergences(where=where, **tensors):
            return tuple(ncops.distributed.linear_divergence(**tensors, **where, scale=0.7))

        def results(call, tensors=tensors):
            inputs = leaves(tensors)
            found = call(**inputs)
            total = sum(c.double().sin().sum() for c in found if c.is_floating_point())
            return *found, *torch.autograd.grad(total, [t for t in inputs.values() if t is not None])

        torch._dynamo.reset()
        graph = torch.compile(divergences, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(results(graph), results(divergences))
        agreed = divergences(**tensors)[-1]
        tensors["other"] = tensors["other"].clone()
        tensors["other"][6] -= rank * tensors["other"][6] * 1.5  # its largest logit stays where it is, on rank 0
        found = ncops.ops.LinearDivergence(*graph(**tensors))
        assert agreed[6] or two
        assert found.kl.isnan().nonzero().flatten().tolist() == [6] and not found.agree[6]


def test_compiled(on_ranks):
    on_ranks(2, compiled)


def refusals(rank):
    tensors = data()

    def refused(message, **change):
        with pytest.raises(ValueError, match=message):
            ncops.distributed.linear_divergence(**{**tensors, **change})

    other = tensors["other"]
    refused("linear_divergence: scale differs between ranks: 1.0 on rank 0, 2.0 on rank 1", scale=1.0 + rank)
    refused("linear_divergence: beta differs between ranks: 0.25 on rank 0, 0.5 on rank 1", beta=0.25 * (1 + rank))
    refused("linear_divergence: softcap differs between ranks: 30.0 on rank 0, None", softcap=None if rank else 30)
    refused("linear_divergence: columns of other differs between ranks: 6 on rank 0, 5 on rank 1",
            other=other[:, rank:], other_weight=tensors["other_weight"][:, rank:])  # fmt: skip
    one = {"other": tensors["x"], "other_bias": None}
    refused("linear_divergence: other_weight differs between ranks: None on rank 0, given on rank 1",
            **one, other_weight=tensors["weight"] if rank else None)  # fmt: skip
    # What one rank refuses every rank does.
    refused("linear_divergence: rank 1: beta: expected a number between 0 and 1", beta=0.5 + 0.5 * rank)
    refused(r"linear_divergence: rank 0: other_weight: expected shape \(V_local, E\) = \(31, 6\), got \(30, 6\)",
            other_weight=tensors["other_weight"][1 - rank :])  # fmt: skip
    refused("linear_divergence: rank 1: other_bias: expected None without other_weight", **one | {
            "other_weight": None, "other_bias": tensors["bias"] if rank else None})  # fmt: skip
    refused("num_classes: expected 1 to 62, the rows of all ranks, got 63", num_classes=63)
    for name in ROWS:
        other_row = tensors[name].clone()
        other_row[7] *= 1 - 2 * rank
        refused("x, other: expected the same on every rank, got 1 of 19 rows that differ, first row 7.*ncops.linear",
                **{name: other_row})  # fmt: skip
    leaf = tensors["x"].requires_grad_()
    found = ncops.distributed.linear_divergence(**tensors)
    (g,) = torch.autograd.grad(found.kl.sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        g.sum().backward()


def test_every_rank_refuses_alike(on_ranks):
    on_ranks(2, refusals)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="linear_divergence: torch.distributed is not initialised"):
        ncops.distributed.linear_divergence(**data())
