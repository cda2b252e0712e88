"""linear_loss: the loss and its gradient against F.cross_entropy and its like in float64, and what only it has."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from logit_columns import dense, problem
from testing import (
    IGNORE,
    LAYOUTS,
    assert_accurate,
    assert_deterministic,
    dtypes,
    exact,
    interpreter_blocks,
    layouts,
    plain,
    randn,
)

import ncops

blocks = interpreter_blocks({})

OPTIONS = {
    "nll": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"nll": 0.5, "z_loss": 1e-2, "scale": 0.7},
    "entropy": {"nll": 0.0, "entropy": -0.3},
    "sum": {"reduction": "sum", "z_loss": 1e-3},
    "items": {"num_items": 7, "entropy": 0.1},
    "weights": {"weights": True, "z_loss": 1e-2, "entropy": 0.2},
    "weights smoothed": {"weights": True, "label_smoothing": 0.2, "scale": 0.5},
    "capped": {"softcap": 1.5, "z_loss": 1e-2, "scale": 0.7},
    "capped none": {"softcap": 0.8, "reduction": "none"},
    "none": {"reduction": "none", "z_loss": 1e-2, "label_smoothing": 0.1},
}
options = pytest.mark.parametrize("name", OPTIONS)


def expected(x, weight, bias, target, class_weight, *, nll=1.0, z_loss=0.0, entropy=0.0, label_smoothing=0.0, scale=1.0,
             softcap=None, reduction="mean", num_items=None):  # fmt: skip
    """The same from dense logits, by torch."""
    z = dense(x, weight, bias, scale)
    z = z if softcap is None else softcap * (z / softcap).tanh()
    how = "sum" if num_items else reduction
    loss = F.cross_entropy(z, target, weight=class_weight, label_smoothing=label_smoothing, reduction=how)
    valid = (target != IGNORE).to(z.dtype)
    rest = z_loss * z.logsumexp(1).square() * valid
    if entropy:
        rest = rest - entropy * (z.softmax(1) * z.log_softmax(1)).sum(1) * valid
    if reduction != "none":
        rest = rest.sum() / (1 if how == "sum" else valid.sum())
    return (nll * loss + rest) / (num_items or 1)


def value_and_gradients(function, inputs, *others, **more):
    inputs = [t.detach().clone().requires_grad_() for t in inputs if t is not None]
    loss = function(*inputs, *([None] * (3 - len(inputs))), *others, **more)
    scalar = loss if loss.ndim == 0 else (loss * torch.linspace(1, 2, loss.numel(), dtype=loss.dtype)).sum()
    return [loss.detach(), *torch.autograd.grad(scalar, inputs)]


def ours(x, weight, bias, target, class_weight, **more):
    return ncops.linear_loss(x, weight, bias, target, class_weight=class_weight, **more).loss


def check(problem, name, dtype):
    x, weight, bias, target = problem
    more = dict(OPTIONS[name])
    class_weight = torch.rand(weight.shape[0]).to(dtype) if more.pop("weights", False) else None
    mine = value_and_gradients(ours, (x, weight, bias), target, class_weight, **more)
    theirs = value_and_gradients(expected, plain(x, weight, bias), target, *plain(class_weight), **more)
    truth = value_and_gradients(expected, exact(x, weight, bias), target, *exact(class_weight), **more)
    for what, a, b, c in zip(("loss", "x", "weight", "bias"), mine, theirs, truth, strict=False):
        size = dense(*exact(x, weight, bias), more.get("scale", 1)).abs().max().item() if what == "loss" else None
        assert_accurate(a, b.to(a.dtype), c, what=f"{name}: {what}", scale=size, eps=8 if a.element_size() > 2 else 1)


@dtypes
@options
def test_against_float64(backend, name, dtype):
    check(problem(37, 17, 65, dtype), name, dtype)


@pytest.mark.parametrize("name", ["nll", "smoothed", "weights smoothed"])
def test_without_bias(backend, name):
    check(problem(9, 5, 30, torch.float32, bias=False), name, torch.float32)


@layouts
def test_layouts(backend, layout):
    x, weight, bias, target = problem(11, 6, 13, torch.float32)
    check((LAYOUTS[layout](x), LAYOUTS[layout](weight), bias, target), "smoothed", torch.float32)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((400, 9, 70_001), torch.float32),  # blocks of 320 rows, of the 342 with a target; splits of the classes
        ((130, 1700, 5000), torch.float32),  # several steps of the first product
        ((5000, 20, 1003), torch.float32),  # groups of rows, with several blocks each
        ((700, 6, 40), torch.float64),
        ((300, 40, 6001), torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("cpu_backend", ["reference", "cpu"])
def test_across_blocks_splits_and_groups(cpu_backend, shape, dtype):
    x, weight = randn(*shape[:2], dtype=dtype), randn(shape[2], shape[1], dtype=dtype, scale=shape[1] ** -0.5)
    target = torch.randint(shape[2], shape[:1])
    target[::7], target[-1] = IGNORE, shape[2] - 1
    with ncops.use_backend(cpu_backend):
        check((x, weight, randn(shape[2], dtype=dtype), target), "smoothed", dtype)
        check((x, weight, None, target), "z_loss", dtype)


def test_gradcheck(backend):
    x, weight, bias, target = problem(5, 4, 6, torch.float64)
    target[0] = IGNORE
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    class_weight = torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *i: ncops.linear_loss(
            *i, target, z_loss=0.1, entropy=0.2, label_smoothing=0.3, class_weight=class_weight, scale=0.7
        ).loss,
        inputs, fast_mode=True,
    )  # fmt: skip


def test_collapsed_rows_keep_their_digits(backend):
    """At margin 30 the gradient of the other classes is e^-30, that of the target minus their sum."""
    weight = (30 * torch.eye(12)).requires_grad_()
    bias = torch.zeros(12, requires_grad=True)
    loss = ncops.linear_loss(torch.eye(12)[3:4], weight, bias, torch.tensor([3]), reduction="sum").loss
    (gradient,) = torch.autograd.grad(loss, bias)
    p = math.exp(-30) / (1 + 11 * math.exp(-30))
    truth = torch.full((12,), p, dtype=torch.float64)
    truth[3] = -11 * p
    assert ((gradient.double() / truth - 1).abs() < 1e-5).all()
    assert abs(float(loss) / math.log1p(11 * math.exp(-30)) - 1) < 1e-5


@pytest.mark.parametrize("name", ["nll", "weights smoothed", "none"])
def test_rows_that_do_not_count_are_left_out(backend, name):
    """NaN and infinity in them reach nothing, their columns say so, and the others' are those of the rows alone."""
    x, weight, bias, target = problem(12, 5, 9, torch.float32)
    target[[1, 4, 11]] = IGNORE
    x[1], x[4] = torch.nan, torch.inf
    keep, more = target != IGNORE, dict(OPTIONS[name])
    class_weight = torch.rand(9) if more.pop("weights", False) else None

    def summed(*arguments):
        return ours(*arguments, **more).sum()

    found = value_and_gradients(summed, (x, weight, bias), target, class_weight)
    alone = value_and_gradients(summed, (x[keep], weight, bias), target[keep], class_weight)
    assert (found[1][~keep] == 0).all()
    for a, b in zip((found[0], found[1][keep], *found[2:]), alone, strict=True):
        torch.testing.assert_close(a, b)
    stats = ncops.linear_loss(x, weight, bias, target).stats
    assert stats.lse[~keep].isnan().all() and (stats.argmax[~keep] == -1).all()
    assert (stats.nll[~keep] == 0).all() and (stats.target_logit[~keep] == 0).all()
    assert (stats.target_rank[~keep] == -1).all()
    torch.testing.assert_close(stats.entropy[keep], ncops.linear_stats(x[keep], weight, bias).entropy)


