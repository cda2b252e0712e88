"""linear_topk: torch.topk of dense logits in float64, ties and masked classes in order, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from logit_columns import capped, dense
from testing import (
    LAYOUTS,
    assert_accurate,
    assert_compiles,
    assert_deterministic,
    block_rows,
    dtypes,
    exact,
    interpreter_blocks,
    layouts,
    plain,
    randn,
)

import ncops

INF = math.inf
OPTIONS = {"plain": {}, "scaled": {"scale": 0.7}, "capped": {"scale": 1.3, "softcap": 2.0}}
options = pytest.mark.parametrize("name", OPTIONS)
blocks = interpreter_blocks({})


def problem(n, d, v, dtype, bias=True):
    return randn(n, d, dtype=dtype), randn(v, d, dtype=dtype), randn(v, dtype=dtype) if bias else None


def logits(x, weight, bias, scale=1.0, softcap=None):
    z = dense(x, weight, bias, scale)
    return z if softcap is None else capped(z, softcap)


def naive(z, indices):
    """Values, log-sum-exp and log-probabilities of these classes."""
    lse = z.logsumexp(1)
    values = z.gather(1, indices)
    return {"values": values, "lse": lse, "logprob": values - lse[:, None]}


def check(tensors, k, **more):
    """Floats within rounding, and classes that are the largest, as far as rounding lets one tell."""
    found = ncops.linear_topk(*tensors, k=k, **more)
    truth, torchs = logits(*exact(*tensors), **more), logits(*plain(*tensors), **more)
    assert found.values.shape == found.indices.shape == found.logprob.shape == (truth.shape[0], k)
    size = max(1.0, truth.abs().max().item())
    mine = {name: getattr(found, name) for name in ("values", "lse", "logprob")}
    for name, expected in naive(truth, found.indices).items():
        assert_accurate(mine[name], naive(torchs, found.indices)[name], expected, what=name, scale=size)
    best = truth.sort(dim=1, descending=True, stable=True)[0][:, :k]
    assert_accurate(mine["values"], torchs.topk(k)[0], best, what="the largest", scale=size)
    assert found.indices.sort(dim=1)[0].diff(dim=1).ne(0).all()  # each once


@dtypes
@options
@pytest.mark.parametrize("k", [1, 5, 35])
def test_against_float64(backend, dtype, name, k):
    check(problem(13, 7, 35, dtype), k, **OPTIONS[name])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9])
def test_few_rows(backend, n):
    check(problem(n, 11, 150, torch.float32), 4)
    check(problem(n, 11, 150, torch.bfloat16, bias=False), 40)


@layouts
def test_layouts(backend, layout):
    x, weight, bias = problem(11, 6, 13, torch.float32)
    check((LAYOUTS[layout](x), LAYOUTS[layout](weight), bias), 3)


@pytest.mark.parametrize(
    ("shape", "k", "dtype"),
    [
        ((70, 9, 40_001), 64, torch.float32),  # splits, and candidates beyond the room for them
        ((5, 9, 40_001), 512, torch.float32),  # few rows
        ((2_500, 4, 600), 300, torch.float32),  # most classes
        ((300, 1_700, 1_100), 20, torch.float32),  # several steps of the product
        ((40, 6, 9_000), 100, torch.float64),
        ((40, 6, 9_000), 100, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
def test_across_blocks_and_splits(cpu_backend, shape, k, dtype):
    n, d, v = shape
    with ncops.use_backend(cpu_backend):
        check(problem(n, d, v, dtype), k)


def test_several_ranges_of_rows():
    """64 MB of candidates are 1024 rows of these; the products are whole numbers that float32 holds."""
    x, weight = 1 + torch.arange(1_100.0)[:, None], torch.randperm(6_000)[:, None].float()
    with ncops.use_backend("cpu"):
        found = ncops.linear_topk(x, weight, k=5_000)
    best = weight[:, 0].argsort(descending=True)[:5_000]
    assert torch.equal(found.indices, best.expand(1_100, -1)) and torch.equal(found.values, x * weight[best, 0])


@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_equal_logits_by_class(cpu_backend, n, k, order):
    """Logits of eleven values, in any order: of those that are equal the lowest classes, wherever they are cut."""
    z = torch.randint(-5, 6, (20_000,)).float()
    if order != "shuffled":
        z = z.sort(descending=order == "falling")[0]
    with ncops.use_backend(cpu_backend):
        found = ncops.linear_topk(torch.ones(n, 1), z[:, None], k=k)
    values, indices = z.sort(descending=True, stable=True)
    assert torch.equal(found.values, values[:k].expand(n, k))
    assert torch.equal(found.indices, indices[:k].expand(n, k))


@pytest.mark.parametrize("seen", [0, 1, 3, 1_500])
@pytest.mark.parametrize("n", [2, 20])
def test_masked_classes_come_last(backend, n, seen):
    bias = torch.full((2_000,), -INF)
    there = torch.randperm(2_000)[:seen]
    bias[there] = torch.randn(seen)
    found = ncops.linear_topk(torch.zeros(n, 3), torch.zeros(2_000, 3), bias, k=5)
    values, indices = bias.sort(descending=True, stable=True)
    assert torch.equal(found.values, values[:5].expand(n, 5)) and torch.equal(found.indices, indices[:5].expand(n, 5))
    expected = bias.double().logsumexp(0).item() if seen else -INF
    assert found.lse.tolist() == pytest.approx([expected] * n)
    assert found.logprob[:, :seen].isfinite().all()
    assert (found.logprob[:, seen:] == -INF).all() if seen else found.logprob.isnan().all()


@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
def test_masked_classes_of_rows_that_take_turns(cpu_backend):
    """Of every other row classes 0, 1 and 4 alone are not masked, of the others 1 and 3."""
    x = 1e30 * torch.eye(2).repeat(8, 1)
    weight = torch.full((2_000, 2), -1e30)
    for row, seen in enumerate(([0, 1, 4], [1, 3])):
        weight[seen, row] = 0
    with ncops.use_backend(cpu_backend):
        found = ncops.linear_topk(x, weight, k=5)
    assert found.indices.tolist() == [[0, 1, 4, 2, 3], [1, 3, 0, 2, 4]] * 8
    assert found.values.isinf().sum(1).tolist() == [2, 3] * 8


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("value", [INF, math.nan])
@pytest.mark.parametrize("at", [0, 1_999])
def test_rows_with_infinite_logits(backend, n, value, at):
    x, weight = torch.zeros(n, 2), torch.randn(2_000, 2)
    weight[:, 1] = 0
    weight[at, 1] = 1
    x[:, 0], x[1, 1] = 1, value
    if value == INF:  # of one class alone; the others have 0 * inf
        weight[:, 1] = 1
    found = ncops.linear_topk(x, weight, k=3)
    clean = ncops.linear_topk(x[::2], weight, k=3)
    assert found.values[1].isnan().all() and found.logprob[1].isnan().all() and found.lse[1].isnan()
    assert (found.indices[1] == -1).all()
    for mine, expected in zip(found, clean, strict=True):
        assert torch.equal(mine[::2], expected)


def check_one_infinite_logit(n, v, at):
    x, weight = torch.ones(n, 2), torch.randn(v, 2)
    x[:, 1] = weight[:, 1] = 0
    x[1, 1] = weight[at, 1] = 1e30
    found = ncops.linear_topk(x, weight, k=3)
    assert found.values[1].isnan().all() and found.lse[1].isnan() and (found.indices[1] == -1).all()
    assert found.lse[::2].isfinite().all() and torch.equal(found.indices[2], found.indices[0])


@pytest.mark.parametrize("at", [0, 700])
def test_one_infinite_logit_is_enough(backend, at):
    check_one_infinite_logit(20, 701, at)


@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("at", [0, 20_000, 39_999])
def test_one_infinite_logit_in_any_split(cpu_backend, n, at):
    with ncops.use_backend(cpu_backend):
        check_one_infinite_logit(n, 40_000, at)


@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_equal_whatever_their_sign(cpu_backend, dtype):
    """The first logit underflows to -0, which only a scale can make: sums begin at +0."""
    weight = torch.tensor([[-1.0], [0.0], [0.0], [-5e20]], dtype=dtype)
    x = torch.full((20, 1), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, dtype=dtype)
    with ncops.use_backend(cpu_backend):
        for k in (1, 3):
            assert ncops.linear_topk(x, weight, scale=0.25, k=k).indices.tolist() == [[*range(k)]] * 20


@pytest.mark.parametrize("n", [4, 60])
def test_equal_logits_by_class_whoever_comes_first(n):
    """Splits tell each other what they have found; of more threads than cores, one with higher classes may be ahead."""
    before = torch.get_num_threads()
    x, weight = torch.zeros(n, 1), torch.zeros(60_000, 1)
    torch.set_num_threads(16)
    try:
        for _ in range(20):
            assert (ncops.linear_topk(x, weight, k=4).indices == torch.arange(4)).all()
    finally:
        torch.set_num_threads(before)


def test_a_certain_class_keeps_its_digits(backend):
    """At margin 40 the probability of the others is 4e-18, of which float32's 1 - p has nothing."""
    found = ncops.linear_topk(torch.ones(1, 1), torch.tensor([[0.0], [40.0], [1.0]]), k=2)
    expected = -math.log1p(math.exp(-40) + math.exp(-39))
    assert found.logprob[0].tolist() == pytest.approx([expected, expected - 39], rel=1e-6, abs=0)


