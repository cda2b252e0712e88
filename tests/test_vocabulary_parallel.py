"""ncops.distributed.linear_stats in real processes: plain and padded shards, DTensors, gradients, errors."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from logit_columns import COEFFICIENTS, FLOATS
from testing import IGNORE

import ncops
import ncops.distributed

pytestmark = pytest.mark.slow

N, D, V = 23, 12, 37
COLUMNS = (*FLOATS, "argmax", "second_index", "target_rank", "valid", "margin", "correct", "max_prob")


def data(dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(*size, generator=g).to(dtype) for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=g)
    target[::5] = IGNORE
    return x, weight, bias, target


def columns(stats):
    return {name: getattr(stats, name) for name in COLUMNS if getattr(stats, name) is not None}


def objective(stats):
    return sum(COEFFICIENTS[name] * getattr(stats, name).double().sin().sum() for name in FLOATS)


def numbers(results):
    return {name: t.detach().double().tolist() for name, t in results.items()}


def close(ours, expected, dtype, names=None):
    for name in names or expected:
        a, b = torch.tensor(ours[name], dtype=torch.float64), torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(a, b, rtol=0, atol=64 * torch.finfo(dtype).eps * max(1.0, b.abs().max()), msg=name)


def expected(dtype, softcap):
    x, weight, bias, target = data(dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    stats = ncops.linear_stats(*inputs, target, scale=0.7, softcap=softcap)
    grads = torch.autograd.grad(objective(stats), inputs)
    return numbers(columns(stats)), numbers(dict(zip(("x", "weight", "bias"), grads, strict=True)))


def on_shards(rank, starts, padding, given, dtype, softcap):
    """Rows [starts[rank], starts[rank + 1]) and ``padding`` rows of rubbish behind the last of all."""
    x, weight, bias, target = data(dtype)
    mine = slice(starts[rank], starts[rank + 1])
    weight, bias = weight[mine], bias[mine]
    if rank == len(starts) - 2:
        weight = torch.cat([weight, torch.full((padding, D), 1e4, dtype=dtype)])
        bias = torch.cat([bias, torch.full((padding,), 1e4, dtype=dtype)])
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    where = {"vocab_start": starts[rank], "num_classes": V} if given else {"num_classes": V if padding else None}
    stats = ncops.distributed.linear_stats(*inputs, target, scale=0.7, softcap=softcap, **where)
    assert stats.num_classes == V
    grads = torch.autograd.grad(objective(stats), inputs)
    if padding and rank == len(starts) - 2:
        assert not grads[1][-padding:].any() and not grads[2][-padding:].any()
        grads = grads[0], grads[1][:-padding], grads[2][:-padding]
    return numbers(columns(stats)), numbers(dict(zip(("x", "weight", "bias"), grads, strict=True)))


@pytest.mark.parametrize(
    ("starts", "padding", "given", "dtype", "softcap"),
    [
        ((0, 8, 19, V), 0, False, torch.float32, None),
        ((0, 5, 30, V), 4, True, torch.float32, None),
        ((0, V, V), 3, False, torch.float64, None),  # all of one rank's rows are padding
        ((0, 0, 12, V), 0, True, torch.bfloat16, None),  # one rank has none
        ((0, 19, V), 2, True, torch.float32, 1.5),
    ],
    ids=["uneven", "padded", "only-padding", "empty-bfloat16", "capped"],
)
def test_every_column_and_gradient_equals_unsharded(on_ranks, starts, padding, given, dtype, softcap):
    ranks = on_ranks(len(starts) - 1, on_shards, starts, padding, given, dtype, softcap)
    want, grads = expected(dtype, softcap)
    for found, _ in ranks:
        assert found == ranks[0][0], "every rank has the same bits"
        assert found.keys() == want.keys()
        close(found, want, torch.float32 if dtype == torch.bfloat16 else dtype)
    for _, found in ranks:
        close(found, grads, dtype, ["x"])
    for name in ("weight", "bias"):
        close({name: [row for _, found in ranks for row in found[name]]}, grads, dtype, [name])


def with_dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    x, weight, bias, target = data()
    whole = [t.clone().requires_grad_() for t in (x, weight, bias)]
    reference = ncops.linear_stats(*whole, target)
    reference.loss("nll").backward()
    w, b = (distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t in (weight, bias))
    own = x.clone().requires_grad_()
    stats = ncops.distributed.linear_stats(own, w, b, target)
    stats.loss("nll").backward()
    for name in ("nll", "entropy", "target_rank", "argmax"):
        torch.testing.assert_close(getattr(stats, name), getattr(reference, name), msg=name)
    assert w.grad.placements == (Shard(0),) and w.grad.shape == (V, D)
    torch.testing.assert_close(w.grad.full_tensor(), whole[1].grad)
    torch.testing.assert_close(b.grad.full_tensor(), whole[2].grad)
    torch.testing.assert_close(own.grad, whole[0].grad)
    everywhere = distribute_tensor(x, mesh, [Replicate()])
    padded = ncops.distributed.linear_stats(everywhere, w.detach(), b.detach(), num_classes=30)  # rows beyond are none
    torch.testing.assert_close(padded.lse, ncops.linear_stats(x, weight[:30], bias[:30]).lse)

    def refused(message, *args, **kwargs):
        with pytest.raises(ValueError, match=message):
            ncops.distributed.linear_stats(*args, **kwargs)

    refused("weight: expected a DTensor sharded by rows", x, distribute_tensor(weight, mesh, [Shard(1)]))
    refused("weight: expected a DTensor sharded by rows", x, distribute_tensor(weight, mesh, [Replicate()]))
    refused("x: expected the same rows on every rank", distribute_tensor(x, mesh, [Shard(0)]), w)
    refused("bias: expected a DTensor placed like weight", x, w, bias)
    refused("group, vocab_start: expected None", x, w, b, vocab_start=3, num_classes=V)
    refused("num_classes: expected 1 to 37", x, w, b, num_classes=40)
    replicated = distribute_tensor(weight, mesh, [Replicate()])
    refused(r"every rank has all of it, ncops.linear_stats\(x, weight.to_local\(\), ...\)", x, replicated)
    for args, message in (
        ((x, w, None, target), r"weight: .*FSDP, fully_shard.*weight\.full_tensor\(\).*ncops\.distributed\.linear"),
        ((x, replicated), r"weight: expected a plain tensor, got a DTensor .*: weight.to_local\(\) is the whole one"),
        ((everywhere, weight), r"x: expected a plain tensor, got a DTensor .*: x.to_local\(\) is the whole one"),
        ((distribute_tensor(x, mesh, [Shard(0)]), weight), r"x: .* got a DTensor .*: x.full_tensor\(\) gathers it"),
        ((x, weight, b), r"bias: expected a plain tensor, got a DTensor .*: bias.full_tensor\(\) gathers it"),
        ((x, weight, None, distribute_tensor(target, mesh, [Replicate()])), r"target: .* target.to_local\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ncops.linear_stats(*args)
    refused(r"x: expected the same rows on every rank.*x.full_tensor", distribute_tensor(x, mesh, [Shard(0)]), weight)


def test_dtensors(on_ranks):
    on_ranks(2, with_dtensors)


def in_subgroups(rank):
    """Two groups of two ranks, each with rows of its own: data-parallel times vocabulary-parallel."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    x, weight, bias, target = data()
    mine, half = slice(rank // 2, None, 2), rank % 2
    w, b = weight[19 * half : 19 + 18 * half], bias[19 * half : 19 + 18 * half]
    stats = ncops.distributed.linear_stats(x[mine], w, b, target[mine], group=groups[rank // 2])
    truth = ncops.linear_stats(x[mine], weight, bias, target[mine])
    for name in ("lse", "nll", "var", "target_rank"):
        torch.testing.assert_close(getattr(stats, name), getattr(truth, name), msg=name)


def test_groups(on_ranks):
    on_ranks(4, in_subgroups)


def train(rank, size):
    """A classifier trained with its rows sharded, or whole where size is 1: losses of the steps."""
    x, weight, bias, target = data()
    each = -(-V // size)
    w, b = (torch.nn.Parameter(t[rank * each : (rank + 1) * each].clone()) for t in (weight, bias))
    body = torch.nn.Linear(D, D)
    torch.manual_seed(0)
    torch.nn.init.normal_(body.weight, std=0.3)
    torch.nn.init.zeros_(body.bias)
    optimizer = torch.optim.SGD([w, b, *body.parameters()], lr=0.5)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        features = body(x).view(1, N, D)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            stats = ncops.distributed.linear_stats(features, w, b, target.view(1, N))
        loss = stats.loss("nll") + 1e-3 * stats.loss("z_loss") - 0.01 * stats.loss("entropy")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_with_shards_follows_training_without(on_ranks):
    two, one = on_ranks(2, train, 2), on_ranks(1, train, 1)
    assert two[0] == two[1]
    assert two[0][-1] < 0.7 * two[0][0]
    torch.testing.assert_close(torch.tensor(two[0]), torch.tensor(one[0]), rtol=0.02, atol=0)


def refusals(rank):
    x, weight, bias, target = data()
    call = ncops.distributed.linear_stats

    def refused(message, *args, **kwargs):
        with pytest.raises(ValueError, match=message):
            call(*args, **kwargs)

    refused(r"weight: expected shape \(V_local, D\) = \(37, 11\)", x[:, :11], weight)
    refused("bias: expected the dtype of x", x, weight, bias.double())
    target[3] = 74
    refused(r"target: expected values in \[0, 74\) or ignore_index=-100, got 74 at row 3", x, weight, None, target)
    refused("num_classes: expected together with vocab_start=0", x, weight, vocab_start=0)
    refused("num_classes: expected 1 to 74, the rows of all ranks, got 75", x, weight, num_classes=75)
    refused("vocab_start, num_classes: expected a start of 0 or more", x, weight, vocab_start=-1, num_classes=5)
    refused("num_classes: expected 1 to 0", x, weight[:0])
    refused("linear_stats: rank 1: weight: expected the dtype of x", x, weight.double() if rank else weight)
    refused("linear_stats: rows of x differs between ranks: 23 on rank 0, 22 on rank 1", x[rank:], weight)
    start = {"vocab_start": V * rank, "num_classes": 2 * V}
    refused("linear_stats: rows of x differs between ranks: 23 on rank 0, 22 on rank 1", x[rank:], weight, **start)
    target[3] = 5
    refused("linear_stats: target differs between ranks: given on rank 0, None on rank 1", x, weight, None,
            None if rank else target)  # fmt: skip
    refused("linear_stats: softcap differs between ranks: 30.0 on rank 0, None on rank 1", x, weight,
            softcap=None if rank else 30)  # fmt: skip
    refused("linear_stats: scale differs between ranks: 1.0 on rank 0, 2.0 on rank 1", x, weight, scale=1.0 + rank)
    refused("linear_stats: ignore_index differs between ranks: 0 on rank 0, 1 on rank 1", x, weight, None, target,
            ignore_index=rank)  # fmt: skip
    refused("linear_stats: dtype of x differs", *(t.to((torch.float64, torch.float32)[rank]) for t in (x, weight)))
    leaf = x.clone().requires_grad_()
    y = call(leaf, weight).lse.square().sum()
    (g,) = torch.autograd.grad(y, leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        g.sum().backward()


def data_sharded(rank):
    """Every rank has rows of its own, as with FSDP: the same error everywhere, whatever tells the rows apart."""
    x, weight, _, target = data()
    own, theirs = x.roll(rank, 0), target.roll(rank, 0)
    half = weight[19 * rank : 19 + 18 * rank]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for rows, labels, message in (
            (own, theirs, "x, target: expected the same on every rank, got .* of 23 rows that.*FSDP.*full_tensor"),
            (own, None, "x, target: expected the same on every rank, got 2[0-3] of 23 rows"),
            (x, theirs, "x, target: expected the same on every rank"),
            (x, target.clone().index_fill_(0, torch.tensor([7]), rank), "got 1 of 23 rows that differ, first row 7"),
        ):
            with pytest.raises(ValueError, match=message):
                ncops.distributed.linear_stats(rows.to(dtype), half.to(dtype), None, labels)
        # Ranks that computed x each for themselves have other roundings, and that is no other row.
        nearly = (x * (1 + rank * torch.finfo(dtype).eps)).to(dtype)
        nearly[2] = torch.nan
        nearly[4] = 0
        assert ncops.distributed.linear_stats(nearly, half.to(dtype), None, target).lse[2].isnan()


def test_ranks_with_other_rows_are_refused(on_ranks):
    on_ranks(2, data_sharded)


def test_errors_name_the_argument_on_every_rank(on_ranks):
    on_ranks(2, refusals)


def test_without_a_process_group():
    x, weight, _, _ = data()
    with pytest.raises(RuntimeError, match="torch.distributed is not initialised"):
        ncops.distributed.linear_stats(x, weight)


def compiled(rank, given, fullgraph):
    """Loss and gradients of a compiled call as an eager one has them; what a graph says of bad targets and rows."""
    x, weight, bias, target = data()
    start, stop = ((0, 19), (19, V))[rank]
    where = {"vocab_start": start, "num_classes": V} if given else {}

    def loss(x, weight, bias, target):
        stats = ncops.distributed.linear_stats(x, weight, bias, target, scale=0.7, **where)
        return stats.loss("nll") + stats.loss("z_loss") - stats.loss("entropy"), stats.nll, stats.target_rank

    torch._dynamo.reset()
    graph = torch.compile(loss, fullgraph=fullgraph, backend="aot_eager")

    def results(call):
        inputs = [t.clone().requires_grad_() for t in (x, weight[start:stop], bias[start:stop])]
        total, *columns = call(*inputs, target)
        return *columns, *torch.autograd.grad(total, inputs)

    torch.testing.assert_close(results(graph), results(loss))
    if given:
        target[2], other = V, x.clone()
        other[4] += rank * 10
        _, nll, ranks = graph(other, weight[start:stop], bias[start:stop], target)
        assert nll.isnan().nonzero().flatten().tolist() == [2, 4] and ranks[[2, 4]].tolist() == [-1, -1]


@pytest.mark.parametrize(("given", "fullgraph"), [(True, True), (False, False)])
def test_compiled(on_ranks, given, fullgraph):
    on_ranks(2, compiled, given, fullgraph)


def compiled_with_dtensors(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    x, weight, _, target = data()
    weight = distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(0)])

    def nll(x, weight):
        return ncops.distributed.linear_stats(x, weight, None, target).nll

    torch._dynamo.reset()
    graph = torch.compile(nll, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(x, weight), nll(x, weight))


def test_compiled_with_dtensors(on_ranks):
    on_ranks(2, compiled_with_dtensors)


def sizes_unknown(rank):
    x, weight, *_ = data()
    torch._dynamo.reset()
    graph = torch.compile(lambda x, w: ncops.distributed.linear_stats(x, w).lse, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.UserError, match="data-dependent"):
        graph(x, weight)


def test_one_graph_needs_the_sizes(on_ranks):
    on_ranks(2, sizes_unknown)