def test_rows_of_a_class_of_weight_zero_reach_nothing(backend):
    x, weight, _, _ = problem(12, 5, 9, torch.float32)
    target, class_weight = torch.arange(12) % 9, torch.rand(9) + 0.1
    class_weight[1], x[[1, 10]] = 0, torch.nan
    keep = target != 1

    def summed(x, weight, target):
        return ours(x, weight, None, target, class_weight, reduction="sum")

    inputs = [t.detach().requires_grad_() for t in (x, weight)]
    found = torch.autograd.grad(summed(*inputs, target), inputs)
    alone = torch.autograd.grad(summed(inputs[0][keep], inputs[1], target[keep]), inputs)
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_the_weighted_mean_of_many_classes():
    """More than are converted from half precision at a time."""
    x, weight, bias, target = problem(5, 4, 9_000, torch.bfloat16)
    class_weight = torch.linspace(0.1, 2, 9_000).bfloat16()
    found = ours(x, weight, bias, target, class_weight, label_smoothing=0.5)
    truth = expected(*exact(x, weight, bias), target, class_weight.double(), label_smoothing=0.5)
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)


def test_poisoned_rows_poison_what_they_touch(backend):
    x, weight, bias, target = problem(6, 5, 9, torch.float32)
    target = target.clamp(min=0)
    x[2, 0] = torch.nan
    loss, g_x, g_weight, _ = value_and_gradients(ours, (x, weight, bias), target, None)
    assert loss.isnan() and g_weight.isnan().all()
    assert g_x[2].isnan().all() and g_x[[0, 1, 3, 4, 5]].isfinite().all()