def objective(values, lse, logprob):
    n, k = values.shape
    rows = torch.linspace(0.5, 1.5, n, dtype=torch.float64)[:, None]
    ranks = torch.linspace(1.0, -0.4, k, dtype=torch.float64)
    of = (values.double() * ranks).sum(1) - 0.3 * lse.double() + (logprob.double() * ranks.flip(0)).sum(1)
    return (of * rows[:, 0]).sum()


def gradients(function, tensors):
    inputs = [t.detach().clone().requires_grad_() for t in tensors if t is not None]
    return torch.autograd.grad(objective(**function(*inputs, *[None] * (3 - len(inputs)))), inputs)


def check_gradients(tensors, k, **more):
    indices = ncops.linear_topk(*tensors, k=k, **more).indices

    def ours(*t):
        found = ncops.linear_topk(*t, k=k, **more)
        return {name: getattr(found, name) for name in ("values", "lse", "logprob")}

    def theirs(*t):
        return naive(logits(*t, **more), indices)

    mine, torchs, truth = (
        gradients(ours, tensors),
        gradients(theirs, plain(*tensors)),
        gradients(theirs, exact(*tensors)),
    )
    for name, a, b, c in zip(("x", "weight", "bias"), mine, torchs, truth, strict=False):
        # Triton's gradients by the logits are bfloat16 numbers where x is.
        eps = 8 if a.element_size() > 2 else 2 if ncops.backends.forced() == "triton" else 0.25
        assert_accurate(a, b.to(a.dtype), c, what=name, eps=eps, scale=max(1.0, c.abs().max().item()))


