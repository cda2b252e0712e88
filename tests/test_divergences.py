"""linear_divergence and logit_divergence: against float64, down to divergences of 1e-10, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from testing import (
    LAYOUTS,
    assert_accurate,
    assert_compiles,
    assert_deterministic,
    block_rows,
    dtypes,
    exact,
    layouts,
    plain,
    randn,
)

import ncops
from ncops.backends.planes import DIVERGENCE_PLANES, DIVERGENCES

BACKENDS = ("reference", "cpu", pytest.param("triton", marks=pytest.mark.triton))
HEADS = {"one": {}, "two": {"two": True}, "no bias": {"bias": False}, "two no bias": {"two": True, "bias": False}}
OPTIONS = {"plain": {}, "scaled": {"scale": 0.6, "beta": 0.2}, "capped": {"scale": 1.3, "softcap": 2.0, "beta": 0.7}}
heads = pytest.mark.parametrize("head", HEADS)
options = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with ncops.use_backend(request.param):
        yield request.param


def problem(n, d, v, dtype, two=False, bias=True, step=0.3):
    """(x, weight, other, other_weight, bias, other_bias)."""
    x, weight = randn(n, d, dtype=dtype), randn(v, d, dtype=dtype)
    other = (x.double() + step * randn(n, d)).to(dtype) if not two else randn(n, d + 2, dtype=dtype)
    other_weight = randn(v, d + 2, dtype=dtype, scale=0.7) if two else None
    biases = [randn(v, dtype=dtype) if bias else None, randn(v, dtype=dtype) if bias and two else None]
    return [x, weight, other, other_weight, *biases]


def dense(x, weight, other, other_weight, bias, other_bias, scale=1.0):
    if other_weight is None:
        other_weight, other_bias = weight, bias
    z, y = scale * x @ weight.T, scale * other @ other_weight.T
    return z if bias is None else z + bias, y if other_bias is None else y + other_bias


def naive(z, y, softcap=None, beta=0.5):
    """The float columns of two blocks of logits, in their dtype."""
    if softcap is not None:
        z, y = (t.where(t.isinf(), softcap * (t / softcap).tanh()) for t in (z, y))
    log_p, log_q = z.log_softmax(1), y.log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))

    def kl(p, log_p, log_q):
        return (p * (log_p - log_q).where(p > 0, 0)).sum(1)

    return {
        "kl": kl(p, log_p, log_q), "reverse_kl": kl(q, log_q, log_p),
        "js": beta * kl(p, log_p, log_m) + (1 - beta) * kl(q, log_q, log_m), "overlap": torch.minimum(p, q).sum(1),
        "entropy": -(p * log_p.where(p > 0, 0)).sum(1), "other_entropy": -(q * log_q.where(q > 0, 0)).sum(1),
        "lse": z.logsumexp(1), "other_lse": y.logsumexp(1),
    }  # fmt: skip


def columns(result):
    return {name: getattr(result, name) for name in DIVERGENCES}


def objective(found):
    weights = (0.7, -1.1, 1.3, 0.4, -0.6, 0.9, 0.5, -0.3)
    rows = torch.linspace(0.5, 1.5, found["kl"].numel(), dtype=torch.float64)
    return sum(w * (found[name].double() * rows).sum() for w, name in zip(weights, DIVERGENCES, strict=True))


def gradients(function, tensors):
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    found = function(*inputs)
    grads = torch.autograd.grad(objective(found), [t for t in inputs if t is not None])
    return {name: c.detach() for name, c in found.items()}, list(grads)


def check(tensors, ours, theirs, terms=1.0):
    """Columns and gradients of ours, in the inputs' dtype, against dense logits by torch; a gradient is a sum over rows
    of ``terms`` so large."""
    mine, truth, torchs = (
        gradients(ours, tensors),
        gradients(theirs, exact(*tensors)),
        gradients(theirs, plain(*tensors)),
    )
    size = max(1.0, *(truth[0][name].abs().max().item() for name in ("lse", "other_lse")))
    for name in DIVERGENCES:
        assert_accurate(mine[0][name], torchs[0][name], truth[0][name], what=name, scale=size)
    rounded = terms * max(4.0, len(mine[0]["kl"]) ** 0.5)
    for i, (a, b, c) in enumerate(zip(mine[1], torchs[1], truth[1], strict=True)):
        eps = 8 if a.element_size() > 2 else 1
        assert_accurate(a, b.to(a.dtype), c, what=f"gradient {i}", eps=eps, scale=rounded)


def check_linear(tensors, scale=1.0, terms=1.0, **more):
    check(
        tensors,
        lambda *t: columns(ncops.linear_divergence(*t, scale=scale, **more)),
        lambda *t: naive(*dense(*t, scale), **more),
        terms,
    )


def check_logits(tensors, scale=1.0, **more):
    check(
        tensors,
        lambda *t: columns(ncops.logit_divergence(*t, scale=scale, **more)),
        lambda z, y: naive(scale * z, scale * y, **more),
    )


@dtypes
@heads
@options
def test_linear_against_float64(backend, dtype, head, name):
    check_linear(problem(13, 7, 35, dtype, **HEADS[head]), **OPTIONS[name])


@dtypes
@options
def test_logits_against_float64(backend, dtype, name):
    z = randn(13, 35, dtype=dtype, scale=2)
    check_logits([z, (z.double() + 0.5 * randn(13, 35)).to(dtype)], **OPTIONS[name])


@heads
def test_far_apart(backend, head):
    """Logits of hundreds: exponentials overflow where they are not formed as a whole."""
    tensors = problem(9, 12, 40, torch.float32, **HEADS[head], step=1.0)
    check_linear([None if t is None else 10 * t for t in tensors], terms=100)  # a feature times the logits' rounding


@layouts
def test_layouts(backend, layout):
    tensors = problem(11, 6, 13, torch.float32, two=True)
    check_linear([LAYOUTS[layout](t) if t.ndim == 2 else t for t in tensors])
    check_logits([LAYOUTS[layout](randn(9, 14, dtype=torch.float32)), randn(9, 14, dtype=torch.float32)])


def accurate(z, y, beta=0.5):
    """KL both ways and JS in float64 as sums of positive terms: sum q = sum p takes the linear terms out."""
    log_p, log_q = z.log_softmax(1), y.log_softmax(1)
    s = log_q - log_p
    p, q = log_p.exp(), log_q.exp()
    over_p, over_q = (1 - beta) * s.expm1(), beta * (-s).expm1()
    return {
        "kl": (p * (s.expm1() - s)).sum(1),
        "reverse_kl": (q * ((-s).expm1() + s)).sum(1),
        "js": (beta * p * (over_p - over_p.log1p()) + (1 - beta) * q * (over_q - over_q.log1p())).sum(1),
    }


def check_digits(found, z, y, wanted, digits=1e-5):
    truth = accurate(z, y)
    assert 0.1 * wanted < truth["kl"].mean() < 10 * wanted
    for name, value in truth.items():
        mine = getattr(found, name).double()
        assert (mine >= 0).all() and ((mine - value).abs() <= digits * value).all(), name


SIZES = [10.0**-k for k in range(11)]


@pytest.mark.parametrize("size", SIZES)
def test_one_head_keeps_the_digits_of_small_divergences(backend, size):
    x, weight = randn(60, 16, dtype=torch.float32), randn(300, 16, dtype=torch.float32, scale=0.25)
    other = x + randn(60, 16, dtype=torch.float32, scale=(2 * size) ** 0.5)
    bias = randn(300, dtype=torch.float32)
    tensors = exact(x, weight, other, None, bias, None)
    check_digits(ncops.linear_divergence(x, weight, other, None, bias), *dense(*tensors), size)


@pytest.mark.parametrize("size", SIZES)
def test_two_heads_and_logits_keep_the_digits_of_the_difference(backend, size):
    """Products that float32 forms exactly, multiples of 2^-20 below 8, so that only what comes after them can err."""
    grid = 2.0**-20
    x, weight = torch.eye(40)[:30], (randn(250, 40) / grid).round().mul(grid).clamp(-4, 4)
    other_weight = weight + (randn(250, 40, scale=(2 * size) ** 0.5) / grid).round().mul(grid).clamp(-3.5, 3.5)
    weight, other_weight = weight.float(), other_weight.float()
    z, y = x @ weight.T, x @ other_weight.T
    assert torch.equal(y.double(), x.double() @ other_weight.double().T)
    for found in (ncops.linear_divergence(x, weight, x, other_weight), ncops.logit_divergence(z, y)):
        check_digits(found, z.double(), y.double(), size)


def test_gradients_keep_their_digits(backend):
    """Those of q - p and p s, where p and q agree to six digits; a float32 difference has none left."""
    z = randn(20, 50, dtype=torch.float32)
    y = z + randn(20, 50, dtype=torch.float32, scale=1e-6)
    z, y = z.requires_grad_(), y.requires_grad_()
    found = ncops.logit_divergence(z, y)
    log_p, log_q = z.double().log_softmax(1), y.double().log_softmax(1)
    p, s = log_p.exp(), log_q - log_p
    truth = {
        "kl": p * s.expm1(),
        "reverse_kl": log_q.exp() * (s - accurate(z.double(), y.double())["reverse_kl"][:, None]),
    }
    for name, value in truth.items():
        (mine,) = torch.autograd.grad(getattr(found, name).sum(), y, retain_graph=True)
        assert (mine.double() - value).abs().max() <= 1e-5 * value.abs().max(), name


def test_the_same_twice_is_exactly_nothing(backend):
    x, weight, _, _, bias, _ = problem(9, 5, 30, torch.float32)
    found = ncops.linear_divergence(x, weight, x, None, bias)
    assert (found.kl == 0).all() and (found.reverse_kl == 0).all() and (found.js == 0).all() and found.agree.all()
    torch.testing.assert_close(found.overlap, torch.ones(9))


def test_masked_classes(backend):
    """In both: left out, with gradient 0. In one: infinite towards it, finite the other way."""
    z, y = randn(6, 12, dtype=torch.float32), randn(6, 12, dtype=torch.float32)
    z[:, 3] = y[:, 3] = -math.inf
    z[1, 5] = y[2, 6] = -math.inf
    found, truth = ncops.logit_divergence(z, y), naive(z.double(), y.double())
    assert found.reverse_kl[1] == math.inf and found.kl[1].isfinite()
    assert found.kl[2] == math.inf and found.reverse_kl[2].isfinite()
    for name in ("js", "overlap", "entropy", "other_entropy", "lse", "other_lse"):
        truth[name] = naive(*(t.double().clamp(min=-1e4) for t in (z, y)))[name]
    for name in DIVERGENCES:
        kept = torch.tensor([0, 1, 3, 4, 5] if name == "kl" else [0, 2, 3, 4, 5] if name == "reverse_kl" else range(6))
        expected = naive(*(t.double().clamp(min=-1e4) for t in (z, y)))[name] if "kl" in name else truth[name]
        torch.testing.assert_close(getattr(found, name)[kept].double(), expected[kept], rtol=1e-5, atol=1e-6)
    keep = torch.arange(12) != 3
    masked = gradients(lambda *t: columns(ncops.logit_divergence(*t)), [z[3:], y[3:]])[1]
    without = gradients(lambda *t: columns(ncops.logit_divergence(*t)), [z[3:, keep], y[3:, keep]])[1]
    for a, b in zip(masked, without, strict=True):
        assert (a[:, 3] == 0).all()
        torch.testing.assert_close(a[:, keep], b)


def test_masked_in_one_head_by_its_bias(backend):
    tensors = problem(6, 5, 9, torch.float32)
    tensors[4][7] = -math.inf
    found, (*_, g_bias) = gradients(lambda *t: columns(ncops.linear_divergence(*t)), tensors)
    keep = torch.arange(9) != 7
    x, weight, other, _, bias, _ = tensors
    alone = columns(ncops.linear_divergence(x, weight[keep], other, None, bias[keep]))
    for name, value in found.items():
        torch.testing.assert_close(value, alone[name])
    assert g_bias[7] == 0 and g_bias.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_poisoned_rows(backend, bad):
    """They are NaN, do not agree, and touch no other row; without a gradient they touch nothing."""
    tensors = problem(8, 5, 20, torch.float32)
    clean = ncops.linear_divergence(*tensors)
    tensors[0][2, 1], tensors[2][5, 0] = bad, bad
    x, weight, other = (tensors[i].requires_grad_() for i in range(3))
    found = ncops.linear_divergence(*tensors)
    rows = torch.tensor([0, 1, 3, 4, 6, 7])
    for name, column in columns(found).items():
        assert column[[2, 5]].isnan().all()
        torch.testing.assert_close(column[rows], getattr(clean, name)[rows])
    assert not found.agree[[2, 5]].any() and torch.equal(found.agree[rows], clean.agree[rows])
    g_x, g_weight, g_other = torch.autograd.grad(found.kl[rows].sum(), (x, weight, other))
    assert g_weight.isfinite().all() and (g_x[[2, 5]] == 0).all() and (g_other[[2, 5]] == 0).all()


@pytest.mark.parametrize("two", [False, True])
def test_gradients_of_poisoned_rows(backend, two):
    """Where they count they are NaN, and so is the weight; other rows have theirs."""
    tensors = problem(8, 5, 20, torch.float32, two=two)
    clean = gradients(lambda *t: columns(ncops.linear_divergence(*t)), tensors)[1]
    tensors[2][5, 0] = math.nan
    g_x, g_weight, g_other, *_ = gradients(lambda *t: columns(ncops.linear_divergence(*t)), tensors)[1]
    rows = torch.arange(8) != 5
    assert g_x[5].isnan().all() and g_other[5].isnan().all() and g_weight.isnan().all()
    for name, sides in {"lse": (0,), "other_lse": (2,)}.items() if two else {"kl": (0, 2), "lse": (0, 2)}.items():
        inputs = [t if t is None else t.detach().requires_grad_() for t in tensors]
        column = getattr(ncops.linear_divergence(*inputs), name)
        for alone in torch.autograd.grad(column[5], [inputs[i] for i in sides]):
            assert alone[5].isnan().all() and (alone[rows] == 0).all(), name
    torch.testing.assert_close((g_x[rows], g_other[rows]), (clean[0][rows], clean[2][rows]))


def test_rows_without_a_class(backend):
    z, y = randn(4, 7, dtype=torch.float32), randn(4, 7, dtype=torch.float32)
    z[1], y[2] = -math.inf, -math.inf
    for found in (ncops.logit_divergence(z, y), ncops.linear_divergence(z, torch.eye(7), y)):
        for column in columns(found).values():
            assert column[[1, 2]].isnan().all() and column[[0, 3]].isfinite().all()
        assert not found.agree[[1, 2]].any()


def test_an_infinite_column_without_a_gradient(backend):
    """Is not multiplied by it: what is finite of such rows has its gradient."""
    z, y = (randn(3, 9, dtype=torch.float32).requires_grad_() for _ in range(2))
    for masked, name in ((y, "kl"), (z, "reverse_kl")):
        mask = torch.zeros(9).index_fill_(0, torch.tensor([4]), -math.inf)
        inputs = [t + mask if t is masked else t for t in (z, y)]
        found = ncops.logit_divergence(*inputs)
        assert (getattr(found, name) == math.inf).all()
        rest = [n for n in DIVERGENCES if n != name]
        grads = torch.autograd.grad(sum(getattr(found, n).sum() for n in rest), (z, y))
        doubles = [t.detach().double().requires_grad_() for t in (z, y)]
        truth = naive(*(t + mask.clamp(min=-1e4) if s is masked else t for t, s in zip(doubles, (z, y), strict=True)))
        expected = torch.autograd.grad(sum(truth[n].sum() for n in rest), doubles)
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("two", [False, True])
def test_masked_classes_under_a_cap(backend, two):
    """They stay masked, with gradient 0, and the others are as without them."""
    tensors, keep = problem(6, 5, 9, torch.float32, two=two), torch.arange(9) != 7
    for bias in tensors[4 : 5 + two]:
        bias[7] = -math.inf

    def run(*t):
        return columns(ncops.linear_divergence(*t, softcap=2.0, scale=0.6))

    found, grads = gradients(run, tensors)
    truth, expected = gradients(run, [t[keep] if t is not None and len(t) == 9 else t for t in tensors])
    torch.testing.assert_close(found, truth)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a[keep] if len(a) == 9 else a, b)
        assert len(a) != 9 or (a[7] == 0).all()


def test_agree_takes_the_lowest_index(backend):
    z = torch.tensor([[1.0, 2, 2], [3, 1, 3], [0, 0, 0]])
    y = torch.tensor([[0.0, 5, 5], [1, 1, 3], [0, 0, 1]])
    assert ncops.logit_divergence(z, y).agree.tolist() == [True, False, False]


@pytest.mark.parametrize("size", [(0, 4, 5), (1, 4, 5), (3, 0, 5), (2, 3, 1)], ids=str)
def test_few(backend, size):
    for two in (False, True):
        if size[0]:
            check_linear(problem(*size, torch.float32, two=two))
        found = ncops.linear_divergence(*problem(*size, torch.float32, two=two))
        assert found.kl.shape == (size[0],) and found.agree.dtype == torch.bool


def test_a_single_row(backend):
    x, weight, other, *_ = problem(1, 5, 9, torch.float32)
    for alone, one in (
        (ncops.linear_divergence(x[0], weight, other[0]), ncops.linear_divergence(x, weight, other)),
        (ncops.logit_divergence(x[0], other[0]), ncops.logit_divergence(x, other)),
    ):
        assert all(a.shape == () and torch.equal(a, b[0]) for a, b in zip(alone, one, strict=True))


def test_shapes_of_sequences(backend):
    x, weight, other, other_weight, *biases = problem(12, 5, 9, torch.float32, two=True)
    found = ncops.linear_divergence(x.view(3, 4, 5), weight, other.view(3, 4, 7), other_weight, *biases)
    flat = ncops.linear_divergence(x, weight, other, other_weight, *biases)
    stored = ncops.logit_divergence(*(t.view(3, 4, 9) for t in dense(x, weight, other, other_weight, *biases)))
    for a, b, c in zip(found, flat, stored, strict=True):
        assert a.shape == c.shape == (3, 4) and torch.equal(a.flatten(), b)


def test_blocks_of_rows(monkeypatch):
    block_rows(monkeypatch)
    with ncops.use_backend("reference"):
        for two in (False, True):
            check_linear(problem(13, 5, 20, torch.float32, two=two))
        check_logits([randn(9, 30, dtype=torch.float32), randn(9, 30, dtype=torch.float32)])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((530, 5, 2001), torch.float32),  # blocks of rows, splits of the classes
        ((40, 1700, 600), torch.float32),  # several steps of the products
        ((600, 12, 1003), torch.float32),  # groups of rows, with several blocks each
        ((700, 6, 40), torch.float64),
        ((70, 40, 2001), torch.bfloat16),
    ],
    ids=str,
)
def test_blocks_splits_and_groups(shape, dtype):
    with ncops.use_backend("cpu"):
        for two in (False, True):
            x, weight, other, other_weight, *biases = problem(*shape, dtype, two=two)
            small = [t if t is None else (t.double() * shape[1] ** -0.5).to(dtype) for t in (weight, other_weight)]
            check_linear([x, small[0], other, small[1], *biases])


def of_both(x, weight, other, other_weight, bias, other_bias):
    """linear_divergence, and logit_divergence of the logits of the same heads."""
    z, y = dense(x, weight, other, other_weight, bias, other_bias)
    return ncops.linear_divergence(x, weight, other, other_weight, bias, other_bias), ncops.logit_divergence(z, y)


def test_later_tiles_and_splits_count(backend):
    """Where the last of 1500 classes are NaN, masked in one, or largest: no tile before them knows."""
    x, weight, other, other_weight, bias, other_bias = problem(5, 6, 1500, torch.float32, two=True)
    for found in of_both(x, weight, other, other_weight, bias, other_bias):
        assert found.kl.isfinite().all() and found.reverse_kl.isfinite().all()
    for at, (kl, reverse) in {4: (True, False), 5: (False, True)}.items():  # q masks a class, p masks one
        biases = [bias.clone(), other_bias.clone()]
        biases[5 - at][1490] = -math.inf
        for found in of_both(x, weight, other, other_weight, *biases):
            assert (found.kl == math.inf).all() == kl and (found.reverse_kl == math.inf).all() == reverse
            assert found.js.isfinite().all() and found.overlap.isfinite().all()
    for which in range(2):
        biases = [bias.clone(), other_bias.clone()]
        biases[which][1490] = math.nan
        for found in of_both(x, weight, other, other_weight, *biases):
            assert all(column.isnan().all() for column in columns(found).values()) and not found.agree.any()
    high = [bias.clone(), other_bias.clone()]
    high[0][1490], high[1][1491] = 100, 100
    assert not any(found.agree.any() for found in of_both(x, weight, other, other_weight, *high))
    high[0][1490] = -100
    high[0][1491] = 100
    assert all(found.agree.all() for found in of_both(x, weight, other, other_weight, *high))


@pytest.mark.parametrize("masked", [range(300), range(700, 1500)], ids=["first", "last"])
def test_masked_tiles(backend, masked):
    """Tiles without any class: those before there is a largest logit, and those after it."""
    x, weight, other, other_weight, bias, other_bias = problem(5, 6, 1500, torch.float32, two=True)
    bias[list(masked)] = other_bias[list(masked)] = -math.inf
    keep = bias.isfinite()
    alone = of_both(x, weight[keep], other, other_weight[keep], bias[keep], other_bias[keep])
    for found, truth in zip(of_both(x, weight, other, other_weight, bias, other_bias), alone, strict=True):
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b)


def test_tiles_of_logits(backend):
    """Several blocks of columns and a tail; the largest logit rises from one to the next."""
    z = randn(11, 700, dtype=torch.float32) + torch.linspace(0, 9, 700)
    check_logits([z, z + 0.5 * randn(11, 700, dtype=torch.float32) - torch.linspace(0, 4, 700)])


@options
def test_gradcheck(backend, name):
    for two in (False, True):
        tensors = [t if t is None else t.requires_grad_() for t in problem(4, 3, 6, torch.float64, two=two)]
        given = [t for t in tensors if t is not None]

        def run(*inputs, of=tensors):
            inputs = iter(inputs)
            filled = [None if t is None else next(inputs) for t in of]
            return tuple(columns(ncops.linear_divergence(*filled, **OPTIONS[name])).values())

        assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("two", [False, True])
def test_only_what_is_asked_for(backend, two):
    for run, tensors in (
        (ncops.linear_divergence, [t for t in problem(6, 5, 300, torch.float32, two=two)]),
        (ncops.logit_divergence, [randn(6, 9, dtype=torch.float32) for _ in range(2)]),
    ):
        full = iter(gradients(lambda *t, run=run: columns(run(*t)), tensors)[1])
        for i, wanted in ((i, next(full)) for i, t in enumerate(tensors) if t is not None):
            inputs = [None if t is None else t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
            (found,) = torch.autograd.grad(objective(columns(run(*inputs))), inputs[i])
            torch.testing.assert_close(found, wanted)


def test_bits(backend):
    v = 600 if backend == "cpu" else 20
    for two in (False, True):
        tensors = problem(70, 9, v, torch.float32, two=two)

        def run(tensors=tensors):
            found, grads = gradients(lambda *t: columns(ncops.linear_divergence(*t)), tensors)
            return [*found.values(), *grads]

        assert_deterministic(run, backend)


def test_opcheck(backend):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for two, dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16)):
        tensors = [t if t is None else t.requires_grad_() for t in problem(6, 5, 9, dtype, two=two)]
        arguments = (*tensors, 0.7, 0.0, 0.5, False)
        torch.library.opcheck(torch.ops.ncops.linear_divergence.default, arguments, test_utils=tests)
    logits = [randn(6, 9, dtype=torch.float32).requires_grad_() for _ in range(2)]
    torch.library.opcheck(torch.ops.ncops.logit_divergence.default, (*logits, 0.7, 0.0, 0.5), test_utils=tests)


def test_compile(backend):
    x, weight, other, *_ = problem(6, 5, 9, torch.float32)
    assert_compiles(lambda *t: tuple(ncops.linear_divergence(*t)), x, weight, other)
    assert_compiles(lambda *t: tuple(ncops.logit_divergence(*t)), x, other)


def test_autocast(backend):
    tensors = problem(8, 5, 9, torch.float32, two=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ncops.linear_divergence(*tensors)
    low = ncops.linear_divergence(*(t.bfloat16() for t in tensors))
    assert all(torch.equal(a, b) for a, b in zip(cast, low, strict=True)) and cast.kl.dtype == torch.float32


def test_second_derivatives_are_refused(backend):
    z, y = (randn(3, 4).requires_grad_() for _ in range(2))
    (g,) = torch.autograd.grad(ncops.logit_divergence(z, y).kl.sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="logit_divergence: second derivatives"):
        g.sum().backward()


def test_planes_begin_with_the_columns():
    assert DIVERGENCE_PLANES[: len(DIVERGENCES)] == DIVERGENCES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.ones(3, 5)}, r"other: expected shape x.shape\[:-1\] \+ \(E,\) = \(2, 5\), got \(3, 5\)"),
        ({"other": torch.ones(2, 4)}, r"other: expected shape that of x without other_weight = \(2, 5\), got \(2, 4\)"),
        ({"other_weight": torch.ones(8, 5)}, r"other_weight: expected shape \(V, E\) = \(9, 5\), got \(8, 5\)"),
        ({"other_bias": torch.ones(9)}, r"other_bias: expected None without other_weight \(one head\), got \(9,\)"),
        ({"bias": torch.ones(8)}, r"bias: expected shape \(V,\) = \(9,\), got \(8,\)"),
        ({"other": torch.ones(2, 5).half()}, "other: expected the dtype of x, torch.float32, got torch.float16"),
        ({"weight": torch.ones(0, 5)}, "weight: expected at least one class"),
        ({"beta": 1.0}, "beta: expected a number between 0 and 1, got 1.0"),
        ({"softcap": 0.0}, "softcap: expected None or a positive number"),
        ({"scale": torch.tensor(1.0, requires_grad=True)}, "scale: expected a number, got a tensor that requires"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.randn(2, 5), "weight": torch.randn(9, 5), "other": torch.randn(2, 5), **change}
    with pytest.raises(ValueError, match=message):
        ncops.linear_divergence(**arguments)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.ones(2, 4), r"other_logits: expected shape logits.shape = \(2, 5\), got \(2, 4\)"),
        (torch.ones(2, 5).half(), "other_logits: expected torch.float32"),
    ],
)
def test_errors_of_logits(other, message):
    with pytest.raises(ValueError, match=message):
        ncops.logit_divergence(torch.ones(2, 5), other)
