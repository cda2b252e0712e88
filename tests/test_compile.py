"""Every op under torch.compile: one graph without breaks for every batch size; and what autocast does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import ncops

C, D = 7, 5
SIZES = (8, 13, 21, 34)


class Call(NamedTuple):
    """A call of an op on ``x (N, D)`` and ``labels (N,)``: what came out, differentiable outputs first."""

    op: str
    run: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    differentiable: bool = True


def fixed(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, CENTER, BASIS, EYE = fixed(C, D), fixed(C), fixed(C, D, seed=2), fixed(3, D), torch.eye(D)


def accumulate(x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    state = (
        torch.zeros(C, dtype=torch.int64), torch.zeros(C, D), torch.zeros(C, D, dtype=torch.float64),
        torch.zeros(C, dtype=torch.float64), torch.zeros((), dtype=torch.int64),
    )  # fmt: skip
    ncops.accumulate_class_moments_(*state, x, labels)
    return state[1:4]


def columns(stats: ncops.LinearStats) -> tuple[Tensor, ...]:
    losses = (stats.loss("nll"), stats.loss("z_loss"), stats.loss("entropy"), stats.loss("margin"), stats.max_prob)
    losses += stats.loss("nll", label_smoothing=0.1), stats.logprob
    return (*losses, stats.target_rank, stats.correct)


def loss_and_columns(result: ncops.LinearLoss) -> tuple[Tensor, ...]:
    return result.loss, result.stats.lse.nan_to_num(), result.stats.argmax


def divergences(result: ncops.LinearDivergence) -> tuple[Tensor, ...]:
    return result.kl, result.js, result.other_entropy, result.agree


CALLS = (
    Call("class_moments", lambda x, y: ncops.class_moments(x, y, C, center=CENTER)[1:3]),
    Call("accumulate_class_moments_", accumulate, False),
    Call("class_scatter", lambda x, y: (ncops.class_scatter(x, y, CENTER), ncops.class_scatter(x))),
    Call("projected_sqnorms", lambda x, y: (ncops.projected_sqnorms(x, BASIS, y, CENTER),)),
    Call("linear_stats", lambda x, y: columns(ncops.linear_stats(x, WEIGHT, BIAS, y))),
    Call("linear_loss", lambda x, y: loss_and_columns(ncops.linear_loss(x, WEIGHT, BIAS, y, z_loss=0.1))),
    Call("linear_topk", lambda x, y: tuple(ncops.linear_topk(x, WEIGHT, BIAS, k=3))),
    Call("logit_stats", lambda x, y: columns(ncops.logit_stats(x, y.clamp_max(D - 1)))),
    Call("logit_divergence", lambda x, y: divergences(ncops.logit_divergence(x, x.sin()))),
    Call("linear_divergence", lambda x, y: divergences(ncops.linear_divergence(x, WEIGHT, x.sin(), None, BIAS))),
    Call("nearest_class_mean", lambda x, y: tuple(ncops.nearest_class_mean(x, CENTER)), False),
    Call("nearest_neighbors", lambda x, y: tuple(ncops.nearest_neighbors(x, CENTER, k=2))),
    Call("pair_stats", lambda x, y: tuple(ncops.pair_stats(x, "log_distance"))[:1]),
    Call("pinv_trace", lambda x, y: (ncops.pinv_trace(EYE, x),)),
    Call("solve_trace", lambda x, y: (ncops.solve_trace(EYE, x),)),
)
calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)


def batch(n: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, C, (n,), generator=torch.Generator().manual_seed(n))
    labels[::5] = -100
    return fixed(n, D, seed=n), labels


def results(call: Call, function: Callable, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Outputs and, where there is one, the gradient of their sum."""
    x = x.clone().requires_grad_(call.differentiable)
    outputs = function(x, labels)
    if not call.differentiable:
        return tuple(outputs)
    (gradient,) = torch.autograd.grad(sum(o.double().sum() for o in outputs if o.requires_grad), x)
    return (*(o.detach() for o in outputs), gradient)


