"""What rounding takes from scatter and from class means: kept where it can be, else counted and said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ncops
from ncops import metrics
from ncops.ops import class_scatter
from ncops.stats import scatter as scatter_module


def truth(x, y):
    """``(Sigma_W, NC1, VCI)`` in NumPy's float64, every direction that K class means can have counted."""
    x, y = x.double().numpy(), y.numpy()
    k = y.max() + 1
    means = np.stack([x[y == c].mean(0) for c in range(k)])
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    root = (means - means.mean(0)) / k**0.5
    _, s, basis = np.linalg.svd(root, full_matrices=False)
    rank = min(root.shape[1], k - 1)
    inverse = basis[:rank] / s[:rank, None]
    # VCI does not change with the units of a coordinate.
    scale = np.diag(1 / np.sqrt(np.where(np.diag(within) > 0, np.diag(within), np.nan)))
    between = scale @ root.T @ root @ scale
    total = scale @ within @ scale + between
    return within, np.trace(inverse @ within @ inverse.T) / k, 1 - np.trace(np.linalg.solve(total, between)) / rank


def measured(x, y, batch=None):
    stats = ncops.ClassStatistics(int(y.max()) + 1, x.shape[1], scatter=True)
    for rows in zip(x.split(batch or len(x)), y.split(batch or len(x)), strict=True):
        stats.update(*rows)
    geometry = stats.compute()
    return geometry, ncops.collapse(geometry)


def noise(rows=600, classes=10, dim=32):
    y = torch.arange(rows) % classes
    return 3 * torch.randn(classes, dim)[y] + 0.5 * torch.randn(rows, dim), y


def outlier(x, row):
    x = x.clone()
    x[row] += 1e4
    return x


def off_axis(x, std):
    direction = torch.randn(x.shape[1])
    return x + std * torch.randn(len(x), 1) * direction / direction.norm()


@pytest.mark.parametrize("batch", (None, 100))
@pytest.mark.parametrize("dim", (32, 150))
@pytest.mark.parametrize(
    "change",
    (
        lambda x: outlier(x, 7),
        lambda x: outlier(x, 555),
        lambda x: off_axis(x, 100),
        lambda x: off_axis(x, 1e3),
        lambda x: off_axis(x, 1e4),
        lambda x: off_axis(off_axis(x, 1e4), 1e3),
    ),
    ids=("first batch", "last batch", "100", "1e3", "1e4", "two"),
)
def test_wide_deviations_off_the_axes(change, dim, batch):
    x, y = noise(dim=dim)
    x = change(x)
    within, nc1, vci = truth(x, y)
    geometry, report = measured(x, y, batch)
    smallest = np.linalg.eigvalsh(within)[0]
    assert float(torch.linalg.eigvalsh(geometry.within_cov)[0]) == pytest.approx(smallest, rel=2e-3)
    assert report["vci"] == pytest.approx(vci, rel=2e-4) and report["nc1_pinv"] == pytest.approx(nc1, rel=1e-4)
    assert report.coverage["lost_directions"] == report.coverage["dropped_directions"] == 0
    assert "vci" not in report.notes and "nc1_pinv" not in report.notes


@pytest.mark.parametrize("ignored", (0, 3))
def test_rows_of_an_ignored_class_are_not_added_up_in_float64_either(ignored):
    x, y = noise()
    x = off_axis(x, 1e4)
    one, other = (ncops.ClassStatistics(10, 32, scatter=True, ignore_index=i) for i in (ignored, -100))
    one.update(x, y)
    other.update(x[y != ignored], y[y != ignored])
    torch.testing.assert_close(one.compute().within_cov, other.compute().within_cov, rtol=1e-12, atol=1e-9)


def test_rows_whose_squares_are_no_float32():
    x, y = noise(dim=8)
    x[5] *= 1e20
    geometry, _ = measured(x, y)
    np.testing.assert_allclose(geometry.within_cov, truth(x, y)[0], rtol=1e-5)


@pytest.mark.parametrize("wide", (1, 1e4))
@pytest.mark.parametrize("dead", (False, True))
def test_ordinary_and_axis_aligned_data_are_added_up_in_float32(wide, dead, monkeypatch):
    dtypes = []

    def seen(x, *rest, **options):
        dtypes.append(x.dtype)
        return class_scatter(x, *rest, **options)

    monkeypatch.setattr(scatter_module, "class_scatter", seen)
    x, y = noise(rows=3000, dim=100)
    x[:, 3] *= wide
    if dead:
        x[:, 16] = 0  # one that is looked at
    _, report = measured(x, y, 500)
    assert dtypes == [torch.float32] * 6
    assert report["nc1_pinv"] == pytest.approx(truth(x, y)[1], rel=1e-5)
    dtypes.clear()
    stats = ncops.ClassStatistics(10, 100, scatter=True)
    for rows in (slice(0, 3000), slice(0, 20)):  # a batch of too few rows for all directions, after enough of them
        stats.update(x[rows], y[rows])
    assert dtypes == [torch.float32] * 2
    dtypes.clear()
    x[700, 4] = torch.nan  # what is spoilt has no digits to lose: one look, in its own batch
    measured(x, y, 500)
    assert dtypes == [torch.float32] * 2 + [torch.float64] + [torch.float32] * 4


