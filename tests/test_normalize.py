"""normalize=True of class_moments, nearest_class_mean and ClassStatistics against float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from testing import IGNORE, LAYOUTS, assert_compiles, dtypes, layouts, randn, random_labels

import ncops
from ncops.backends.dtypes import compute_dtype
from ncops.ops import unit_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Seven rows of 9 features each, so that every test goes through several."""
    monkeypatch.setattr(unit_rows, "BLOCK_BYTES", 7 * 9 * 8)


def units(x):
    x = x.detach().double().numpy()
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm == 0, 1, norm)


def moments(x, labels, classes, center=None):
    u, y = units(x), labels.numpy()
    counts, sums, sqnorms = np.zeros(classes, np.int64), np.zeros((classes, u.shape[1])), np.zeros(classes)
    for row, label in zip(u, y, strict=True):
        if label != IGNORE:
            r = row if center is None else row - center[label].double().numpy()
            counts[label] += 1
            sums[label] += r
            sqnorms[label] += r @ r
    return counts, sums, sqnorms


def problem(n=40, d=9, classes=5, dtype=torch.float64):
    x = (randn(n, d, shift=0.5) * 10 ** torch.linspace(-3, 3, n, dtype=torch.float64)[:, None]).to(dtype)
    x[n // 2] = 0
    return x, random_labels(n, classes)


@dtypes
@pytest.mark.parametrize("centred", [False, True])
def test_class_moments(backend, dtype, centred):
    x, labels = problem(dtype=dtype)
    center = randn(5, 9, dtype=compute_dtype(dtype)) if centred else None
    found = ncops.class_moments(x, labels, 5, center=center, normalize=True)
    counts, sums, sqnorms = moments(x, labels, 5, center)
    assert found.counts.tolist() == counts.tolist() and found.sums.dtype == compute_dtype(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(found.sums.numpy(), sums, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.sqnorms.numpy(), sqnorms, rtol=tolerance, atol=tolerance)


@layouts
def test_layouts(backend, layout):
    x, labels = problem(dtype=torch.float32)
    x = LAYOUTS[layout](x)
    found = ncops.class_moments(x, labels, 5, normalize=True)
    np.testing.assert_allclose(found.sums.numpy(), moments(x, labels, 5)[1], rtol=2e-6, atol=2e-6)


def test_rows_of_any_length(backend):
    """In float32 the squares of these overflow or vanish, and their directions do not."""
    x = torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-9, 4e-9], [0.0, 0.0], [3e-14, 4e-14]])
    found = ncops.class_moments(x, torch.arange(5), 5, normalize=True)
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, 0], [0.03, 0.04]])  # the last over 1e-12
    torch.testing.assert_close(found.sums, expected)
    torch.testing.assert_close(found.sums[[0, 2, 3, 4]], torch.nn.functional.normalize(x[[0, 2, 3, 4]]))


def test_a_nan_touches_its_class_alone(backend):
    x, labels = problem()
    labels = torch.arange(40) % 5
    x[3, 2] = math.nan
    found = ncops.class_moments(x, labels, 5, normalize=True)
    assert found.sqnorms.isnan().tolist() == [False, False, False, True, False]


def test_no_rows(backend):
    found = ncops.class_moments(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), 5, normalize=True)
    assert found.counts.tolist() == [0] * 5 and found.sums.shape == (5, 9) and not found.sums.any()
    nearest = ncops.nearest_class_mean(torch.zeros(0, 9), torch.ones(5, 9), normalize=True)
    assert nearest.index.shape == nearest.sqdist.shape == (0,)


def test_gradients(backend):
    x, labels = problem()
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-3) + 0.1
    center = randn(5, 9)
    g_sums, g_squares = randn(5, 9), randn(5)

    def run(x, center):
        found = ncops.class_moments(x, labels, 5, center=center, normalize=True)
        return (found.sums * g_sums).sum() + (found.sqnorms * g_squares).sum()

    def plain(x, center):
        keep = labels != IGNORE
        r = torch.nn.functional.normalize(x[keep]) - center[labels[keep]]
        return (g_sums[labels[keep]] * r).sum() + (g_squares[labels[keep]] * r.square().sum(1)).sum()

    inputs = x.requires_grad_(), center.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(f(*inputs), inputs) for f in (run, plain)))