def test_masked_classes(backend):
    """A class at -inf has no gradient; smoothing towards it is an infinite loss, as F.cross_entropy says."""
    x, weight, bias, target = problem(7, 5, 9, torch.float32)
    target = target.clamp(min=0) % 8
    bias[8] = -torch.inf
    mine = value_and_gradients(ours, (x, weight, bias), target, None)
    theirs = value_and_gradients(lambda x, w, b: F.cross_entropy(dense(x, w, b, 1), target), (x, weight, bias))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert mine[3][8] == 0
    assert ncops.linear_loss(x, weight, bias, target, label_smoothing=0.1).loss == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), torch.tensor(0.0), 3, torch.tensor(3)], ids=str)
def test_nothing_to_average(backend, items, dtype):
    x, weight, bias, _ = problem(4, 5, 9, dtype)
    ignored = torch.full((4,), IGNORE)
    loss, *gradients = value_and_gradients(ours, (x, weight, bias), ignored, None, num_items=items)
    theirs = F.cross_entropy(torch.zeros(4, 9), ignored, reduction="sum") / (items or 0)
    assert loss.equal(theirs.to(loss)) or (loss.isnan() and theirs.isnan())
    assert all((g == 0).all() for g in gradients)
    none = ncops.linear_loss(x[:0], weight, bias, ignored[:0], num_items=items)
    assert none.loss.isnan() == theirs.isnan() and none.stats.lse.shape == (0,)


def test_only_what_is_asked_for(backend):
    x, weight, bias, target = problem(6, 5, 9, torch.float32)
    full = value_and_gradients(ours, (x, weight, bias), target, None)
    frozen = weight.clone(), bias.clone()
    x.requires_grad_()
    loss = ncops.linear_loss(x, *frozen, target).loss
    loss.backward()
    torch.testing.assert_close(x.grad, full[1])
    with torch.no_grad():
        plain_loss = ncops.linear_loss(x, *frozen, target).loss
    assert not plain_loss.requires_grad
    torch.testing.assert_close(plain_loss, full[0])


def test_upstream_gradient_and_accumulation(backend):
    x, weight, bias, target = problem(8, 5, 9, torch.float32)
    full = value_and_gradients(ours, (x, weight, bias), target, None)
    weight.requires_grad_()
    (3 * ncops.linear_loss(x, weight, bias, target).loss).backward()
    ncops.linear_loss(x, weight, bias, target).loss.backward()
    torch.testing.assert_close(weight.grad, 4 * full[2])


