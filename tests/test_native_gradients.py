"""The native gradients of the class and pair ops: every instruction set against the reference, layouts, determinism."""

from __future__ import annotations

import math

import pytest
import torch
from testing import (
    IGNORE,
    LAYOUTS,
    assert_accurate,
    assert_deterministic,
    dtypes,
    exact,
    layouts,
    randn,
    random_labels,
)
from torch import Tensor

from ncops import backends
from ncops.backends import native as extension
from ncops.backends.dtypes import compute_dtype
from ncops.ops.pair_stats import KERNELS

CLASS_OPS = ("class_moments", "class_scatter", "projected_sqnorms")
PROBLEMS = (*CLASS_OPS, *KERNELS)
problems = pytest.mark.parametrize("name", PROBLEMS)
# (N, D): one of each; vectors, tiles and chains from below and above; nothing.
SHAPES = [(1, 1), (1, 17), (33, 65), (300, 130), (40, 300), (33, 65), (5, 0), (0, 5)]
ISAS = ("generic", "avx2", "avx512", "neon")

pytestmark = pytest.mark.skipif(extension.load() is not None, reason="needs the native extension")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Forces an instruction set."""
    monkeypatch.setenv("NCOPS_CPU_ISA", request.param)
    try:
        extension.op("cpu_isa")()
    except RuntimeError as error:
        pytest.skip(str(error))


def problem(name: str, n: int, d: int, dtype: torch.dtype, labelled: bool = True) -> tuple:
    """The arguments of the op's backward kernel."""
    compute, classes = compute_dtype(dtype), 7
    x, labels = randn(n, d, dtype=dtype, shift=0.3), random_labels(n, classes) if labelled else None
    center = randn(classes, d, dtype=compute) if labelled else randn(d, dtype=compute)
    if name == "class_moments":
        labels = random_labels(n, classes) if labels is None else labels
        center = center if labelled else None
        return randn(classes, d, dtype=compute), randn(classes), x, labels, classes, center, IGNORE
    if name == "class_scatter":
        return randn(d, d, dtype=compute), x, labels, center, IGNORE, False, True, True
    if name == "projected_sqnorms":
        g = randn(n, dtype=compute).masked_fill(torch.rand(n) < 0.2, 0)
        return g, x, randn(130, d, dtype=compute), labels, center, IGNORE, False, True, True, True
    variances = torch.rand(n).to(compute) + 0.1 if name == "cdnv" else None
    valid = torch.rand(n) < 0.8 if labelled else None
    power = 0.02 if name == "gaussian" else 1.5  # else its values vanish
    options = (name, *exact(variances), power, valid, None, IGNORE, False)
    *_, count, row_argmax = backends.reference("pair_stats")(x.double(), *options)
    g_mean, g_row_max = randn(1, dtype=compute)[0] * 3, randn(n, dtype=compute).masked_fill(torch.rand(n) < 0.2, 0)
    return g_mean, g_row_max, count, row_argmax, x, name, variances, power, valid, None, IGNORE, False


def op_of(name: str) -> str:
    return f"{name if name in CLASS_OPS else 'pair_stats'}_backward"


def native(name: str, arguments: tuple) -> list[Tensor]:
    out = extension.op(op_of(name))(*arguments)
    return [out] if isinstance(out, Tensor) else list(out)


def reference(name: str, arguments: tuple) -> list[Tensor]:
    out = backends.reference(op_of(name))(*arguments)
    return [out] if isinstance(out, Tensor) else list(out)


def widened(arguments: tuple) -> tuple:
    return tuple(exact(a)[0] if isinstance(a, Tensor) else a for a in arguments)


def features(name: str) -> int:
    """Where x, or the rows, stand among the arguments."""
    return {"class_moments": 2, "class_scatter": 1, "projected_sqnorms": 1}.get(name, 4)


@dtypes
@problems
def test_matches_the_reference_in_float64(isa, name, dtype):
    for place, shape in enumerate(SHAPES):
        if name == "cdnv" and shape[1] == 0:  # coincident rows: infinite gradients of either sign
            continue
        arguments = problem(name, *shape, dtype, labelled=place % 2 == 0)
        mine, theirs, truth = native(name, arguments), reference(name, arguments), reference(name, widened(arguments))
        for i, (a, b, c) in enumerate(zip(mine, theirs, truth, strict=True)):
            assert a.dtype == b.dtype and a.is_contiguous()
            # Squared distances carry roundings of the squared norms, as in the forward.
            eps = 1 if a.dtype.itemsize == 2 else 8 if name in (*CLASS_OPS, "dot", "cosine") else 100
            assert_accurate(a, b, c, what=f"{shape}, result {i}", eps=eps)


@problems
def test_wide_rows(isa, name):
    arguments = problem(name, 40, 4200, torch.float32)
    for a, b, c in zip(
        native(name, arguments), reference(name, arguments), reference(name, widened(arguments)), strict=True
    ):
        assert_accurate(a, b, c, eps=8 if name in (*CLASS_OPS, "dot", "cosine") else 100)