def test_every_op_is_here():
    functions = {name for name in ncops.ops.__all__ if name.islower()}
    assert functions == {call.op for call in CALLS}


@calls
@pytest.mark.parametrize("mode", ["unknown", "declared"])
def test_one_graph_for_every_batch_size(call, mode):
    """torch compiles for the first size, once more when it sees that sizes vary, and never again."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call.run, fullgraph=True, dynamic=True if mode == "declared" else None, backend=counter)
    graphs = []
    for n in SIZES:
        x, labels = batch(n)
        expected = results(call, call.run, x, labels)
        found = results(call, compiled, x, labels)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs) or torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7, equal_nan=True)
        graphs.append(counter.frame_count)
    known = 0 if mode == "declared" else 1
    assert graphs[0] >= 1 and graphs[-1] == graphs[known], graphs


def check_autocast_is_not_felt(call):
    """Only ops whose logits a model would have made in the low precision follow autocast: as F.linear."""
    x, labels = batch(21)
    plain = results(call, call.run, x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(call, call.run, x, labels)
    if call.op == "linear_stats":
        half = columns(ncops.linear_stats(x.bfloat16(), WEIGHT.bfloat16(), BIAS.bfloat16(), labels))
        for ours, theirs in zip(inside, half, strict=False):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if call.op.startswith("linear_"):
        assert not torch.equal(inside[0], plain[0]) and inside[-1].dtype == torch.float32
        return
    for ours, theirs in zip(inside, plain, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@calls
@pytest.mark.parametrize("cpu_backend", ["cpu", "reference"])
def test_autocast_is_not_felt_inside(call, cpu_backend):
    with ncops.use_backend(cpu_backend):
        check_autocast_is_not_felt(call)


def test_a_number_that_changes_makes_no_graphs_where_x_carries_it():
    """torch makes tensors of numbers that tensors are multiplied with, and fixes those that a custom op takes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    x, labels = batch(21)

    def run(scale):
        return ncops.linear_stats(x * scale, WEIGHT, BIAS, labels).nll

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for scale in (1.0, 0.9, 0.8, 0.7):
        torch.testing.assert_close(compiled(scale), run(scale))
    assert counter.frame_count == 2


def test_a_number_that_is_a_tensor_is_refused_with_the_remedy():
    torch._dynamo.reset()
    run = torch.compile(lambda x, s: ncops.linear_stats(x, WEIGHT, scale=s).lse, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"scale: expected a Python number .*stats\(x \* scale"):
        run(batch(8)[0], torch.tensor(0.5))


def test_compiled_training_step():
    """A fused loss in a compiled model: batches of any size, one graph, the same parameters as eager training."""

    def train(compile: bool) -> tuple[list[Tensor], list[int]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, 16), nn.ReLU())
        head = nn.Linear(16, C)
        optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)

        def loss(x, labels):
            stats = ncops.linear_stats(model(x), head.weight, head.bias, labels)
            return stats.loss("nll") + 1e-3 * stats.loss("z_loss") - 0.01 * stats.loss("entropy")

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        step = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter) if compile else loss
        graphs = []
        for n in SIZES:
            optimizer.zero_grad()
            step(*batch(n)).backward()
            optimizer.step()
            graphs.append(counter.frame_count)
        return [p.detach() for p in (*model.parameters(), *head.parameters())], graphs

    (eager, none), (compiled, graphs) = train(False), train(True)
    assert none == [0] * len(SIZES) and graphs[0] >= 1 and graphs[-1] == graphs[0], graphs
    torch.testing.assert_close(compiled, eager)


def test_loss_under_autocast_is_close_to_cross_entropy():
    x, labels = batch(34)
    with torch.autocast("cpu", torch.bfloat16):
        ours = ncops.linear_stats(x, WEIGHT, BIAS, labels).loss("cross_entropy")
        theirs = F.cross_entropy(F.linear(x, WEIGHT, BIAS), labels)
    exact = F.cross_entropy(F.linear(x.double(), WEIGHT.double(), BIAS.double()), labels)
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= abs(theirs - exact) + 2e-3