def test_kept_and_freed_graphs(backend):
    x, weight, bias, target = problem(8, 5, 9, torch.float32)
    loss = ncops.linear_loss(x.requires_grad_(), weight, bias, target).loss
    once, twice = (torch.autograd.grad(k * loss, x, retain_graph=True)[0] for k in (1, 2))
    torch.testing.assert_close(twice, 2 * once)
    loss.backward()
    torch.testing.assert_close(x.grad, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_columns_are_those_of_linear_stats_and_carry_no_gradient(backend):
    x, weight, bias, target = problem(8, 5, 9, torch.float32)
    target = target.clamp(min=0)
    found = ncops.linear_loss(x.requires_grad_(), weight, bias, target, scale=0.7).stats
    for name, column in ncops.linear_stats(x, weight, bias, target, scale=0.7).to_dict().items():
        torch.testing.assert_close(getattr(found, name), column.detach())
        assert not getattr(found, name).requires_grad


def test_shapes_of_sequences(backend):
    x, weight, bias, target = problem(12, 5, 9, torch.float32)
    for reduction, shape in (("mean", ()), ("none", (3, 4))):
        found = ncops.linear_loss(x.view(3, 4, 5), weight, bias, target.view(3, 4), reduction=reduction)
        flat = ncops.linear_loss(x, weight, bias, target, reduction=reduction)
        assert found.loss.shape == shape and found.stats.lse.shape == (3, 4)
        torch.testing.assert_close(found.loss.flatten(), flat.loss.flatten())


def test_bits(backend):
    x, weight, bias, target = problem(70, 9, 600 if backend == "cpu" else 20, torch.float32)
    assert_deterministic(lambda: value_and_gradients(ours, (x, weight, bias), target, None, z_loss=0.1), backend)


def test_float16_gradients_are_formed_after_a_scaler(backend):
    """The mean's are below 6e-8, the least that float16 holds, before it has multiplied the loss."""
    x, weight = randn(512, 6, dtype=torch.float16), randn(300, 6, dtype=torch.float16, scale=0.3).requires_grad_()
    target, factor = torch.randint(300, (512,)), 2.0**16
    (ours,) = torch.autograd.grad(factor * ncops.linear_loss(x, weight, None, target).loss, weight)
    truth = value_and_gradients(expected, exact(x, weight.detach()), target, None)[2]
    assert (ours.double() / factor - truth).norm() <= 1e-3 * truth.norm()


def test_autocast(backend):
    x, weight, bias, target = problem(8, 5, 9, torch.float32)
    for class_weight, smoothing in ((None, 0.0), (torch.rand(9), 0.2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = value_and_gradients(ours, (x, weight, bias), target, class_weight, label_smoothing=smoothing)
        inputs = [t.bfloat16() for t in (x, weight, bias)]
        low = value_and_gradients(ours, inputs, target, class_weight, label_smoothing=smoothing)
        for i, (a, b) in enumerate(zip(cast, low, strict=True)):
            assert a.dtype == torch.float32
            if i and smoothing:  # two gradients, which may be added up in another order
                torch.testing.assert_close(a, b.float(), rtol=2**-7, atol=2**-9)
            else:
                assert torch.equal(a, b.float())


def test_opcheck(backend):
    x, weight, bias, target = problem(6, 5, 9, torch.float32)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    table = torch.rand(6, 5, dtype=torch.float64)
    arguments = (*inputs, target.clamp(min=0), table, 0.7, 0.0, IGNORE, False, True, True, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ncops.linear_loss.default, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, r"target: expected the class of each row for nll=1.0, got None"),
        ({"label_smoothing": 1.5}, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"z_loss": math.nan}, "z_loss: expected a finite number, got nan"),
        ({"reduction": "avg"}, "reduction: expected one of mean, sum, none, got 'avg'"),
        ({"reduction": "sum", "num_items": 3}, "num_items: expected None with reduction='sum', got 3"),
        ({"class_weight": torch.ones(8)}, r"class_weight: expected shape \(V,\) = \(9,\), got \(8,\)"),
        ({"class_weight": torch.ones(9, requires_grad=True)}, "class_weight: expected a tensor that requires no"),
        ({"class_weight": torch.ones(9), "softcap": 2.0, "label_smoothing": 0.1}, "label_smoothing: expected 0 with"),
        ({"target": torch.tensor([0, 9])}, r"target: expected values in \[0, 9\)"),
        ({"nll": torch.tensor(1.0, requires_grad=True)}, "nll: expected a number, got a tensor that requires"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.randn(2, 5), "weight": torch.randn(9, 5), "target": torch.tensor([0, 8]), **change}
    with pytest.raises(ValueError, match=message):
        ncops.linear_loss(**arguments)


def test_without_target():
    x, weight, bias, _ = problem(6, 5, 9, torch.float32)
    loss = ncops.linear_loss(x, weight, bias, nll=0, z_loss=1).loss
    torch.testing.assert_close(loss, dense(x, weight, bias, 1).logsumexp(1).square().mean())


def test_bfloat16_beside_torchs_products():
    """Both may use a CPU's tile registers on the same threads, and each finds its own configuration there."""
    x, weight, bias, target = problem(70, 64, 500, torch.bfloat16)
    product = x @ weight.T
    found = value_and_gradients(ours, (x, weight, bias), target, None)
    for _ in range(20):
        assert torch.equal(x @ weight.T, product)
        for a, b in zip(value_and_gradients(ours, (x, weight, bias), target, None), found, strict=True):
            assert torch.equal(a, b)
