"""Quantities of papers against their formulas, written out over all pairs of samples in float64 NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from testing import randn

import ncops
from ncops import metrics


def data(n=60, d=7, k=4):
    """Uneven classes of features that are not centred."""
    labels = torch.arange(n) * torch.arange(n) % (2 * k) % k
    labels[:k] = torch.arange(k)
    x = randn(n, d) + 2 * randn(k, d)[labels] + 0.5
    return x, labels


def statistics(x, labels, k=4):
    moments = ncops.class_moments(x, labels, k)
    means = moments.sums / moments.counts[:, None]
    var = moments.sqnorms / moments.counts - means.square().sum(1)
    return means, var, moments.counts


def pairs(n):
    return itertools.combinations(range(n), 2)


# ---- frames
@pytest.mark.parametrize(("k", "d"), [(2, 1), (2, 6), (5, 4), (9, 30)])
def test_simplex_etf(k, d):
    rows = metrics.simplex_etf(k, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = np.full((k, k), -1 / (k - 1)) + np.eye(k) * (1 + 1 / (k - 1))
    np.testing.assert_allclose((rows @ rows.T).numpy(), expected, atol=1e-12)
    assert metrics.etf_error(rows) < 1e-12 and rows.sum(0).abs().max() < 1e-12
    again = metrics.simplex_etf(k, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(rows, again) and metrics.simplex_etf(k, d).dtype == torch.float32


def test_simplex_etf_refuses():
    with pytest.raises(ValueError, match=r"dim: expected at least K - 1 = 4"):
        metrics.simplex_etf(5, 3)
    with pytest.raises(ValueError, match="classes: expected an integer of 2"):
        metrics.simplex_etf(1, 3)


@pytest.mark.parametrize("k", [1, 6, 40])
def test_frame_error(k):
    a, b = randn(k, 9), randn(k, 9)
    diagonal, matrix = torch.rand(k).double() + 0.1, randn(k, k)

    def expected(left, right, target):
        gram = (left @ right.T).numpy()
        return np.linalg.norm(gram / np.linalg.norm(gram) - target / np.linalg.norm(target))

    assert float(metrics.frame_error(a)) == pytest.approx(expected(a, a, np.eye(k)))
    found = metrics.frame_error(a, b, target=diagonal)
    assert float(found) == pytest.approx(expected(a, b, np.diag(diagonal.numpy())))
    assert float(metrics.frame_error(a, target=matrix)) == pytest.approx(expected(a, a, matrix.numpy()))
    if k <= 9:
        basis = torch.linalg.qr(randn(9, k))[0].T
        assert metrics.frame_error(3 * basis) < 1e-12
    else:  # of rank 9 at most
        tight = torch.linalg.qr(randn(k, 9))[0]
        assert metrics.frame_error(tight) >= math.sqrt(2 - 2 * math.sqrt(9 / k)) - 1e-12


def test_frame_error_in_blocks(monkeypatch):
    from ncops.stats import blocks

    rows = randn(9, 5)
    targets = ("orthogonal", torch.rand(9).double(), randn(9, 9))
    whole = [float(metrics.frame_error(rows, target=target)) for target in targets]
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)  # two rows at a time
    assert [float(metrics.frame_error(rows, target=target)) for target in targets] == pytest.approx(whole, rel=1e-12)


def test_frame_error_refuses():
    with pytest.raises(ValueError, match="target: expected 'orthogonal'"):
        metrics.frame_error(randn(3, 4), target="simplex")
    with pytest.raises(ValueError, match=r"target: expected shape \(K,\) or \(K, K\)"):
        metrics.frame_error(randn(3, 4), target=randn(4))


def test_unconstrained_features_of_uneven_classes():
    """Both blocks of the regularised squared loss are stationary at the predicted norms, and small classes are 0."""
    counts, lw, lh = torch.tensor([40.0, 10.0, 1.0]).double(), 2e-2, 4e-2
    total = int(counts.sum())
    m = metrics.unconstrained_singular_values(counts, lw, lh)
    assert (m > 0).tolist() == (counts > total**2 * lw * lh).tolist() and m[2] == 0
    w = (m * (counts * lh / lw).sqrt()).sqrt().diag()  # class c along axis c
    h = (m * (lw / (counts * lh)).sqrt()).sqrt().diag().repeat_interleave(counts.long(), 1)
    y = torch.eye(3, dtype=torch.float64).repeat_interleave(counts.long(), 1)
    w, h = w.requires_grad_(), h.requires_grad_()
    loss = (w @ h - y).square().sum() / (2 * total) + lw / 2 * w.square().sum() + lh / 2 * h.square().sum()
    for gradient in torch.autograd.grad(loss, (w, h)):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("decay", [1e-6, 0.05, 10.0])
@pytest.mark.parametrize(("k", "d"), [(4, 9), (7, 3), (40, 6)])
def test_unconstrained_features(k, d, decay):
    """They are where the gradient of their loss is 0, of sure, mixed and even targets."""
    w = 5 * randn(k, d)
    one = torch.eye(k, dtype=torch.float64)
    t = torch.cat([one, 0.3 * one + 0.7 * one.roll(1, 0), one.mean(0, keepdim=True)])
    h = metrics.unconstrained_features(w, t, decay).numpy()
    z = h @ w.numpy().T
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    slope = (p - t.numpy()) @ w.numpy() + decay * h
    assert np.abs(slope).max() < 1e-10
    assert metrics.unconstrained_features(w, t[:0], decay).shape == (0, d)
    assert metrics.unconstrained_features(0 * w, t, decay).abs().max() == 0


def test_unconstrained_features_refuse():
    w, t = randn(3, 5), torch.eye(3).double()
    for decay in (0.0, -1.0):
        with pytest.raises(ValueError, match="feature_decay: expected a number above 0"):
            metrics.unconstrained_features(w, t, decay)
    with pytest.raises(ValueError, match="target: expected finite numbers"):
        metrics.unconstrained_features(w, t * math.nan, 0.1)
    with pytest.raises(ValueError, match=r"target: expected shape \(B, K\)"):
        metrics.unconstrained_features(w, t[:, :2], 0.1)


def tree():
    """Heights of the lowest common ancestors of eight leaves."""
    a, b = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return sum(((a >> level) != (b >> level)).double() for level in range(3))


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_hierarchy(gamma):
    s = metrics.hierarchy_similarity(tree(), gamma=gamma)
    e = np.exp(-gamma * tree().numpy() / 3)
    offset = (s.numpy()[0, 7] - e[0, 7]) / (1 - e[0, 7])
    np.testing.assert_allclose(s.numpy(), (1 - offset) * e + offset)
    least = np.linalg.eigvalsh((1 - offset) * e + offset)[0]
    assert abs(least) < 1e-12 and np.linalg.eigvalsh((1 - offset + 1e-4) * e + offset - 1e-4)[0] < -1e-6
    assert torch.equal(metrics.hierarchy_similarity(tree(), gamma=gamma, least=0.2), 0.8 * torch.from_numpy(e) + 0.2)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        rows = metrics.similarity_frame(s.to(dtype), 7, generator=torch.Generator().manual_seed(3), dtype=dtype)
        assert rows.dtype == dtype and rows.shape == (8, 7)
        np.testing.assert_allclose((rows.double() @ rows.double().T).numpy(), s.numpy(), atol=atol)
    assert torch.equal(rows, metrics.similarity_frame(s.float(), 7, generator=torch.Generator().manual_seed(3)))


def test_classes_all_alike_have_a_simplex():
    s = metrics.hierarchy_similarity(1 - torch.eye(5), gamma=0.7)
    np.testing.assert_allclose(s.numpy(), np.eye(5) * 1.25 - 0.25, atol=1e-12)
    assert metrics.etf_error(metrics.similarity_frame(s, 9)) < 1e-6


def test_hierarchies_refuse():
    with pytest.raises(ValueError, match="distance: expected a symmetric matrix"):
        metrics.hierarchy_similarity(tree().triu(), gamma=1.0)
    with pytest.raises(ValueError, match="distance: expected at least two classes"):
        metrics.hierarchy_similarity(torch.zeros(1, 1), gamma=1.0)
    with pytest.raises(ValueError, match="distance: expected .* to be positive definite, got minor 2"):
        metrics.hierarchy_similarity(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]), gamma=1.0)
    with pytest.raises(ValueError, match="similarity: expected a positive semidefinite matrix"):
        metrics.similarity_frame(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 4)
    with pytest.raises(ValueError, match="similarity: expected finite numbers"):
        metrics.similarity_frame(torch.full((2, 2), math.nan), 4)
    with pytest.raises(ValueError, match="dim: expected at least 3, the rank of similarity"):
        metrics.similarity_frame(torch.eye(3), 2)


# ---- separability
def test_class_separation_and_cones():
    x, labels = data()
    unit = F.normalize(x)
    means, _, counts = statistics(unit, labels)
    cos, y, k = (unit @ unit.T).numpy(), labels.numpy(), 4
    within = np.mean([np.mean(1 - cos[np.ix_(y == c, y == c)]) for c in range(k)])
    total = np.mean([np.mean(1 - cos[np.ix_(y == a, y == b)]) for a in range(k) for b in range(k)])
    assert float(metrics.class_separation(means)) == pytest.approx(1 - within / total)
    same = [cos[i, j] for i, j in pairs(len(y)) if y[i] == y[j]]
    different = [cos[i, j] for i, j in pairs(len(y)) if y[i] != y[j]]
    found = metrics.cone_effect(means, counts)
    assert float(found.same) == pytest.approx(np.mean(same))
    assert float(found.different) == pytest.approx(np.mean(different))
    assert float(metrics.tolerance(means, counts)) == pytest.approx(np.mean(cos * (y[:, None] == y)))


def test_collapsed_cones():
    rows = metrics.simplex_etf(5, 8, dtype=torch.float64)
    assert float(metrics.class_separation(rows)) == pytest.approx(1)
    found = metrics.cone_effect(rows, torch.full((5,), 3))
    assert float(found.same) == pytest.approx(1) and float(found.different) == pytest.approx(-1 / 4)
    assert metrics.cone_effect(rows[:1], torch.tensor([3])).different.isnan()


@pytest.mark.parametrize("drop", [None, 0.6])
def test_fisher_ratio(drop):
    x, labels = data()
    x[:, 3] = 100 + 1e-3 * x[:, 3]
    means, _, counts = statistics(x, labels)
    centred = x - means[labels]
    found = metrics.fisher_ratio(centred.T @ centred / len(x), means, counts, drop=drop)
    rows, y = x.numpy(), labels.numpy()
    if drop is not None:
        spread = np.sqrt(np.mean(centred.numpy() ** 2, 0))
        keep = spread > drop * np.abs(rows.mean(0))
        assert 0 < keep.sum() < 7
        rows = rows[:, keep]
    within, between = np.zeros((rows.shape[1],) * 2), np.zeros((rows.shape[1],) * 2)
    for c in range(4):
        own = rows[y == c]
        r, m = own - own.mean(0), own.mean(0) - rows.mean(0)
        within += r.T @ r
        between += len(own) * np.outer(m, m)
    assert float(found) == pytest.approx(np.trace(np.linalg.solve(within, between)), rel=1e-6)


def test_energy_confusion():
    x, labels = data()
    means, var, _ = statistics(x, labels)
    rows, y = x.numpy(), labels.numpy()
    energies = [np.mean(((rows[y == a][:, None] - rows[y == b]) ** 2).sum(2)) for a, b in pairs(4)]
    assert float(metrics.energy_confusion(var, means)) == pytest.approx(np.mean(energies))
    assert torch.autograd.gradcheck(metrics.energy_confusion, (var.requires_grad_(), means.requires_grad_()))


# ---- spectrum
def test_spectra():
    s = torch.rand(9).double() + 0.1
    v = s.numpy()
    q, p = v**2 / np.sum(v**2), v / v.sum()
    entropy = -np.sum(q * np.log(q))
    assert float(metrics.spectral_entropy(s)) == pytest.approx(entropy)
    assert float(metrics.spectral_entropy(s, normalize=True)) == pytest.approx(entropy / np.log(9))
    assert float(metrics.effective_rank(s)) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert float(metrics.effective_rank(s, power=2)) == pytest.approx(np.exp(entropy))
    assert float(metrics.participation_ratio(s)) == pytest.approx(np.sum(v**2) ** 2 / np.sum(v**4))
    assert float(metrics.stable_rank(s)) == pytest.approx(np.sum(v**2) / v.max() ** 2)
    assert float(metrics.top_energy(s, 3)) == pytest.approx(np.sort(q)[-3:].sum())
    flat = torch.ones(6)
    for rank in (metrics.effective_rank, metrics.participation_ratio, metrics.stable_rank):
        assert float(rank(flat)) == pytest.approx(6)
        assert float(rank(torch.tensor([2.0, 0.0, 0.0]))) == pytest.approx(1)


def test_power_law():
    ranks = torch.arange(1, 101).double()
    s = ranks**-0.65
    assert float(metrics.power_law(s[torch.randperm(100)])) == pytest.approx(1.3)
    values = s.clone()
    values[:10] = 5.0  # a plateau that is not of the tail
    assert float(metrics.power_law(values, first=10, last=60)) == pytest.approx(1.3)
    assert float(metrics.power_law(torch.cat([s, torch.zeros(3).double()]))) == pytest.approx(1.3)


# ---- calibration
@pytest.mark.parametrize("bins", [1, 4, 7])
def test_adaptive_calibration_error(bins):
    confidence, correct = torch.rand(50).double(), torch.rand(50) < 0.6
    order = np.argsort(confidence.numpy(), kind="stable")
    parts = np.array_split(order, bins)
    expected = sum(len(i) / 50 * abs(correct.numpy()[i].mean() - confidence.numpy()[i].mean()) for i in parts)
    assert float(metrics.adaptive_calibration_error(confidence, correct, bins=bins)) == pytest.approx(expected)


def logits(n=40, v=12, ignored=True):
    z, target = randn(n, v, scale=3), torch.randint(0, v, (n,))
    if ignored:
        target[::6] = -100
    return z, target


def test_brier_score():
    z, target = logits()
    stats = ncops.logit_stats(z, target)
    p = z.softmax(1).numpy()
    expected = [0 if y < 0 else np.sum((p[i] - np.eye(12)[y]) ** 2) for i, y in enumerate(target.tolist())]
    np.testing.assert_allclose(metrics.brier_score(stats).numpy(), expected)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: metrics.brier_score(ncops.logit_stats(z, target)), z)
    with pytest.raises(ValueError, match="stats: expected statistics computed with a target"):
        metrics.brier_score(ncops.logit_stats(z.detach()))


def test_fit_temperature():
    z, _ = logits(400)
    target = torch.multinomial((z / 2).softmax(1), 1)[:, 0]
    target[::6] = -100
    kept = target >= 0
    found = metrics.fit_temperature(lambda scale: ncops.logit_stats(z, target, scale=scale), rtol=1e-6)
    grid = np.exp(np.linspace(np.log(found * 0.9), np.log(found * 1.1), 201))
    nll = [float(F.cross_entropy(z[kept] / t, target[kept])) for t in grid]
    assert abs(math.log(grid[int(np.argmin(nll))] / found)) < 2e-3
    at = metrics.fit_temperature(lambda scale: ncops.logit_stats(z, target, scale=scale), low=found * 2)
    assert 1.5 < found < 2.7 and at == found * 2
    right = z.scatter(1, target.clamp(min=0)[:, None], 50.0)  # always right: the colder the better
    assert metrics.fit_temperature(lambda scale: ncops.logit_stats(right, target, scale=scale), low=0.1) == 0.1


# ---- ood
def test_mahalanobis_score():
    x, labels = data()
    means, _, _ = statistics(x, labels)
    centred = x - means[labels]
    cov = centred.T @ centred / len(x)
    test = randn(20, 7) + 3
    inverse = np.linalg.inv(cov.numpy())
    r = test.numpy()[:, None] - means.numpy()
    expected = -np.einsum("nkd,de,nke->nk", r, inverse, r).min(1)
    np.testing.assert_allclose(metrics.mahalanobis_score(test, means, cov).numpy(), expected, rtol=1e-9)
    close = metrics.mahalanobis_score(test.float(), means.float(), cov.float())
    np.testing.assert_allclose(close.numpy(), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="within_cov: expected a positive definite matrix"):
        metrics.mahalanobis_score(test, means, torch.ones(7, 7))


def test_scores_of_a_principal_space():
    x, labels = data()
    weight, bias = randn(4, 7), randn(4)
    mean = x.mean(0)
    cov = (x - mean).T @ (x - mean) / len(x)
    space = metrics.PrincipalSpace.of(cov, mean, 3)
    _, vectors = np.linalg.eigh(cov.numpy())
    basis = vectors[:, -3:]
    test = randn(11, 7)
    rows = test.numpy() - mean.numpy()
    inside = np.linalg.norm(rows @ basis, axis=1)
    expected = inside / np.linalg.norm(test.numpy(), axis=1)
    np.testing.assert_allclose(metrics.neco_score(test, space).numpy(), expected)
    stats = ncops.linear_stats(test, weight, bias)
    np.testing.assert_allclose(metrics.neco_score(test, space, stats.max).numpy(), expected * stats.max.numpy())
    residual = np.sqrt(np.sum(rows**2, 1) - inside**2)
    np.testing.assert_allclose(metrics.residual_norm(test, space).numpy(), residual)
    train = ncops.linear_stats(x, weight, bias)
    alpha = metrics.virtual_logit_scale(x, space, train.max)
    whole = x.numpy() - mean.numpy()
    outside = np.sqrt(np.maximum(0, np.sum(whole**2, 1) - np.sum((whole @ basis) ** 2, 1)))
    assert float(alpha) == pytest.approx(train.max.mean().item() / outside.mean())
    z = test.numpy() @ weight.numpy().T + bias.numpy()
    expected = np.log(np.exp(z).sum(1)) - float(alpha) * residual
    np.testing.assert_allclose(metrics.vim_score(test, space, stats.lse, alpha).numpy(), expected)
    with pytest.raises(ValueError, match="k: expected at most the 7"):
        metrics.PrincipalSpace.of(cov, mean, 8)


# ---- neighbours
def distances(x, k):
    return torch.cdist(x, x).fill_diagonal_(math.inf).topk(k, largest=False).values


def test_local_intrinsic_dimension():
    r = distances(randn(50, 5), 8)
    v = r.numpy()
    total = np.log(v[:, :-1] / v[:, -1:]).sum(1)
    np.testing.assert_allclose(metrics.lid_mle(r).numpy(), -8 / total)
    np.testing.assert_allclose(metrics.lid_mle(r, numerator="k-1").numpy(), -7 / total)
    shifted = -8 / np.log(v[:, :-1] / v[:, -1:] + 1e-4).sum(1)
    np.testing.assert_allclose(metrics.lid_mle(r, eps=1e-4).numpy(), shifted)
    mean = v[:, :-1].mean(1)
    np.testing.assert_allclose(metrics.lid_moments(r).numpy(), mean / (v[:, -1] - mean))
    for function in (metrics.lid_mle, metrics.lid_moments):
        assert torch.autograd.gradcheck(function, r[:5].clone().requires_grad_())
    with pytest.raises(ValueError, match="numerator: expected"):
        metrics.lid_mle(r, numerator="n")
    with pytest.raises(ValueError, match="distances: expected at least 2 neighbours"):
        metrics.lid_mle(r[:, :1])


def test_two_nearest_neighbours():
    plane = torch.rand(4000, 2).double() @ randn(2, 9)
    r = distances(plane, 2)
    assert float(metrics.two_nn(r)) == pytest.approx(2, abs=0.15)
    ratios = np.sort(np.log(r[:, 1].numpy() / r[:, 0].numpy()))
    assert float(metrics.two_nn(r, fit="mle")) == pytest.approx(4000 / ratios.sum())
    x, y = ratios[:3600], -np.log(1 - np.arange(4000) / 4000)[:3600]
    assert float(metrics.two_nn(r)) == pytest.approx((x @ y) / (x @ x))


# ---- similarity, regression
def test_linear_cka():
    x, y = randn(30, 5), randn(30, 4)
    both = torch.cat([x, y], 1)
    found = metrics.linear_cka(ncops.class_scatter(both, center=both.mean(0)), 5)
    a, b = x.numpy() - x.numpy().mean(0), y.numpy() - y.numpy().mean(0)
    expected = np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert float(found) == pytest.approx(expected)
    turned = torch.cat([x, 3 * x @ torch.linalg.qr(randn(5, 5))[0] + 1], 1)
    assert float(metrics.linear_cka(ncops.class_scatter(turned, center=turned.mean(0)), 5)) == pytest.approx(1)

    def cka(x, y):
        rows = torch.cat([x, y], 1)
        rows = rows - rows.mean(0)
        return metrics.linear_cka(ncops.class_scatter(rows), 5)

    assert torch.autograd.gradcheck(cka, (x.requires_grad_(), y.requires_grad_()))
    with pytest.raises(ValueError, match="scatter: expected a square matrix of more than dim=9"):
        metrics.linear_cka(torch.eye(9), 9)


def test_regression_collapse():
    h, w = randn(40, 8), randn(3, 8)
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(h.numpy().T @ h.numpy())
    for found, basis in (
        (metrics.nrc1(h, 3), vectors[:, -3:]),
        (metrics.nrc2(h, w), np.linalg.qr(w.numpy().T)[0]),
    ):
        assert float(found) == pytest.approx(np.mean(np.sum((unit - unit @ basis @ basis.T) ** 2, 1)))
    inside = randn(40, 3) @ w
    assert metrics.nrc1(inside, 3) < 1e-12 and metrics.nrc2(inside, w) < 1e-12


def test_regression_collapse_of_the_last_layer():
    w, y = randn(3, 8), randn(50, 3)
    cov = (y - y.mean(0)).T @ (y - y.mean(0)) / 50
    values, vectors = np.linalg.eigh(cov.numpy())
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    gram = w.numpy() @ w.numpy().T

    def error(gamma):
        target = root - np.sqrt(gamma) * np.eye(3)
        return np.linalg.norm(gram / np.linalg.norm(gram) - target / np.linalg.norm(target)) ** 2

    assert float(metrics.nrc3(w, cov, 0.3 * values[0])) == pytest.approx(error(0.3 * values[0]))
    best = min(error(g) for g in np.linspace(0, values[0], 4001))
    assert float(metrics.nrc3(w, cov)) == pytest.approx(best, abs=1e-6)
    exact = torch.linalg.cholesky(torch.from_numpy(2 * (root - 0.2 * np.eye(3) * np.sqrt(values[0]))))
    assert metrics.nrc3(exact, cov) < 1e-12


# ---- diffusion, thresholds
def walk_entropy(rows, sigma, t):
    g = np.exp(-((rows[:, None] - rows) ** 2).sum(2) / (2 * sigma**2))
    values = np.abs(np.linalg.eigvals(g / g.sum(1, keepdims=True))) ** t
    share = values / values.sum()
    share = share[share > 0]
    return -(share * np.log2(share)).sum()


@pytest.mark.parametrize(("sigma", "t"), [(10.0, 1.0), (2.0, 3.0)])
def test_diffusion_spectral_entropy(sigma, t):
    x = randn(30, 6)
    found = metrics.diffusion_spectral_entropy(x, sigma=sigma, t=t)
    assert float(found) == pytest.approx(walk_entropy(x.numpy(), sigma, t))
    single = metrics.diffusion_spectral_entropy(x.float(), sigma=sigma, t=t)
    assert float(single) == pytest.approx(float(found), rel=1e-6)


def test_diffusion_of_points_alike_and_far():
    assert abs(metrics.diffusion_spectral_entropy(torch.ones(8, 3))) < 1e-10
    assert float(metrics.diffusion_spectral_entropy(1e4 * randn(8, 3))) == pytest.approx(3)
    for x in (torch.ones(0, 3), torch.full((4, 3), math.nan)):
        assert metrics.diffusion_spectral_entropy(x).isnan()
    for name in ("sigma", "t"):
        with pytest.raises(ValueError, match=f"{name}: expected a number above 0, got 0.0"):
            metrics.diffusion_spectral_entropy(torch.ones(2, 2), **{name: 0.0})


def test_diffusion_spectral_information():
    x, labels = data()
    found = metrics.diffusion_spectral_information(
        x, labels + 3, sigma=1.5, t=2.0, draws=3, generator=torch.Generator().manual_seed(5)
    )
    draw, expected = torch.Generator().manual_seed(5), 0.0
    for c in range(4):
        n = int((labels == c).sum())
        of_all = [walk_entropy(x.numpy()[torch.randperm(60, generator=draw)[:n].numpy()], 1.5, 2.0) for _ in range(3)]
        expected += n / 60 * (np.mean(of_all) - walk_entropy(x.numpy()[labels == c], 1.5, 2.0))
    assert float(found) == pytest.approx(expected)
    assert metrics.diffusion_spectral_information(x[:0], labels[:0]).isnan()
    with pytest.raises(ValueError, match="labels: expected shape"):
        metrics.diffusion_spectral_information(x, labels[:5])


def test_operating_points(monkeypatch):
    from ncops.stats import blocks

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)  # a few rows at a time
    x, labels = data()[0], torch.arange(60) % 11 % 4
    labels[5] = 9  # alone in its class
    unit, thresholds = F.normalize(x), torch.linspace(-0.3, 0.95, 7).double()
    found = metrics.operating_points(unit, labels, thresholds)
    cos, y = (unit @ unit.T).numpy(), labels.numpy()
    ordered = list(itertools.permutations(range(60), 2))
    for t, d in enumerate(thresholds.tolist()):
        for c in range(4):
            inside = [cos[i, j] >= d for i, j in ordered if y[i] == y[j] == c]
            outside = [cos[i, j] < d for i, j in ordered if y[i] == c != y[j]]
            assert float(found.sensitivity[c, t]) == pytest.approx(np.mean(inside))
            assert float(found.specificity[c, t]) == pytest.approx(np.mean(outside))
        accepted = [cos[i, j] >= d for i, j in ordered if y[i] != y[j]]
        assert float(found.false_accept[t]) == pytest.approx(np.mean(accepted))
    se, sp = found.sensitivity.numpy(), found.specificity.numpy()
    utility = 2 * se * sp / (se + sp)
    assert float(found.inconsistency) == pytest.approx(np.mean((utility - utility.mean(0)) ** 2))
    assert found.sensitivity.shape == (4, 7)


def test_operating_points_at_the_ends():
    unit, labels = torch.eye(4).double()[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    found = metrics.operating_points(unit, labels, torch.tensor([0.5, 1.0, 2.0]).double())
    assert found.sensitivity.tolist() == [[1, 1, 0]] * 2 and found.specificity.tolist() == [[1, 1, 1]] * 2
    assert found.inconsistency == 0
    far = metrics.operating_points(unit, labels, torch.tensor([-2.0]).double())
    assert far.specificity.tolist() == [[0], [0]] and far.inconsistency == 0
    upside_down = torch.tensor([1.0, -1, 1, -1]).double()[:, None] * unit
    wrong = metrics.operating_points(upside_down, labels, torch.tensor([-0.5]).double())
    assert wrong.sensitivity.sum() == wrong.specificity.sum() == wrong.inconsistency == 0
    assert metrics.operating_points(unit, 0 * labels, torch.tensor([0.5]).double()).inconsistency.isnan()
    unit[2, 1] = math.nan
    for part in metrics.operating_points(unit, labels, torch.tensor([0.5]).double()):
        assert part.isnan().all()
    with pytest.raises(ValueError, match="thresholds: expected rising values"):
        metrics.operating_points(unit, labels, torch.tensor([0.5, 0.4]))
    with pytest.raises(ValueError, match="labels: expected shape"):
        metrics.operating_points(unit, labels[:3], torch.tensor([0.5]))


def test_a_head_of_zeros_spans_nothing():
    assert metrics.nrc2(randn(9, 4), torch.zeros(2, 4, dtype=torch.float64)).item() == pytest.approx(1)