def test_compile(backend):
    x, labels = problem()
    labels = torch.arange(40) % 5
    assert_compiles(lambda x: ncops.class_moments(x, labels, 5, normalize=True)[1:3], x + 1)


def test_a_bad_label_is_named_by_its_row(backend):
    x, labels = problem()
    labels[33] = 5
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 5\) .*, got 5 at row 33 of 40"):
        ncops.class_moments(x, labels, 5, normalize=True)


@dtypes
def test_nearest_class_mean(backend, dtype):
    x, _ = problem(dtype=dtype)
    means = randn(6, 9)  # of different lengths, so that one of them is nearest to the row of zeros
    found = ncops.nearest_class_mean(x.reshape(8, 5, 9), means, normalize=True)
    distances = ((units(x)[:, None] - means.numpy()) ** 2).sum(2)
    assert found.index.shape == found.sqdist.shape == (8, 5)
    assert found.index.flatten().tolist() == distances.argmin(1).tolist()
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(found.sqdist.flatten().numpy(), distances.min(1), rtol=tolerance, atol=tolerance)


def statistics(x, labels, pieces=3, **options):
    stats = ncops.ClassStatistics(5, 9, scatter=True, **options)
    for rows, y in zip(x.chunk(pieces), labels.chunk(pieces), strict=True):
        stats.update(rows, y)
    return stats


def check(geometry, x, labels):
    counts, sums, _ = moments(x, labels, 5)
    u, y = units(x), labels.numpy()
    means = sums / counts[:, None]
    deviations = (u - means[np.where(y == IGNORE, 0, y)])[y != IGNORE]
    variances = [((u[y == c] - means[c]) ** 2).sum(1).mean() for c in range(5)]
    assert geometry.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(geometry.means.numpy(), means, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(geometry.class_var.numpy(), variances, rtol=1e-5)
    np.testing.assert_allclose(
        geometry.within_cov.numpy(), deviations.T @ deviations / len(deviations), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics(dtype, tmp_path):
    x, labels = problem(dtype=dtype)
    stats = statistics(x, labels, normalize=True)
    check(stats.compute(), x, labels)
    stats.save(tmp_path / "stats.safetensors")
    again = ncops.load(tmp_path / "stats.safetensors")
    assert again.normalize and again.input_dtype == dtype
    again.update(x[:7], labels[:7])
    check(again.compute(), torch.cat([x, x[:7]]), torch.cat([labels, labels[:7]]))
    other = statistics(x, labels, normalize=True)
    check(stats.merge(other).compute(), torch.cat([x, x]), torch.cat([labels, labels]))


def test_tight_classes_on_the_sphere_keep_their_digits():
    """Spreads of 1e-5 beside unit means: sums of squares about the origin would have none."""
    means = torch.nn.functional.normalize(randn(5, 9))
    labels = torch.arange(200) % 5
    x = (means[labels] + 1e-5 * randn(200, 9)) * torch.linspace(0.5, 90, 200).double()[:, None]
    geometry = statistics(x, labels, normalize=True).compute()
    u = units(x)
    variances = [u[labels == c].var(0).sum() for c in range(5)]
    np.testing.assert_allclose(geometry.class_var.numpy(), variances, rtol=1e-6)


def test_an_update_that_fails_changes_nothing():
    x, labels = problem()
    stats = statistics(x, labels, normalize=True)
    before = {name: tensor.clone() for name, tensor in stats.tensors().items()}
    with pytest.raises(ValueError, match="got 5 at row 39"):
        stats.update(x, torch.where(torch.arange(40) == 39, 5, labels))
    assert all(torch.equal(before[name], tensor) for name, tensor in stats.tensors().items())


def test_raw_and_unit_rows_are_not_added_up():
    x, labels = problem()
    stats = statistics(x, labels, normalize=True)
    with pytest.raises(ValueError, match="other: normalize: expected True, got False"):
        stats.merge(statistics(x, labels))
    with pytest.raises(ValueError, match="state: normalize: expected False, got True"):
        ncops.ClassStatistics(5, 9, scatter=True).load_state_dict(stats.state_dict())


def test_states_of_before_the_option_load():
    x, labels = problem()
    state = statistics(x, labels).state_dict()
    del state["config"]["normalize"]
    stats = ncops.ClassStatistics(5, 9, scatter=True)
    stats.load_state_dict(state)
    assert stats.normalize is False and stats.counts.equal(state["counts"])
