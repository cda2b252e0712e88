"""class_scatter by products of float16 halves, in Triton's interpreter: chunks of a few rows, padded features."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from testing import (
    HALF,
    IGNORE,
    LAYOUTS,
    assert_accurate,
    assert_deterministic,
    exact,
    held,
    layouts,
    plain,
    randn,
    random_labels,
)

import ncops
from ncops.reference import class_scatter as reference

launch = pytest.importorskip("ncops.triton_kernels._launch")
from ncops.triton_kernels import _split_halves as halves  # noqa: E402
from ncops.triton_kernels import class_scatter as kernels  # noqa: E402
from ncops.triton_kernels._candidates import CHOSEN, candidate  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not launch.interpreted(), reason="tests/gpu runs the compiled kernels"),
]
MOST = 2**-20  # relative error: of two halves, and of float32's sums of 24 terms
narrow = pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Of 24 rows; blocks of 16."""
    monkeypatch.setattr(halves, "CHUNK", 24)


def by_halves(x, labels=None, center=None):
    """The kernel's result, which halves must have made."""
    runs, run = [], halves.scatter_of_halves
    with candidate("split_halves"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(halves, "scatter_of_halves", lambda *a: runs.append(1) or run(*a))
        ours = kernels.class_scatter(x, labels, center, IGNORE, False)
    assert runs and not CHOSEN
    assert ours.dtype == torch.float32 and torch.equal(ours.nan_to_num(), ours.T.nan_to_num())
    return ours


def kept(labels, classes):
    """Labels without those out of range, which a GPU skips."""
    outside = (labels < 0) | (labels >= classes)
    return labels.masked_fill(outside, IGNORE)


def truth_of(x, labels=None, center=None):
    """In float64."""
    labels = labels if labels is None else kept(labels, len(center))
    return reference.class_scatter(*exact(x, labels, center), IGNORE, False)


def error(ours, x, labels=None, center=None):
    """The largest, relative to the norms of the two columns."""
    truth = truth_of(x, labels, center)
    norms = truth.diagonal().sqrt().clamp(min=1e-200)
    return ((ours.double() - truth).abs() / norms[:, None] / norms[None]).nan_to_num(0).max().item()


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("uncentred", torch.float32), *((m, t) for m in ("one centre", "classes") for t in (torch.float32, *HALF))],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 2), (65, 33, 4), (130, 70, 7), (24, 16, 1)], ids=str)
def test_parity(shape, mode, dtype):
    n, d, c = shape
    x = randn(n, d, dtype=dtype, shift=0.5)
    center = {"uncentred": None, "one centre": randn(d).float(), "classes": randn(c, d).float()}[mode]
    labels = None
    if mode == "classes":
        labels = random_labels(n, c)
        labels[n // 2], labels[-1] = c, -7  # out of range
    ours = by_halves(x, labels, center)
    theirs = reference.class_scatter(*plain(x), labels if labels is None else kept(labels, c), center, IGNORE, False)
    assert_accurate(ours, theirs, truth_of(x, labels, center), scale=truth_of(x, labels, center).max().item())
    assert error(ours, x, labels, center) < MOST


@layouts
def test_layouts(layout):
    x, center = LAYOUTS[layout](randn(65, 33, dtype=torch.float32)), LAYOUTS[layout](randn(6, 33, dtype=torch.float32))
    labels = random_labels(65, 6).repeat_interleave(2)[::2]
    assert error(by_halves(x, labels, center), x, labels, center) < MOST
    assert error(by_halves(x), x) < MOST


def test_nothing():
    for n, d in ((0, 5), (5, 0), (0, 0)):
        with candidate("split_halves"):
            found = kernels.class_scatter(randn(n, d, dtype=torch.float32), None, None, IGNORE, False)
        assert torch.equal(found, torch.zeros(d, d))
    ignored = torch.full((5,), IGNORE)
    for classes in (0, 2):
        assert (by_halves(randn(5, 3, dtype=torch.float32), ignored, randn(classes, 3).float()) == 0).all()


@pytest.mark.parametrize("centred", [False, True])
def test_common_offsets(centred):
    """1000 times their spread, where float16 has its last digit below the spread's first."""
    x, center = randn(130, 20, shift=1000.0).float(), randn(20, shift=1000.0).float() if centred else None
    ours = by_halves(x, None, center)
    assert error(ours, x, None, center) < MOST
    there = kernels.class_scatter(x, None, center, IGNORE, False)
    assert error(ours, x, None, center) < 2 * error(there, x, None, center) + 2**-22


def test_columns_of_all_sizes():
    """From float32's smallest numbers to its largest; products beyond it are infinite, below it zero."""
    sizes = torch.tensor([0.0, 1e-44, 1e-38, 1e-30, 1e-10, 1.0, 6e4, 1e10, 1e30, 1e38], dtype=torch.float64)
    x = (randn(70, 10).clamp(-3, 3) * sizes).float()
    ours, truth = by_halves(x), truth_of(x)
    norms = truth.diagonal().sqrt()
    within = truth.abs() < torch.finfo(torch.float32).max
    off = (ours.double() - truth).abs()
    norms[:3] *= 2**9  # 12 bits: these would take scales beyond float32
    least = torch.finfo(torch.float32).smallest_normal * 2**-22
    assert (off[within] <= (MOST * norms[:, None] * norms[None] + least)[within]).all()
    assert torch.equal(ours[~within].double(), truth[~within].sign() * math.inf) and not within.all()
    assert ours[3, 8].abs() > 1e-3  # of 1e-30 and 1e30


def test_small_deviations_beside_a_large_one():
    """Of 2^-29 of their column's largest, which is in a row where the other columns are 0, they keep 12 bits."""
    x = randn(70, 6).float()
    x[5], x[5, 0] = 0, 2.0**28
    ours, truth = by_halves(x), truth_of(x)
    norms = x[torch.arange(70) != 5].double().norm(dim=0)
    assert ((ours.double() - truth).abs()[0, 1:] <= 2**-12 * norms[0] * norms[1:]).all()
    assert error(ours, x) < MOST


@narrow
def test_tight_classes(dtype):
    """Deviations of 1e-6 of the means in float32, of a few digits in half precision: as exact as the kernel itself."""
    means = torch.nn.functional.normalize(randn(8, 24), dim=1) * 100
    labels = torch.arange(8).repeat(16)
    x = (means[labels] + 1e-4 * randn(128, 24)).to(dtype)
    center = torch.stack([x[labels == c].double().mean(0) for c in range(8)]).float()
    truth = truth_of(x, labels, center)
    ours, there = by_halves(x, labels, center), kernels.class_scatter(x, labels, center, IGNORE, False)
    mine, its = ((found.double() - truth).abs().max() / truth.diagonal().max() for found in (ours, there))
    assert mine < 1e-5 and mine < 2 * its + MOST


@narrow
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_keeps_to_its_feature(dtype, value):
    x, center = randn(60, 9).to(dtype), randn(9).float()
    x[50, 4] = 0
    clean = by_halves(x, None, center)
    x[3, 2], x[50, 4] = value, 60000  # float16 holds it unscaled, and what it is scaled to
    ours = by_halves(x, None, center)
    truth = truth_of(x, None, center)
    assert not truth[2].isfinite().any() and ours[2].isnan().all() and ours[:, 2].isnan().all()
    rest = torch.tensor([0, 1, 3, 5, 6, 7, 8])
    torch.testing.assert_close(ours[rest][:, rest], clean[rest][:, rest], rtol=0, atol=0)
    assert ours[4, rest].isfinite().all()
    labels = torch.zeros(60, dtype=torch.int64).index_fill(0, torch.tensor([3]), IGNORE)
    assert by_halves(x, labels, center[None]).isfinite().all()


def test_large_numbers_beside_one_that_is_not_finite():
    """In a column that has no scale; and a deviation that leaves float32."""
    x = randn(30, 4).float()
    x[:, 1] *= 1e8
    x[7, 1] = math.inf
    x[:, 2], center = 3e38, torch.tensor([0, 0, -3e38, 0])
    ours = by_halves(x, None, center)
    finite = torch.tensor([0, 3])
    assert ours[finite][:, finite].isfinite().all() and ours[1:3].isnan().all() and ours[:, 1:3].isnan().all()


def test_same_bits():
    x, labels, center = randn(130, 33).float(), random_labels(130, 4), randn(4, 33).float()
    assert_deterministic(lambda: by_halves(x, labels, center), "triton")


@pytest.mark.parametrize("value", [1.0, 1.999999, 1.5, 3e-5, 1e15])
def test_sums_of_whole_numbers_are_exact(value, monkeypatch):
    """Columns of one size in every chunk, of both signs, of normal numbers, and of a large one."""
    products, add = [], halves.add_product

    def noted(out, a, b, first):
        products.append((a.clone(), b.clone()))
        add(out, a, b, first)

    monkeypatch.setattr(halves, "add_product", noted)
    x = torch.full((60, 4), value)
    x[::2, 1] *= -1
    x[:, 2] *= randn(60).float()
    x[1:, 3] *= 1e-3
    assert error(by_halves(x), x) < MOST
    for a, high in products[::2]:
        assert torch.equal(a, high.mT) and torch.equal(high, high.round()) and (high[:, 4:] == 0).all()
        assert high.double().square().sum(0).max() <= 2**24
    for _, low in products[1::2]:
        assert low.abs().max() <= 4096 and (low[:, 4:] == 0).all()
    assert products[0][1].double().square().sum(0)[:4].min() > 2**21  # and digits are not wasted


def as_tensor_cores(out, a, b, first):
    """``out + a @ b`` as an H200 rounds: of 16 products and the sum before them what lies two bits below float32's last
    is cut off, then the sum to float32."""
    total = torch.zeros(out.shape, dtype=torch.float64)
    for start in range(0, len(b), 16):
        rows = slice(start, start + 16)
        terms = torch.cat([total[None], a.mT[rows, :, None].double() * b[rows, None].double()])
        unit = torch.exp2(terms.abs().amax(0).frexp().exponent - 26.0)
        total = (terms / unit).trunc().sum(0) * unit
        last = torch.exp2(total.frexp().exponent - 24.0)
        total = (total / last).trunc() * last
    out.copy_(total if first else out + total.float())


def test_with_sums_as_tensor_cores_round_them(monkeypatch):
    """The errors of docs/gpu.md: of 4096 normal numbers, their cubes, an offset of 1000, uniform ones, one for all."""
    n = 4096
    x = torch.stack([randn(n), randn(n) ** 3, randn(n, shift=1000.0), torch.rand(n), torch.ones(n) / 3], 1).float()
    raw = torch.empty(5, 5)
    as_tensor_cores(raw, x.half().mT, x.half(), True)
    assert 1e-5 < error(raw, x.half())  # of sums that are as long
    monkeypatch.setattr(halves, "CHUNK", 4096)
    monkeypatch.setattr(halves, "add_product", as_tensor_cores)
    with launch.override("split_halves", BLOCK_N=1024):
        ours = by_halves(x)
    assert error(ours[:4, :4], x[:, :4]) < 4e-7 and error(ours, x) < 6e-6


def test_products_that_are_not_symmetric_give_a_result_that_is(monkeypatch):
    add = halves.add_product

    def rounded_anyhow(out, a, b, first):
        add(out, a, b, first)
        out.add_(torch.rand(out.shape))

    monkeypatch.setattr(halves, "add_product", rounded_anyhow)
    by_halves(randn(30, 40).float())  # which looks


def test_chunks_of_the_size_of_a_gpu(monkeypatch):
    monkeypatch.setattr(halves, "CHUNK", 4096)
    x = randn(4103, 2).float()
    x[:, 1] = 1.1
    with launch.override("split_halves", BLOCK_N=1024):
        assert error(by_halves(x), x) < 2**-17


def test_what_is_multiplied_otherwise():
    x, center = randn(4, 3).float(), randn(3).float()
    assert halves.fits(x, None, False) and halves.fits(x.half(), center, False)
    for bad in ((x, None, True), (x.half(), None, False), (x.double(), None, False), (x.double(), center, False)):
        assert not halves.fits(*bad)
    with candidate("split_halves"), ncops.use_backend("triton"):
        assert ncops.class_scatter(x.double()).dtype == torch.float64
        assert torch.equal(ncops.class_scatter(x.half()), kernels.class_scatter(x.half(), None, None, IGNORE, False))
    with held(partial(setattr, torch.backends.cuda.matmul, "allow_fp16_accumulation"), False, True):
        assert not halves.fits(x, None, False)


def test_gradients_are_those_of_the_op():
    x, center, weight = randn(20, 5).float(), randn(5).float(), randn(5, 5).float()

    def gradients():
        inputs = x.clone().requires_grad_(), center.clone().requires_grad_()
        with ncops.use_backend("triton"):
            return torch.autograd.grad((ncops.class_scatter(inputs[0], None, inputs[1]) * weight).sum(), inputs)

    there = gradients()
    with candidate("split_halves"):
        assert all(map(torch.equal, gradients(), there))
