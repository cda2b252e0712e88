"""The metric functions on hand-computed cases, and each of their conventions."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from numpy_metrics import cosines, pairs, simplex_distance, spread

from ncops import metrics, projected_sqnorms
from ncops.metrics import table
from ncops.metrics.papers import PAPERS
from ncops.report.plots.panels import PANELS


def simplex(k, dim, scale=1.0, shift=0.0):
    """K vertices of a regular simplex in ``dim`` dimensions, randomly rotated."""
    rows = torch.eye(k, dtype=torch.float64) - 1 / k
    rotation = torch.linalg.qr(torch.randn(max(k, dim), max(k, dim), dtype=torch.float64)).Q
    embedded = torch.zeros(k, max(k, dim), dtype=torch.float64)
    embedded[:, :k] = rows
    embedded = embedded @ rotation if dim >= k else embedded @ torch.linalg.svd(rows).Vh.T[:, :dim]
    return scale * embedded[:, :dim] + shift


@pytest.mark.parametrize("k, dim", ((2, 1), (2, 5), (5, 4), (6, 20), (40, 64)))
@pytest.mark.parametrize("shift", (0.0, 100.0))
def test_simplex(k, dim, shift):
    m = simplex(k, dim, scale=3.0, shift=shift)
    tight = 1e-12 * (1 + shift)
    assert metrics.etf_error(m) < 10 * tight
    assert metrics.norm_variation(m) < tight and metrics.norm_variation(m, log=True) < tight
    cosine = metrics.pair_similarity(m)
    assert float(cosine.mean) == pytest.approx(-1 / (k - 1), abs=tight) and cosine.std < 1e-6
    assert metrics.angle_error(m) < tight
    uniform = metrics.log_uniformity(m)
    assert float(uniform.mean) == pytest.approx(-math.log(2 * k / (k - 1)) / 2, abs=tight) and uniform.var < tight
    w = (m - m.mean(0)) * 7
    assert metrics.duality_error(w, m) < 10 * tight and metrics.duality_distance(w, m) < tight
    aligned = metrics.alignment(w, m)
    assert float(aligned.mean) == pytest.approx(1, abs=tight) and aligned.cv < tight


@pytest.mark.parametrize("k, dim", ((2, 1), (6, 20), (30, 8)))
def test_no_spread_inside_classes(k, dim):
    m = torch.randn(k, dim, dtype=torch.float64)
    zero = torch.zeros(dim, dim, dtype=torch.float64)
    assert metrics.nc1_pinv(zero, m) == 0 and metrics.nc1_quotient(torch.tensor(0.0), m) == 0
    assert metrics.nc1_cdnv(torch.zeros(k), m) == 0
    assert abs(metrics.vci(zero, m)) < 1e-9


def test_hand_computed_variability():
    m = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)  # Sigma_B = diag(1, 0)
    within = torch.tensor([[0.5, 0.1], [0.1, 3.0]], dtype=torch.float64)
    assert float(metrics.nc1_pinv(within, m)) == pytest.approx(0.25)
    assert float(metrics.nc1_pinv(within, m, divide=False)) == pytest.approx(0.5)
    assert float(metrics.nc1_quotient(torch.tensor(3.5), m)) == pytest.approx(3.5)
    v = torch.tensor([2.0, 4.0])
    assert float(metrics.nc1_cdnv(v, m)) == pytest.approx(6 / 8)
    assert float(metrics.nc1_cdnv(v, m, power=2)) == pytest.approx(6 / 32)
    assert float(metrics.nc1_cdnv(v, m, counts=torch.tensor([2, 5]), ddof=1)) == pytest.approx(9 / 8)
    assert metrics.nc1_cdnv(torch.tensor([0.0, 4.0]), m, counts=torch.tensor([1, 5]), ddof=1).isnan()
    total = within + torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert float(metrics.vci(within, m)) == pytest.approx(1 - float(torch.linalg.inv(total)[0, 0]))
    g = torch.tensor([0.0, 1.0], dtype=torch.float64)  # about which Sigma_B is the identity
    assert float(metrics.nc1_quotient(torch.tensor(3.5), m, global_mean=g)) == pytest.approx(1.75)
    shares = torch.linalg.inv(within + torch.eye(2, dtype=torch.float64))
    assert float(metrics.vci(within, m, global_mean=g)) == pytest.approx(1 - float(shares.trace()) / 2)


def test_vci_is_invariant_to_linear_maps():
    m, a = torch.randn(7, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    x = torch.randn(30, 5, dtype=torch.float64)
    within = x.T @ x / 30
    assert float(metrics.vci(a @ within @ a.T, m @ a.T)) == pytest.approx(float(metrics.vci(within, m)), rel=1e-10)


def test_vci_counts_the_directions_that_means_have():
    m = torch.randn(9, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    rtol = metrics.rounding_rtol(m.float().double(), torch.float32)
    assert abs(metrics.vci(torch.zeros(6, 6, dtype=torch.float64), m.float().double(), rtol=rtol)) < 1e-6


def test_float32_rounding_in_the_means_is_not_a_direction():
    """Means in a plane, rounded to float32 far from the origin: the pseudo-inverse must not see the rounding."""
    plane = torch.randn(2, 12, dtype=torch.float64)
    exact = torch.randn(40, 2, dtype=torch.float64) @ plane + 50 * torch.randn(12, dtype=torch.float64)
    rounded = exact.float().double()
    within = torch.eye(12, dtype=torch.float64)
    truth = metrics.nc1_pinv(within, exact)
    ours = metrics.nc1_pinv(within, rounded, rtol=metrics.rounding_rtol(rounded, torch.float32))
    assert float(ours) == pytest.approx(float(truth), rel=1e-4)
    assert metrics.nc1_pinv(within, rounded) > 1e6 * truth  # what the float64 rule alone would report
    assert metrics.rounding_rtol(exact, torch.float64) is None
    assert float(metrics.nc1_pinv(within, rounded, input_dtype=torch.float32)) == pytest.approx(float(truth), rel=1e-4)
    assert len(metrics.nc1_basis(rounded, input_dtype=torch.float32)) == 2
    assert len(metrics.nc1_basis(rounded)) == 12


def test_directions_no_wider_than_what_rounding_made_are_lost():
    """Eigenvalues -1e-6, 5e-7 and two near 2: a covariance has no negative one, so that 1e-6 is its rounding."""
    blocks = [torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64) for r in (1 + 1e-6, 1 - 5e-7)]
    assert metrics.lost_directions(torch.block_diag(*blocks)) == 2
    assert metrics.lost_directions(blocks[1]) == 0


@pytest.mark.parametrize("k, dim", ((5, 9), (10, 9), (11, 9), (60, 9)))
def test_simplex_error_without_the_grid(k, dim):
    """Both ways of computing it, around the size at which one takes over from the other."""
    a, b = torch.randn(k, dim, dtype=torch.float64), torch.randn(k, dim, dtype=torch.float64)
    assert float(metrics.simplex_error(a, b)) == pytest.approx(simplex_distance((a @ b.T).numpy()), rel=1e-12)
    expanded = metrics.configuration._simplex_error_expanded(a, b)
    assert float(expanded) == pytest.approx(simplex_distance((a @ b.T).numpy()), rel=1e-10)


def test_float32_means_are_centred_in_float64():
    m = (torch.randn(3000, 4) + 1e4).float()
    for number in (metrics.etf_error, metrics.norm_variation, lambda m: metrics.pair_similarity(m).mean):
        assert float(number(m)) == pytest.approx(float(number(m.double())), rel=1e-12)


def test_simplex_error_keeps_digits_near_zero():
    m = simplex(8, 30) + 1e-7 * torch.randn(8, 30, dtype=torch.float64)
    centred = (m - m.mean(0)).numpy()
    assert float(metrics.etf_error(m)) == pytest.approx(simplex_distance(centred @ centred.T), rel=1e-6)


def test_blocks_change_nothing(monkeypatch):
    k, dim = 500, 40
    w, m = torch.randn(k, dim), torch.randn(k, dim, dtype=torch.float64)

    def numbers():
        return torch.stack([
            metrics.etf_error(m), metrics.etf_error(m[:41]), metrics.duality_error(w, m), metrics.norm_variation(m),
            *metrics.alignment(w, m), metrics.nc1_quotient(torch.tensor(1.0), m), metrics.mean_norms(m).sum(),
        ])  # fmt: skip

    whole = numbers()
    monkeypatch.setattr("ncops.stats.blocks.BLOCK_BYTES", 8 * 40 * 7)
    torch.testing.assert_close(numbers(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("point", (None, "sample"))
def test_conventions_are_arguments(point):
    k, dim = 20, 6
    m, w = torch.randn(k, dim, dtype=torch.float64) + 1, torch.randn(k, dim, dtype=torch.float64)
    g = None if point is None else torch.randn(dim, dtype=torch.float64)
    centred = (m - (m.mean(0) if g is None else g)).numpy()
    norms = np.linalg.norm(centred, axis=1)
    for ddof in (0, 1):
        for values, options in ((norms, {}), (np.log(norms), {"log": True}), (norms**2, {"squared": True})):
            ours = metrics.norm_variation(m, global_mean=g, ddof=ddof, **options)
            assert float(ours) == pytest.approx(spread(values, ddof), rel=1e-12)
        angles = cosines(centred)
        apart = abs(angles + 1 / (k - 1)).mean()
        assert float(metrics.angle_error(m, global_mean=g)) == pytest.approx(apart, rel=1e-12)
        assert float(metrics.pair_similarity(m, global_mean=g, ddof=ddof).std) == pytest.approx(angles.std(ddof=ddof))
        dot = metrics.pair_similarity(m, global_mean=g, similarity="dot", ddof=ddof)
        grid = pairs(centred @ centred.T)
        assert float(dot.mean) == pytest.approx(grid.mean(), rel=1e-9)
        assert float(dot.var) == pytest.approx(grid.var(ddof=ddof), rel=1e-9)
        for center_weight in (False, True):
            rows = (w - w.mean(0) if center_weight else w).numpy()
            dots = (rows * centred).sum(1)
            options = {"global_mean": g, "center_weight": center_weight}
            ours = metrics.alignment(w, m, similarity="dot", ddof=ddof, **options)
            assert float(ours.mean) == pytest.approx(dots.mean(), rel=1e-9)
            assert float(ours.cv) == pytest.approx(spread(dots, ddof), rel=1e-9)
            error = metrics.duality_error(w, m, **options)
            assert float(error) == pytest.approx(simplex_distance(rows @ centred.T), rel=1e-9)
            apart = rows / np.linalg.norm(rows) - centred / np.linalg.norm(centred)
            distance = metrics.duality_distance(w, m, **options)
            assert float(distance) == pytest.approx((apart**2).sum(), rel=1e-9)
    raw = metrics.log_uniformity(m, center=False)
    unit = (m / m.norm(dim=1, keepdim=True)).numpy()
    logs = [-math.log(np.linalg.norm(unit[i] - unit[j])) for i in range(k) for j in range(i + 1, k)]
    assert float(raw.mean) == pytest.approx(np.mean(logs), rel=1e-9) and float(raw.var) == pytest.approx(
        np.var(logs), rel=1e-9
    )


@pytest.mark.parametrize("k", (511, 512, 513, 1100))
@pytest.mark.parametrize("about", (None, 0.0))
def test_angles_of_more_rows_than_a_tile_has(k, about):
    m = torch.randn(k, 5) + 1
    rows = m.double().numpy() - (m.double().numpy().mean(0) if about is None else 0)
    ours = metrics.angle_error(m, global_mean=None if about is None else torch.zeros(5))
    assert float(ours) == pytest.approx(abs(cosines(rows) + 1 / (k - 1)).mean(), rel=1e-12)


def test_an_angle_error_has_a_gradient():
    m = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(metrics.angle_error, (m,))


def test_hand_computed_angles():
    rows = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])  # cosines 0, 0 and -1, a simplex has -1/2
    assert float(metrics.angle_error(rows, global_mean=torch.zeros(2))) == pytest.approx(0.5)
    assert metrics.angle_error(torch.tensor([[1.0, 0], [0, 0], [2, 1]]), global_mean=torch.zeros(2)).isnan()


@pytest.mark.parametrize("k, dim", ((6, 15), (25, 8)))
def test_nc1_without_scatter(k, dim):
    y = torch.randint(0, k, (2000,))
    y[:k] = torch.arange(k)
    x = 2 * torch.randn(k, dim, dtype=torch.float64)[y] + torch.randn(2000, dim, dtype=torch.float64)
    means = torch.stack([x[y == c].mean(0) for c in range(k)])
    within = (x - means[y]).T @ (x - means[y]) / 2000
    streamed = projected_sqnorms(x, metrics.nc1_basis(means), y, means).sum() / (2000 * k)
    assert float(streamed) == pytest.approx(float(metrics.nc1_pinv(within, means)), rel=1e-10)


@pytest.mark.parametrize("k", (0, 1))
def test_too_few_classes(k):
    m, within = torch.randn(k, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    w, v = torch.randn(k, 4), torch.ones(k)
    values = [
        metrics.nc1_pinv(within, m), metrics.nc1_quotient(torch.tensor(1.0), m), metrics.nc1_cdnv(v, m),
        metrics.vci(within, m), metrics.norm_variation(m), metrics.norm_variation(m, log=True),
        *metrics.pair_similarity(m), *metrics.log_uniformity(m), metrics.etf_error(m), *metrics.alignment(w, m),
        metrics.duality_error(w, m), metrics.duality_distance(w, m), metrics.angle_error(m),
    ]  # fmt: skip
    assert torch.stack(values).isnan().all()
    assert metrics.rounding_rtol(m, torch.float32) is None


def test_poisoned_and_coincident_means():
    m = torch.randn(5, 3, dtype=torch.float64)
    m[2] = float("nan")
    within = torch.eye(3, dtype=torch.float64)
    for value in (
        metrics.nc1_pinv(within, m),
        metrics.vci(within, m),
        metrics.nc1_cdnv(torch.ones(5), m),
        metrics.etf_error(m),
        metrics.norm_variation(m),
        metrics.angle_error(m),
    ):
        assert value.isnan()
    assert metrics.rounding_rtol(m, torch.float32) is None
    with pytest.raises(ValueError, match="means: expected finite rows"):
        metrics.nc1_basis(m)
    same = torch.ones(4, 3, dtype=torch.float64)
    assert metrics.vci(within, same).isnan()
    assert metrics.nc1_cdnv(torch.ones(4), same).isinf()


def test_decision_shares():
    counts, hits = torch.tensor([3, 0, 5]), torch.tensor([1, 0, 5])
    assert float(metrics.share(hits, counts)) == 0.75
    assert float(metrics.mean_nll(torch.tensor([4.0, 0.0, 4.0]), counts)) == 1.0
    per_class = metrics.per_class_share(hits, counts)
    assert per_class[0] == pytest.approx(1 / 3) and per_class[1].isnan() and per_class[2] == 1
    assert metrics.share(hits * 0, counts * 0).isnan()
    ece = metrics.expected_calibration_error(
        torch.tensor([4, 0, 6]), torch.tensor([1, 0, 6]), torch.tensor([2.0, 0.0, 5.4])
    )
    assert float(ece) == pytest.approx((1 + 0.6) / 10)


def test_wrong_arguments():
    m = torch.randn(4, 3)
    for call, name in (
        (lambda: metrics.alignment(m[:3], m), "weight"),
        (lambda: metrics.alignment(m, m, similarity="angle"), "similarity"),
        (lambda: metrics.pair_similarity(m, similarity="angle"), "similarity"),
        (lambda: metrics.angle_error(m[0]), "means"),
        (lambda: metrics.etf_error(m, global_mean=torch.zeros(4)), "global_mean"),
        (lambda: metrics.nc1_cdnv(torch.ones(3), m), "class_var"),
        (lambda: metrics.nc1_cdnv(torch.ones(4), m, ddof=1), "counts"),
        (lambda: metrics.duality_error(m.long(), m), "weight"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()


def test_the_table_of_metrics_is_whole():
    groups = [metric.group for metric in table.METRICS.values()]
    assert [group for i, group in enumerate(groups) if group not in groups[:i]] == [g for g, _ in groupby(groups)]
    for metric in table.METRICS.values():
        assert metric.label and metric.sentence and metric.goal and metric.better in ("lower", "higher", "")
        assert metric.formula and metric.span and metric.moved.endswith(".") and set(metric.papers) <= set(PAPERS)
        assert not metric.panel or metric.panel in PANELS and metric.short
        assert metric.name not in table.HEADLINES or metric.target is not None and metric.far
        assert (metric.name in table.NAMES) == bool(metric.needs)
    assert [table.meaning(name).group for name in table.HEADLINES] == ["NC1", "NC2", "NC3", "NC4"]


def test_what_moves_a_metric_is_true():
    """The numbers that the table of metrics states."""
    generator = torch.Generator().manual_seed(0)
    k, d = 400, 100
    random = torch.randn(k, d, generator=generator, dtype=torch.float64)
    equal = torch.nn.functional.normalize(random, dim=1)
    assert metrics.pair_similarity(random).std.item() == pytest.approx(d**-0.5, rel=0.02)
    assert metrics.angle_error(random).item() == pytest.approx(0.8 * d**-0.5, rel=0.02)
    zero = torch.zeros(d, dtype=torch.float64)
    alike = random[:1].expand(k, d)
    assert metrics.angle_error(alike, global_mean=zero).item() == pytest.approx(1 + 1 / (k - 1))
    assert metrics.pair_similarity(alike, global_mean=zero).std.item() == pytest.approx(0, abs=1e-7)
    mean = metrics.pair_similarity(torch.cat([equal, -equal])).mean  # centred, of equal length, and no simplex
    assert mean.item() == pytest.approx(-1 / (2 * k - 1))
    single = torch.zeros(k, 1, dtype=torch.float64)
    single[0] = 1  # all of the length in one mean: the largest variation of K norms
    assert metrics.norm_variation(single, global_mean=single.new_zeros(1)).item() == pytest.approx((k - 1) ** 0.5)
    x, y = random[:d], torch.arange(d) % 5  # as many samples as dimensions
    means = torch.stack([x[y == c].mean(0) for c in range(5)])
    within = (x - means[y]).T @ (x - means[y]) / d
    assert metrics.vci(within, means).item() == pytest.approx(0, abs=1e-6)