@layouts
@problems
def test_layouts(name, layout):
    arguments = list(problem(name, 65, 33, torch.float32))
    place = features(name)
    arguments[place] = LAYOUTS[layout](arguments[place])
    if name in CLASS_OPS:  # gradients of any layout, expanded ones among them, and the same for centre and basis
        for i, a in enumerate(arguments):
            if isinstance(a, Tensor) and a.is_floating_point() and a.ndim == 2 and a.dtype == torch.float32:
                arguments[i] = LAYOUTS[layout](a)
    dense = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]
    for a, b in zip(native(name, tuple(arguments)), native(name, tuple(dense)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@problems
@pytest.mark.parametrize("shape", [(3000, 65), (700, 130), (9, 300)], ids=str)
def test_deterministic(name, shape):
    arguments = problem(name, *shape, torch.float32)
    assert_deterministic(lambda: native(name, arguments), "cpu")


@dtypes
@pytest.mark.parametrize("name", CLASS_OPS)
def test_rows_that_do_not_count_get_zeros(name, dtype):
    arguments = problem(name, 70, 20, dtype)
    place = 2 if name == "class_scatter" else 3
    x, labels = arguments[features(name)], arguments[place]
    x[labels == IGNORE] = math.nan
    g_x, *others = native(name, arguments)
    assert (g_x[labels == IGNORE] == 0).all()
    assert g_x.isfinite().all() and all(g.isfinite().all() for g in others)
    none = list(arguments)
    none[place] = torch.full_like(labels, IGNORE)
    assert all((g == 0).all() for g in native(name, tuple(none)))


@pytest.mark.parametrize("name", KERNELS)
def test_rows_left_out_of_the_pairs_get_zeros(name):
    arguments = problem(name, 70, 20, torch.bfloat16)
    valid = arguments[8]
    for g in native(name, arguments):
        assert g.numel() == 0 or ((g[~valid] == 0).all() and g.isfinite().all())
    one = list(arguments)
    one[8] = torch.arange(70) == 3
    one[0:4] = [*arguments[:2], torch.tensor(0), torch.full((70,), -1)]
    assert all((g == 0).all() for g in native(name, tuple(one)))


@pytest.mark.parametrize("name", ["class_scatter", "projected_sqnorms"])
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_needed(name, wanted):
    arguments = problem(name, 70, 20, torch.float32)
    flags = wanted if name == "class_scatter" else (*wanted, wanted[0])
    everything = native(name, arguments)
    some = native(name, (*arguments[: -len(flags)], *flags))
    for a, b, need in zip(some, everything, flags, strict=True):
        torch.testing.assert_close(a, b) if need else None
        assert need or a.numel() == 0


@pytest.mark.parametrize("kernel", ["distance", "log_distance", "riesz", "cdnv"])
@pytest.mark.parametrize("dim", [16, 130])
def test_clusters_of_close_and_coincident_rows(isa, kernel, dim):
    # Clusters 1e-3 wide, some rows twice: most of the gradient comes from pairs formed from their differences.
    base = randn(6, dim).repeat(7, 1)
    rows = (base + 1e-3 * randn(42, dim)).float()
    rows[5] = rows[11]
    arguments = list(problem(kernel, 42, dim, torch.float32, labelled=False))
    arguments[4], arguments[1] = rows, torch.zeros(42)
    (mine, *spread), (truth, *others) = native(kernel, arguments), reference(kernel, widened(tuple(arguments)))
    assert (mine.double() - truth).abs().max() < 1e-5 * truth.abs().max()
    for a, b in zip(spread, others, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)


def test_gradient_of_the_largest_angle_of_opposite_rows(isa):
    """It is the small sum of the unit rows that is divided by its length: their difference has no digit of it."""
    rows, best = torch.tensor([[3.0, 4, 0], [-3, -4, 1e-12]]), torch.tensor([1, 0])
    options = (None, 1.0, None, None, IGNORE, False)
    mine = native("angle", (torch.tensor(0.0), torch.ones(2), torch.tensor(1), best, rows, "angle", *options))[0]
    torch.testing.assert_close(mine, torch.tensor([[0, 0, -0.4]]).expand(2, 3))


@pytest.mark.parametrize("kernel", ["cosine", "distance"])
def test_a_nan_row_reaches_every_gradient_of_the_mean(kernel):
    arguments = list(problem(kernel, 40, 9, torch.float32, labelled=False))
    arguments[4][3] = math.nan
    arguments[1:4] = [torch.zeros(40), arguments[2], torch.full((40,), -1)]
    assert native(kernel, tuple(arguments))[0].isnan().all()
    assert reference(kernel, tuple(arguments))[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_results_are_rounded_as_torch_rounds(isa, dtype):
    # g_sqnorms are 0: the gradient is g_sums, over all exponents, subnormals, infinities and ties.
    bits = torch.arange(-(2**31), 2**31, 65521 * 16, dtype=torch.int64)
    ties = torch.arange(2**16).to(torch.int16).view(dtype).float().view(torch.int32).long()
    ties += 1 << (12 if dtype == torch.float16 else 15)
    values = torch.cat([bits, ties]).to(torch.int32).view(torch.float32)
    for width in (len(values), 7):  # vectors, and less than one
        rows = values[: len(values) // width * width].view(-1, width)
        x, zeros, labels = torch.zeros(rows.shape, dtype=dtype), torch.zeros(len(rows)), torch.arange(len(rows))
        (ours,) = native("class_moments", (rows, zeros.double(), x, labels, len(rows), None, IGNORE))
        torch.testing.assert_close(ours, rows.to(dtype), rtol=0, atol=0, equal_nan=True)