@dtypes
@options
def test_gradients(backend, dtype, name):
    check_gradients(problem(13, 7, 35, dtype), 6, **OPTIONS[name])


def test_gradients_over_blocks(monkeypatch):
    block_rows(monkeypatch)
    with ncops.use_backend("reference"):
        check_gradients(problem(13, 7, 35, torch.float64), 6, softcap=2.0)
        check_gradients(problem(13, 7, 35, torch.float64, bias=False), 6)


@options
def test_gradcheck(name):
    x, weight, bias = (t.requires_grad_() for t in problem(5, 4, 9, torch.float64))

    def run(x, weight, bias):
        found = ncops.linear_topk(x, weight, bias, k=3, **OPTIONS[name])
        return found.values, found.lse, found.logprob

    assert torch.autograd.gradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("part", ["values", "lse", "logprob"])
def test_each_result_alone(backend, part):
    tensors = problem(9, 5, 20, torch.float64)
    inputs = [t.requires_grad_() for t in tensors]
    found = ncops.linear_topk(*inputs, k=4)
    mine = torch.autograd.grad(getattr(found, part).sum(), inputs)
    truth = torch.autograd.grad(naive(logits(*inputs), found.indices)[part].sum(), inputs)
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_only_what_is_asked_for(backend):
    x, weight, bias = problem(9, 5, 20, torch.float32)
    found = ncops.linear_topk(x.requires_grad_(), weight, bias, k=4)
    found.values.sum().backward()
    torch.testing.assert_close(x.grad, weight[found.indices].sum(1))
    found = ncops.linear_topk(x.detach(), weight, bias.requires_grad_(), k=4)
    found.values.sum().backward()
    torch.testing.assert_close(bias.grad, torch.bincount(found.indices.flatten(), minlength=20).float())
    assert weight.grad is None