def test_what_the_look_at_some_coordinates_misses_is_said():
    x, y = noise(dim=128)  # of which every second one is looked at
    x[:, 1::32] += 1e4 * torch.randn(600, 1)
    geometry, report = measured(x, y)
    assert float(torch.linalg.eigvalsh(geometry.within_cov)[0]) < 0
    lost = report.coverage["lost_directions"]
    assert 1 <= lost <= 3  # 4 coordinates hold one wide direction
    said = f"{lost} of 128 directions of the within-class covariance are no more than rounding"
    assert report.notes["vci"] == report.notes["nc1_pinv"] == f"{said} (float32 features; float64 ones keep more)"
    assert said in report.table()
    exact, report = measured(x.double(), y)
    assert report.coverage["lost_directions"] == 0 and "vci" not in report.notes
    np.testing.assert_allclose(exact.within_cov, truth(x, y)[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rows", (20, 33, 40, 300))
def test_vci_stays_between_0_and_1(rows):
    for classes in (2, 10):
        x, y = noise(rows, classes)
        assert 0 <= measured(x, y)[1]["vci"] <= 1
    indefinite = torch.diag(torch.tensor([1.0, -3.0, 1.0])).double()
    for scale in (-0.4, 0.4, 1, 3):
        assert 0 <= metrics.vci(scale * indefinite, torch.randn(5, 3).double()) <= 1


def spectrum(offset, dtype=torch.float32):
    """Means and deviations with a spectrum over three decades off the axes, one coordinate far from the origin."""
    y = torch.arange(4000) % 100
    turned = torch.logspace(0, -3, 32, dtype=torch.float64)[:, None] * torch.linalg.qr(torch.randn(32, 32).double()).Q
    x = (torch.randn(100, 32).double()[y] + 0.1 * torch.randn(4000, 32).double()) @ turned
    x[:, 5] += offset
    return x.to(dtype), y


@pytest.mark.parametrize("offset", (0, 100, 3e4))
def test_one_offset_costs_no_direction(offset):
    x, y = spectrum(offset)
    _, nc1, vci = truth(x, y)
    geometry, report = measured(x, y, 1000)
    assert report["nc1_pinv"] == pytest.approx(nc1, rel=1e-4) and report["vci"] == pytest.approx(vci, rel=1e-3)
    assert report.coverage["dropped_directions"] == 0 and "nc1_pinv" not in report.notes
    # One number for all directions, for code that takes rtol, drops none either.
    rtol = metrics.rounding_rtol(geometry.means, torch.float32)
    assert float(metrics.nc1_pinv(geometry.within_cov, geometry.means, rtol=rtol)) == pytest.approx(nc1, rel=1e-4)


def test_a_direction_of_rounding_is_dropped_whatever_its_size():
    """A coordinate that is nothing but rounding of its offset, wider than directions that are real."""
    means = torch.linalg.qr(torch.randn(60, 6).double()).Q * torch.tensor([1, 1e-1, 1e-2, 1e-3, 1e-4, 0])
    means[:, 5] = (1e5 + 0.02 * torch.rand(60)).float().double()
    within = torch.eye(6, dtype=torch.float64)
    singular = torch.linalg.svdvals(means[:, :5] - means[:, :5].mean(0))
    assert float(metrics.nc1_pinv(within, means, input_dtype=torch.float32)) == pytest.approx(
        float(singular.square().reciprocal().sum()), rel=5e-2
    )
    assert metrics.dropped_directions(means, input_dtype=torch.float32) == 1
    assert metrics.dropped_directions(means, input_dtype=torch.float64) == 0


def test_dropped_directions_are_counted_and_said():
    y = torch.arange(3000) % 30
    plane = torch.randn(30, 2)[y] + 0.01 * torch.randn(3000, 2)
    _, report = measured(plane @ torch.randn(2, 20) + 100, y)
    assert report.coverage["dropped_directions"] == 18
    assert "18 of 20 directions of the class means are no more than rounding, and left out" in report.notes["nc1_pinv"]
    few = torch.arange(3000) % 5
    few = torch.randn(5, 2)[few] @ torch.randn(2, 20) + 100, few
    for convention, directions in (("ncops", 4), ("zhu", 5)):
        notes = ncops.collapse(measured(*few)[0], convention=convention).notes
        assert f"2 of {directions} directions of the class means" in notes["vci"]
    without = ncops.collapse(ncops.ClassStatistics(3, 4).compute())
    assert "dropped_directions" not in without.coverage
    assert metrics.dropped_directions(torch.ones(4, 3)) == 0 and metrics.dropped_directions(torch.ones(1, 3)) == 0
    assert metrics.dropped_directions(torch.full((4, 3), torch.nan)) == 0
    assert metrics.lost_directions(torch.full((3, 3), torch.nan)) == metrics.lost_directions(torch.zeros(3, 3)) == 0


def test_a_wide_coordinate_costs_solve_trace_no_direction():
    scales = torch.tensor([1e4, 1, 1, 1e-2])
    means = (torch.randn(9, 4) * scales).float()
    within = torch.diag(scales.square()).float()
    root = (means.double() - means.double().mean(0)) / 3
    total = within.double() + root.T @ root
    expected = torch.linalg.solve(total / scales / scales[:, None], (root / scales).T @ (root / scales)).trace()
    assert float(ncops.solve_trace(total.float(), means)) == pytest.approx(float(expected), rel=1e-4)
