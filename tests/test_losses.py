"""ncops.losses against the formulas over dense logits and over all pairs of rows, with their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from testing import randn

import ncops
from ncops import losses


def problem(n=20, v=9):
    z, target = randn(n, v, scale=2), torch.randint(0, v, (n,))
    target[::5] = -100
    return z, target, target >= 0, target.clamp(min=0)[:, None]


def check(ours, theirs, z, target):
    valid = target >= 0
    found = ours(ncops.logit_stats(z, target))
    expected = theirs(z).where(valid, 0)
    torch.testing.assert_close(found, expected)
    z = z.clone().requires_grad_()
    mine = torch.autograd.grad(ours(ncops.logit_stats(z, target)).sum(), z)
    truth = torch.autograd.grad(theirs(z)[valid].sum(), z)
    torch.testing.assert_close(mine, truth)
    assert torch.autograd.gradcheck(lambda z: ours(ncops.logit_stats(z, target)), z)


def test_max_suppression():
    z, target, _, _ = problem()
    check(losses.max_suppression, lambda z: z.amax(1) - z.mean(1), z, target)
    torch.testing.assert_close(losses.max_suppression(ncops.logit_stats(z)), z.amax(1) - z.mean(1))


def test_spherical_z_loss():
    z, target, _, at = problem()

    def formula(z):
        own = (z.gather(1, at)[:, 0] - z.mean(1)) / z.std(1, correction=0)
        return torch.log(1 + torch.exp(0.3 * (4 - own))) / 0.3

    check(lambda stats: losses.spherical_z_loss(stats, a=0.3, b=4), formula, z, target)
    found = losses.spherical_z_loss(ncops.logit_stats(3 * z + 5, target))
    torch.testing.assert_close(found, losses.spherical_z_loss(ncops.logit_stats(z, target)))


@pytest.mark.parametrize("q", [-1.0, 0.0, 0.4, 1.0])
def test_comp_sum(q):
    z, target, _, at = problem()

    def formula(z):
        u = (z - z.gather(1, at)).exp().sum(1) - 1
        named = {-1.0: u, 0.0: torch.log(1 + u), 1.0: 1 - 1 / (1 + u)}
        return named.get(q, (1 - (1 + u) ** -q) / (q or 1))

    check(lambda stats: losses.comp_sum(stats, q=q), formula, z, target)


def test_comp_sum_of_certain_rows():
    """u = 1e-30, which a difference of exponentials has lost."""
    z = torch.tensor([[70.0, 0.0]])
    found = losses.comp_sum(ncops.logit_stats(z, torch.tensor([0])), q=-1)
    assert float(found) == pytest.approx(math.exp(-70), rel=1e-5, abs=0)


@pytest.mark.parametrize(("lam", "margin"), [(1.0, 0.0), (0.7, 0.5)])
def test_ldr_kl(lam, margin):
    z, target, _, at = problem()

    def formula(z):
        c = margin * (1 - F.one_hot(at[:, 0], z.shape[1]).double())
        return lam * (((z + c - z.gather(1, at)) / lam).exp().mean(1)).log()

    def ours(z):
        return losses.ldr_kl(ncops.logit_stats(z, target, scale=1 / lam), temperature=lam, margin=margin)

    torch.testing.assert_close(ours(z), formula(z).where(target >= 0, 0))
    assert torch.autograd.gradcheck(ours, z.requires_grad_())
    if lam == 1 and margin == 0:
        nll = F.cross_entropy(z, target, reduction="none") - math.log(9)
        torch.testing.assert_close(ours(z), nll.where(target >= 0, 0))


def test_refusals():
    stats = ncops.logit_stats(problem()[0])
    for loss in (losses.spherical_z_loss, losses.comp_sum, losses.ldr_kl):
        with pytest.raises(ValueError, match="stats: expected statistics computed with a target"):
            loss(stats)


def features(n=24, d=5, k=4):
    x, labels = randn(n, d), torch.randint(0, k - 1, (n,))  # the last class has no row
    labels[0] = 2
    return x, labels, k


def test_class_spread():
    x, labels, k = features()
    labels[3] = -100
    centers = randn(k, x.shape[1])
    parts = [(x[labels == c] - centers[c]).square().sum(1) for c in range(k)]
    expected = sum(float(part.mean()) for part in parts if len(part)) / k
    assert float(losses.class_spread(x, labels, centers)) == pytest.approx(expected)
    inputs = x.requires_grad_(), centers.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: losses.class_spread(x, labels, c), inputs)


@pytest.mark.parametrize("center", [True, False])
def test_mean_angle(center):
    means = randn(6, 5) + 1
    rows = F.normalize(means - means.mean(0) if center else means)
    cos = (rows @ rows.T).fill_diagonal_(-2)
    expected = -cos.amax(1).clamp(-0.99999, 0.99999).arccos().mean()
    torch.testing.assert_close(losses.mean_angle(means, center=center), expected)
    assert torch.autograd.gradcheck(lambda m: losses.mean_angle(m, center=center), means.requires_grad_())
    simplex = ncops.metrics.simplex_etf(6, 5, dtype=torch.float64)
    assert float(losses.mean_angle(simplex)) == pytest.approx(-math.acos(-1 / 5))


def test_uniformity():
    unit = F.normalize(randn(20, 4))
    squared = torch.pdist(unit).square()
    torch.testing.assert_close(losses.uniformity(unit, t=1.5), (-1.5 * squared).exp().mean().log())
    assert torch.autograd.gradcheck(losses.uniformity, unit.requires_grad_())


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_supervised_contrastive(temperature):
    x, labels, _ = features()
    labels[1] = 77  # alone in its class
    unit = F.normalize(x)

    def formula(unit):
        z = (unit @ unit.T / temperature).fill_diagonal_(-math.inf)
        log_p = z - z.logsumexp(1, keepdim=True)
        total, rows = 0.0, 0
        for i in range(len(unit)):
            same = [j for j in range(len(unit)) if j != i and labels[j] == labels[i]]
            if same:
                total, rows = total - log_p[i, same].mean(), rows + 1
        return total / rows

    def ours(unit):
        return losses.supervised_contrastive(unit, labels, temperature=temperature)

    torch.testing.assert_close(ours(unit), formula(unit))
    unit.requires_grad_()
    (mine,), (truth,) = (torch.autograd.grad(loss(unit), unit) for loss in (ours, formula))
    torch.testing.assert_close(mine, truth, rtol=1e-6, atol=1e-9)
    assert losses.supervised_contrastive(F.normalize(x[:2]), torch.tensor([0, 1])).isnan()


# ---- of stored logits
def test_plackett_luce():
    z, target, _, _ = problem(n=12, v=6)
    teacher = randn(12, 6)

    def ours(z):
        return losses.plackett_luce(z, teacher, target)

    def formula(z):
        values = []
        for row, t, y in zip(z, teacher, target.tolist(), strict=True):
            order = [y, *(k for k in t.argsort(descending=True).tolist() if k != y)]
            places = enumerate(order if y >= 0 else [])
            values.append(0 * row[0] + sum(t.softmax(0)[k] * (row[order[p:]].logsumexp(0) - row[k]) for p, k in places))
        return torch.stack(values)

    torch.testing.assert_close(ours(z), formula(z))
    z.requires_grad_()
    mine, truth = (torch.autograd.grad(loss(z).sum(), z) for loss in (ours, formula))
    torch.testing.assert_close(mine, truth)
    assert torch.autograd.gradcheck(ours, z)


def test_plackett_luce_of_a_sure_teacher_is_cross_entropy():
    z, target = randn(7, 5), torch.randint(0, 5, (7,))
    teacher = 100 * F.one_hot(target, 5).double()
    torch.testing.assert_close(losses.plackett_luce(z, teacher, target), F.cross_entropy(z, target, reduction="none"))


def test_plackett_luce_refuses():
    z = randn(3, 4)
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 4\).*got 4 at row 1 of 3"):
        losses.plackett_luce(z, z, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match="teacher_logits: expected shape"):
        losses.plackett_luce(z, z[:, :3], torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_shrunk_cross_entropy(threshold):
    weak, strong = randn(40, 7, scale=1.5), randn(40, 7)
    weak[0] = torch.tensor([9.0, 0, 0, 0, 0, 0, 0])  # sure
    weak[1] = 0.0  # never sure, with ties
    loss, confidence, removed = [], [], []
    for w, s in zip(weak, strong, strict=True):
        p, order = w.softmax(0), w.argsort(descending=True, stable=True)
        found = (0 * s[0], p.max(), 0)
        for c in range(2, 7) if p.max() < threshold else ():
            kept = torch.cat([order[:1], order[c:]])
            if p[order[0]] / p[kept].sum() >= threshold:
                found = (p.max() * F.cross_entropy(s[kept], torch.tensor(0)), p[order[0]] / p[kept].sum(), c - 1)
                break
        for values, value in zip((loss, confidence, removed), found, strict=True):
            values.append(value)
    ours = losses.shrunk_cross_entropy(strong, weak, threshold=threshold)
    torch.testing.assert_close(ours.loss, torch.stack(loss))
    torch.testing.assert_close(ours.confidence, torch.stack(confidence))
    assert ours.removed.tolist() == removed and len(set(removed)) > 3 and ours.removed[0] == 0
    some, few = strong[:10].clone().requires_grad_(), weak[:10]
    assert torch.autograd.gradcheck(lambda z: losses.shrunk_cross_entropy(z, few, threshold=threshold).loss, some)
    assert losses.shrunk_cross_entropy(strong[:, :2], weak[:, :2]).loss.tolist() == [0] * 40
    weak[2, 3] = math.nan
    spoilt = losses.shrunk_cross_entropy(strong, weak, threshold=threshold)
    assert spoilt.loss.isnan().nonzero().tolist() == spoilt.confidence.isnan().nonzero().tolist() == [[2]]


def test_shrunk_cross_entropy_refuses():
    z = randn(3, 4)
    for threshold in (0.0, 1.0):
        with pytest.raises(ValueError, match="threshold: expected a number between 0 and 1"):
            losses.shrunk_cross_entropy(z, z, threshold=threshold)
    with pytest.raises(ValueError, match="weak_logits: expected shape"):
        losses.shrunk_cross_entropy(z, z[:2])
