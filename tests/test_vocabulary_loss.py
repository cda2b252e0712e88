"""ncops.distributed.linear_loss in real processes, against ncops.linear_loss of the whole head."""

from __future__ import annotations

import math

import pytest
import torch
from testing import IGNORE

import ncops
import ncops.distributed

pytestmark = pytest.mark.slow

N, D, V = 23, 12, 37
COLUMNS = ("lse", "gap", "max", "nll", "target_logit", "entropy", "mean", "var", "argmax", "target_rank", "valid")
OPTIONS = {
    "nll": {},
    "smoothed": {"label_smoothing": 0.1, "scale": 0.7},
    "every term": {"nll": 0.5, "z_loss": 1e-2, "entropy": -0.3},
    "no nll": {"nll": 0.0, "entropy": 0.2, "reduction": "sum"},
    "items": {"num_items": 7, "z_loss": 0.1},
    "weights": {"weights": True},
    "weights smoothed": {"weights": True, "label_smoothing": 0.2, "scale": 0.5},
    "weights smoothed none": {"weights": True, "label_smoothing": 1.0, "reduction": "none"},
    "capped": {"softcap": 1.5, "z_loss": 1e-2, "label_smoothing": 0.1},
    "none": {"reduction": "none", "z_loss": 1e-2},
}