def test_rows_that_spoil_nothing(backend):
    """A NaN row without a gradient reaches no gradient; with one, all of its own and of the classifier's."""
    x, weight, _ = problem(6, 4, 12, torch.float32)
    x[2] = math.nan
    kept = torch.arange(6) != 2
    for both in (False, True):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        found = ncops.linear_topk(*inputs, k=3)
        values = found.values if both else found.values[kept]
        values.sum().backward()
        assert inputs[0].grad[kept].isfinite().all()
        assert inputs[0].grad[2].isnan().all() if both else (inputs[0].grad[2] == 0).all()
        assert inputs[1].grad.isnan().all() if both else inputs[1].grad.isfinite().all()


def test_determinism(backend):
    x, weight, bias = problem(40, 6, 3_000 if backend != "triton" else 70, torch.float32)

    def run():
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
        found = ncops.linear_topk(*inputs, k=5)
        return [*found, *torch.autograd.grad(objective(found.values, found.lse, found.logprob), inputs)]

    assert_deterministic(run, backend)


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (1, 4, 1)])
def test_sizes_of_nothing(backend, shape):
    n, d, v = shape
    inputs = [t.requires_grad_() for t in problem(n, d, v, torch.float32)]
    found = ncops.linear_topk(*inputs, k=1)
    assert found.values.shape == (n, 1) and found.lse.shape == (n,)
    assert [g.shape for g in torch.autograd.grad(found.logprob.sum(), inputs)] == [t.shape for t in inputs]


def test_shapes_of_rows():
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(9, 4), torch.randn(9)
    found, flat = ncops.linear_topk(x, weight, bias, k=2), ncops.linear_topk(x.view(6, 4), weight, bias, k=2)
    assert found.values.shape == found.indices.shape == found.logprob.shape == (2, 3, 2) and found.lse.shape == (2, 3)
    assert torch.equal(found.values.view(6, 2), flat.values)
    one = ncops.linear_topk(x[0, 0], weight, bias, k=2)
    assert one.values.shape == (2,) and one.lse.shape == () and torch.equal(one.indices, found.indices[0, 0])


def test_autocast():
    x, weight, _ = problem(5, 4, 9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = ncops.linear_topk(x, weight, k=2)
    expected = ncops.linear_topk(x.bfloat16(), weight.bfloat16(), k=2)
    assert found.values.dtype == torch.float32 and torch.equal(found.values, expected.values)


def test_compiles():
    x, weight, bias = problem(6, 4, 9, torch.float32)
    assert_compiles(lambda x, w, b: tuple(ncops.linear_topk(x, w, b, k=3, scale=0.5)), x, weight, bias)


def test_opcheck():
    x, weight, bias = (t.requires_grad_() for t in problem(6, 4, 9, torch.float32))
    torch.library.opcheck(torch.ops.ncops.linear_topk, (x, weight, bias, 3, 1.0, 0.0, False))
    torch.library.opcheck(torch.ops.ncops.linear_topk, (x, weight, None, 3, 1.0, 2.0, False))


def test_refusals():
    x, weight = torch.randn(3, 4), torch.randn(9, 4)
    errors = {0: "k: expected an integer of 1", 10: "k: expected at most the 9", 2.5: "k: expected an int"}
    for k, message in errors.items():
        with pytest.raises(ValueError, match=message):
            ncops.linear_topk(x, weight, k=k)
    with pytest.raises(ValueError, match=r"weight: expected shape \(V, D\)"):
        ncops.linear_topk(x, weight[:, :3], k=1)
    with pytest.raises(ValueError, match="softcap: expected None or a positive"):
        ncops.linear_topk(x, weight, k=1, softcap=-1)