def data(dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x, weight, bias = (torch.randn(*size, generator=g).to(dtype) for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=g)
    target[::5] = IGNORE
    x[5], x[10] = torch.nan, torch.inf  # they count nowhere
    return x, weight, bias, target, torch.rand(V, generator=g)


def options(name, class_weight):
    more = dict(OPTIONS[name])
    return {"class_weight": class_weight, **more} if more.pop("weights", False) else more


def numbers(loss, stats, inputs):
    """Loss, columns and gradients as plain values."""
    assert not stats.lse.requires_grad
    pull = loss if loss.ndim == 0 else (loss * torch.linspace(1, 2, len(loss))).sum()
    grads = torch.autograd.grad(128 * pull, inputs)  # the gradient of a mean is below what float16 holds
    found = {"loss": loss, **{name: getattr(stats, name) for name in COLUMNS if getattr(stats, name) is not None}}
    found |= dict(zip(("g_x", "g_weight", "g_bias"), grads, strict=False))
    return {name: t.detach().double().tolist() for name, t in found.items()}


def close(ours, expected, dtype, names):
    for name in names:
        a, b = torch.tensor(ours[name], dtype=torch.float64), torch.tensor(expected[name], dtype=torch.float64)
        size = max(1.0, b.nan_to_num(0, 0, 0).abs().max().item())
        atol = 64 * torch.finfo(dtype).eps * size
        torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def expected(dtype, name):
    x, weight, bias, target, class_weight = data(dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    return numbers(*ncops.linear_loss(*inputs, target, **options(name, class_weight)), inputs)


def on_shards(rank, starts, padding, given, dtype):
    """Every option; rows [starts[rank], starts[rank + 1]) and ``padding`` rows of rubbish behind the last of all."""
    x, weight, bias, target, class_weight = data(dtype)
    mine, last = slice(starts[rank], starts[rank + 1]), rank == len(starts) - 2
    weight, bias = weight[mine], bias[mine]
    if last:
        weight = torch.cat([weight, torch.full((padding, D), 1e4, dtype=dtype)])
        bias = torch.cat([bias, torch.full((padding,), 1e4, dtype=dtype)])
    where = {"vocab_start": starts[rank], "num_classes": V} if given else {"num_classes": V if padding else None}
    found = {}
    for name in OPTIONS:
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        result = ncops.distributed.linear_loss(*inputs, target, **where, **options(name, class_weight))
        assert result.stats.num_classes == V
        found[name] = numbers(*result, inputs)
        if padding and last:
            for which in ("g_weight", "g_bias"):
                assert not torch.tensor(found[name][which][-padding:]).any()
                del found[name][which][-padding:]
    return found


@pytest.mark.parametrize(
    ("starts", "padding", "given", "dtype"),
    [
        ((0, 19, V), 0, False, torch.float32),
        ((0, 5, 30, V), 4, True, torch.float32),
        ((0, V, V), 3, False, torch.float64),  # all of one rank's rows are padding
        ((0, 0, 12, V), 0, True, torch.bfloat16),  # one rank has none
        ((0, 19, V), 2, True, torch.float16),
    ],
    ids=["halves", "padded", "only-padding", "empty-bfloat16", "float16"],
)
def test_loss_columns_and_gradients_equal_unsharded(on_ranks, starts, padding, given, dtype):
    ranks = on_ranks(len(starts) - 1, on_shards, starts, padding, given, dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    for name in OPTIONS:
        want = expected(dtype, name)
        assert all(math.isfinite(v) for v in torch.tensor(want["loss"]).flatten())
        for found in (every[name] for every in ranks):
            close(found, want, exact, [n for n in want if not n.startswith("g_")])
            close(found, want, dtype, ["g_x"])
            assert str(found["loss"]) == str(ranks[0][name]["loss"]), "every rank has the same bits"
        for which in ("g_weight", "g_bias"):
            close({which: [row for every in ranks for row in every[name][which]]}, want, dtype, [which])


def with_dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x, weight, bias, target, class_weight = data()
    mesh = init_device_mesh("cpu", (2,))
    whole = [t.clone().requires_grad_() for t in (x, weight, bias)]
    more = {"class_weight": class_weight, "label_smoothing": 0.1}
    ncops.linear_loss(*whole, target, **more).loss.backward()
    w, b = (distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t in (weight, bias))
    own = x.clone().requires_grad_()
    ncops.distributed.linear_loss(own, w, b, target, **more).loss.backward()
    torch.testing.assert_close(own.grad, whole[0].grad)
    assert w.grad.placements == (Shard(0),)
    torch.testing.assert_close(w.grad.full_tensor(), whole[1].grad)
    torch.testing.assert_close(b.grad.full_tensor(), whole[2].grad)

    def loss(x, weight, bias):
        return ncops.distributed.linear_loss(x, weight, bias, target, **more).loss

    torch._dynamo.reset()
    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x, w, b), loss(x, w, b))


def test_dtensors(on_ranks):
    on_ranks(2, with_dtensors)


def compiled(rank):
    x, weight, bias, target, class_weight = data()
    start, stop = ((0, 19), (19, V))[rank]
    where = {"vocab_start": start, "num_classes": V}
    for name in ("every term", "weights smoothed", "none", "items"):

        def loss(*inputs, name=name):
            more = options(name, class_weight)
            return ncops.distributed.linear_loss(*inputs, target, **where, **more).loss.sum()

        def results(call):
            inputs = [t.clone().requires_grad_() for t in (x, weight[start:stop], bias[start:stop])]
            total = call(*inputs)
            return total, *torch.autograd.grad(total, inputs)

        torch._dynamo.reset()
        torch.testing.assert_close(results(torch.compile(loss, fullgraph=True, backend="aot_eager")), results(loss))


def test_compiled(on_ranks):
    on_ranks(2, compiled)


def in_autocast(rank):
    x, weight, bias, target, class_weight = data()
    mine = slice(0, 19) if rank == 0 else slice(19, V)
    more = {"class_weight": class_weight, "label_smoothing": 0.3}

    def results(*inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        loss = ncops.distributed.linear_loss(*inputs, target, **more).loss
        return loss, *torch.autograd.grad(loss, inputs)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = results(x, weight[mine], bias[mine])
    low = results(x.bfloat16(), weight[mine].bfloat16(), bias[mine].bfloat16())
    assert torch.equal(cast[0], low[0]) and all(t.dtype == torch.float32 for t in cast)
    for a, b in zip(cast[1:], low[1:], strict=True):
        torch.testing.assert_close(a, b.float(), rtol=2**-7, atol=2**-9)


def test_autocast(on_ranks):
    on_ranks(2, in_autocast)


def refusals(rank):
    x, weight, bias, target, class_weight = data()
    x, both = x.nan_to_num(0, 0, 0), torch.cat([class_weight, class_weight])

    def refused(message, *args, **more):
        with pytest.raises(ValueError, match=message):
            ncops.distributed.linear_loss(*args, **more)

    for name in ("nll", "z_loss", "entropy"):
        refused(f"linear_loss: {name} differs between ranks: 0.0 on rank 0, 1.0 on rank 1", x, weight, bias, target,
                **{name: rank})  # fmt: skip
    here = (x, weight, bias, target)
    refused("linear_loss: label_smoothing differs between ranks", *here, label_smoothing=0.1 * rank)
    refused("linear_loss: reduction differs between ranks: mean on rank 0, sum", *here, reduction=("mean", "sum")[rank])
    refused("linear_loss: num_items differs between ranks: 3.0 on rank 0, 4.0 on rank 1", *here,
            num_items=torch.tensor(3.0 + rank))  # fmt: skip
    refused("linear_loss: class_weight differs between ranks: values .* on rank 0, values", *here,
            class_weight=both + rank)  # fmt: skip
    refused(
        "linear_loss: class_weight differs between ranks: None on rank 0", *here, class_weight=both if rank else None
    )
    refused("linear_loss: target differs between ranks", *here[:3], target if rank else None, nll=0)
    refused(r"class_weight: expected shape \(V,\) = \(74,\), got \(37,\)", *here, class_weight=class_weight)
    start = {"vocab_start": V * rank, "num_classes": 2 * V}
    refused(r"rank 0: class_weight: expected shape \(V,\) = \(74,\), got \(37,\); .*rank 1: class_weight", *here,
            class_weight=class_weight, **start)  # fmt: skip
    # What one rank refuses every rank does.
    refused("linear_loss: rank 1: z_loss: expected a finite number, got nan", *here, z_loss=math.nan if rank else 0.0)
    refused("linear_loss: rank 1: target: expected the class of each row for nll=1.0, got None", *here[:3],
            None if rank else target)  # fmt: skip
    refused(
        "linear_loss: rank 0: weight: expected the dtype of x", x, weight if rank else weight.double(), bias, target
    )
    refused("linear_loss: rank 1: num_items: expected None with reduction='sum', got 3", *here,
            reduction="sum" if rank else "mean", num_items=3)  # fmt: skip
    refused("linear_loss: rank 1: label_smoothing: expected 0 with both class_weight and softcap", *here,
            class_weight=both, softcap=2.0, label_smoothing=0.1 * rank)  # fmt: skip
    refused("linear_loss: rank 1: num_classes: expected together with vocab_start=0", *here,
            vocab_start=0 if rank else None)  # fmt: skip
    refused("x, target: expected the same on every rank, got .* rows that differ.*ncops.linear_loss", x.roll(rank, 0),
            *here[1:])  # fmt: skip
    target[3] = 74
    refused(r"target: expected values in \[0, 74\) or ignore_index=-100, got 74 at row 3", x, weight, bias, target)


def test_every_rank_refuses_alike(on_ranks):
    on_ranks(2, refusals)


def test_without_a_process_group():
    x, weight, bias, target, _ = data()
    with pytest.raises(RuntimeError, match="linear_loss: torch.distributed is not initialised"):
        ncops.distributed.linear_loss(x, weight, bias, target)
