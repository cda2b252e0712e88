"""What docs/papers.md computes, from the formulas, in float64 NumPy over samples, pairs and logits.

A function for each paper takes the data of the page's first block as arrays, ``d``, and returns its results by name.
``d.fixed`` is the same data where a paper lets no gradient through. Nothing here is imported from ncops.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch

PAPERS = {}


def paper(function):
    PAPERS[function.__name__] = function
    return function


# ---- pieces
def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lse(z, axis=-1):
    top = z.max(axis, keepdims=True)
    return (np.log(np.exp(z - top).sum(axis, keepdims=True)) + top).squeeze(axis)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def kl(p, q):
    return np.sum(np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(np.where(p > 0, q, 1))), 0), -1)


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def pairs(k):
    return list(itertools.combinations(range(k), 2))


def classes(d):
    return range(d.K)


def means(x, y, k):
    return np.stack([x[y == c].mean(0) for c in range(k)])


def variances(x, y, k):
    return np.array([((x[y == c] - x[y == c].mean(0)) ** 2).sum(1).mean() for c in range(k)])


def counts(d):
    return np.array([(d.y == c).sum() for c in classes(d)])


def class_means(d):
    return means(d.x, d.y, d.K)


def within_cov(d):
    r = d.x - class_means(d)[d.y]
    return sum(np.outer(v, v) for v in r) / d.N


def between_cov(d):
    m = class_means(d)
    m = m - m.mean(0)
    return sum(np.outer(v, v) for v in m) / d.K


def pinv(a):
    return np.linalg.pinv(a, rcond=1e-10, hermitian=True)


def nc1_pinv(d):
    return np.trace(within_cov(d) @ pinv(between_cov(d))) / d.K


def cdnv(d, power=1):
    m, v = class_means(d), variances(d.x, d.y, d.K)
    return np.mean([(v[i] + v[j]) / (2 * np.linalg.norm(m[i] - m[j]) ** (2 * power)) for i, j in pairs(d.K)])


def nearest_mean(x, m):
    return np.argmin([[np.linalg.norm(v - c) for c in m] for v in x], 1)


def frame_distance(gram, target):
    return np.linalg.norm(gram / np.linalg.norm(gram) - target / np.linalg.norm(target))


def simplex(k):
    return np.eye(k) - 1 / k


def logits(d):
    return d.x @ d.W.T + d.b


def teacher_logits(d):
    return d.x_t @ d.W_t.T + d.b_t


def nll(z, y):
    return lse(z) - z[np.arange(len(y)), y]


def of_target(a, y):
    return a[np.arange(len(y)), y]


def others_max(a, y):
    a = a.copy()
    a[np.arange(len(y)), y] = -np.inf
    return a.max(1)


def max_arccos(rows):
    cos = unit(rows) @ unit(rows).T
    np.fill_diagonal(cos, -2)
    return np.arccos(np.clip(cos.max(1), -0.99999, 0.99999)).mean()


def neighbours(x, rows, k, own):
    """Distances and indices of the k nearest rows, without the row itself."""
    dist = np.sqrt(((x[:, None] - rows) ** 2).sum(2))
    if own:
        np.fill_diagonal(dist, np.inf)
    index = np.argsort(dist, 1)[:, :k]
    return np.take_along_axis(dist, index, 1), index


def erf(a):
    return np.vectorize(math.erf)(a)


# ---- class sums
@paper
def P01(d):
    m, k, z = class_means(d), d.K, d.x @ d.W.T
    c = m - m.mean(0)
    r = np.linalg.norm(c, axis=1)
    dots = [c[i] @ c[j] for i, j in pairs(k)]
    gaps = [np.linalg.norm(unit(c)[i] - unit(c)[j]) for i, j in pairs(k)]
    return {
        "cdnv": cdnv(d), "cdnv_script": cdnv(d, 2),
        "norm_mean": r.mean(), "norm_var": r.var(ddof=1),
        "log_norm_mean": np.log(r).mean(), "log_norm_var": np.log(r).var(ddof=1),
        "interference_mean": np.mean(dots), "interference_var": np.var(dots),
        "cosine_mean": np.mean([c[i] @ c[j] / (r[i] * r[j]) for i, j in pairs(k)]),
        "gram_error": frame_distance(c @ c.T, simplex(k)),
        "uniform_mean": np.mean(np.log(1 / np.array(gaps))), "uniform_var": np.var(np.log(1 / np.array(gaps))),
        "riesz": np.mean([g ** -(d.D - 2) for g in gaps]),
        "duality_cos": [w @ v / np.linalg.norm(w) / np.linalg.norm(v) for w, v in zip(d.W, c, strict=True)],
        "duality_dot": [w @ v for w, v in zip(d.W, c, strict=True)],
        "duality_gap": [np.linalg.norm(w - v) for w, v in zip(unit(d.W), unit(c), strict=True)],
        "duality_gram": frame_distance(d.W @ c.T, simplex(k)),
        "nc4": np.mean(z.argmax(1) == nearest_mean(d.x, m)),
    }  # fmt: skip


@paper
def P02(d):
    parts = [((d.x[d.y == c] - d.W[c]) ** 2).sum(1).mean() for c in classes(d)]
    return {"l_nc1": np.mean(parts), "l_nc2": -max_arccos(d.W - d.W.mean(0))}


@paper
def P03(d):
    u, n, k = unit(d.x), counts(d), d.K
    within = total = 0.0
    for i, j in itertools.product(range(d.N), repeat=2):
        a, b, gap = d.y[i], d.y[j], 1 - u[i] @ u[j]
        within += (a == b) * gap / (k * n[a] ** 2)
        total += gap / (k**2 * n[a] * n[b])
    z = logits(d)
    loss = nll(z, d.y)
    return {
        "r_squared": 1 - within / total,
        "maxsup": (loss + 0.1 * (z.max(1) - z.mean(1))).mean(),
        "smoothed": (loss + 0.1 * (of_target(z, d.y) - z.mean(1))).mean(),
    }


@paper
def P04(d):
    return {"transfer_cdnv": cdnv(d), "ncc_error": np.mean(nearest_mean(d.x, class_means(d)) != d.y)}


@paper
def P05(d):
    m, u, tau = class_means(d), unit(d.x), 0.5
    loss = []
    for i in range(d.N):
        others = [j for j in range(d.N) if j != i]
        same = [j for j in others if d.y[j] == d.y[i]]
        denominator = math.log(sum(math.exp(u[i] @ u[j] / tau) for j in others))
        if same:
            loss.append(-np.mean([u[i] @ u[j] / tau - denominator for j in same]))
    return {
        "frame_distance": frame_distance(m @ m.T, np.eye(d.K)),
        "pair_cosine": np.mean([unit(m)[i] @ unit(m)[j] for i, j in pairs(d.K)]),
        "beta_quotient": np.trace(within_cov(d)) / np.trace(between_cov(d)),
        "beta_pinv": nc1_pinv(d),
        "supcon": np.mean(loss),
    }


@paper
def P06(d):
    return {"quotient": np.trace(within_cov(d)) / np.trace(between_cov(d)), "pinv": nc1_pinv(d)}


@paper
def P07(d):
    found = np.full((d.K * d.K * 5, d.D), np.nan)
    bins = np.minimum((5 * d.lam[0]).astype(int), 4)
    for a, b, f in itertools.product(range(d.K), range(d.K), range(5)):
        rows = (d.y == a) & (d.y_mix[0] == b) & (bins == f)
        if rows.any():
            found[(a * d.K + b) * 5 + f] = d.x_mix[0][rows].mean(0)
    w, optimum = 2 * d.frame, []
    for lam, a, b in zip(d.lam[0][:9], d.y[:9], d.y_mix[0][:9], strict=True):
        t, h = lam * np.eye(d.K)[a] + (1 - lam) * np.eye(d.K)[b], np.zeros(d.D)
        for _ in range(4000):  # gradient descent
            h = h - 0.3 * (w.T @ (softmax(w @ h) - t) + 0.05 * h)
        optimum.append(h)
    return {"mixed_means": found, "mixed_optimum": optimum}


@paper
def P08(d):
    u, m, xbar = unit(d.x), class_means(d), d.x.mean(0)
    cos = u @ u.T
    same = [cos[i, j] for i, j in pairs(d.N) if d.y[i] == d.y[j]]
    different = [cos[i, j] for i, j in pairs(d.N) if d.y[i] != d.y[j]]
    between = sum(n * np.outer(v, v) for n, v in zip(counts(d), m - xbar, strict=True))
    return {
        "cone_same": np.mean(same), "cone_same_var": np.var(same),
        "cone_different": np.mean(different), "cone_different_var": np.var(different),
        "fisher": np.trace(np.linalg.solve(d.N * within_cov(d), between)),
    }  # fmt: skip


@paper
def P09(d):
    u, k = unit(d.x), d.K
    m = unit(means(u, d.y, k))
    hardness = [np.mean([m[i] @ m[j] for j in range(k) if j != i]) for i in range(k)]
    mean_p = softmax(logits(d)).mean(0)
    return {
        "radius": np.sqrt(np.mean(variances(u, d.y, k) / d.D)),
        "hardness": hardness,
        "odds": softmax(np.array(hardness) / 0.1),
        "mean_entropy": entropy(mean_p),
    }


@paper
def P10(d):
    of_class = [d.x[d.y == c] for c in classes(d)]
    return {"replay_mean": class_means(d), "replay_std": [np.sqrt(r.var(0, ddof=1) + 1e-5) for r in of_class]}


@paper
def P11(d):
    m, prior = class_means(d), counts(d) / d.N
    v = sum(prior[c] * (d.x[d.y == c].var(0) + 1e-9) for c in classes(d))
    joint = np.array([[math.log(prior[c]) - ((x - m[c]) ** 2 / v).sum() / 2 for c in classes(d)] for x in d.x])
    return {"bayes_nll": nll(joint, d.y).mean(), "bayes_accuracy": np.mean(joint.argmax(1) == d.y)}


@paper
def P12(d):
    of_class = [d.x[d.y == c] for c in classes(d)]
    return {"energy": np.mean([((of_class[i][:, None] - of_class[j]) ** 2).sum(2).mean() for i, j in pairs(d.K)])}


@paper
def P13(d):
    s, t, truth = softmax(logits(d)), softmax(teacher_logits(d)), np.eye(d.K)[d.y]
    mean = means(t, d.y, d.K)[d.y]
    sides = {
        "student_truth": s - truth, "teacher_truth": t - truth, "student_teacher": s - t, "student_mean": s - mean,
        "teacher_mean": t - mean,
    }  # fmt: skip
    return {name: np.linalg.norm(side, axis=1) for name, side in sides.items()}


# ---- covariances and spectra
@paper
def P14(d):
    n, lw, lh = counts(d), 0.03, 0.03
    m = np.maximum(0, 1 - d.N * np.sqrt(lw * lh / n))
    gram = d.W @ d.W.T
    return {
        "deep_nc1": nc1_pinv(d),
        "m": m,
        "collapsed_classes": n <= d.N**2 * lw * lh,
        "gof_nc2": frame_distance(gram, np.diag(np.diag(gram))),
        "gof_nc3": frame_distance(d.W @ class_means(d).T, np.diag(m)),
    }


@paper
def P15(d):
    within, between = within_cov(d), between_cov(d)
    return {"vci": 1 - np.trace(np.linalg.solve(within + between, between)) / min(d.D, d.K - 1)}


@paper
def P16(d):
    mean, std = d.x.mean(0), d.x.std(0)
    train, test = (d.x - mean) / std, (d.x_test - mean) / std
    vectors = np.linalg.eigh(train.T @ train / d.N)[1][:, -4:]
    top = (d.x_test @ d.W.T + d.b).max(1)
    m, ood = class_means(d), d.x_test.mean(0)
    return {
        "neco": np.linalg.norm(test @ vectors, axis=1) / np.linalg.norm(test, axis=1) * top,
        "nc5": np.mean([abs(unit(c) @ unit(ood)) for c in m]),
    }


@paper
def P17(d):
    inverse, z = np.linalg.inv(within_cov(d)), d.x_test @ d.W.T + d.b
    return {
        "mahalanobis": [-min((x - c) @ inverse @ (x - c) for c in class_means(d)) for x in d.x_test],
        "bank_cosine": (unit(d.x_test) @ unit(d.x).T).max(1),
        "energy_score": lse(z),
        "max_probability": softmax(z).max(1),
    }


def two_nn(x):
    r, _ = neighbours(x, x, 2, own=True)
    ratio = np.sort(np.log(r[:, 1] / r[:, 0]))
    keep = int(0.9 * len(x))
    target = -np.log(1 - np.arange(len(x)) / len(x))
    return (ratio[:keep] @ target[:keep]) / (ratio[:keep] @ ratio[:keep])


@paper
def P18(d):
    h = unit(d.x)
    top = np.linalg.svd(d.x, full_matrices=False)[2][:3]
    rows = np.linalg.qr(d.head.T)[0].T
    outside = [((h - h @ b.T @ b) ** 2).sum(1).mean() for b in (top, rows)]
    t = d.targets - d.targets.mean(0)
    values, vectors = np.linalg.eigh(t.T @ t / d.N)
    root, gram = vectors @ np.diag(np.sqrt(values)) @ vectors.T, d.head @ d.head.T

    def error(shift):
        return frame_distance(gram, root - shift * np.eye(3)) ** 2

    low, high = 0.0, math.sqrt(values[0])
    grid = np.linspace(low, high, 2001)
    at = int(np.argmin([error(s) for s in grid]))
    low, high = grid[max(0, at - 1)], grid[min(2000, at + 1)]
    for _ in range(200):  # thirds of an interval with one minimum
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if error(a) < error(b) else (a, high)
    return {
        "nrc1": outside[0], "nrc2": outside[1], "nrc3": error((low + high) / 2), "id_features": two_nn(d.x),
        "id_targets": two_nn(d.targets),
    }  # fmt: skip


@paper
def P19(d):
    s2 = np.linalg.eigvalsh(d.W @ d.W.T)
    share = s2 / s2.sum()
    return {
        "isotropy": entropy(share) / math.log(len(s2)),
        "e_rank": math.exp(entropy(share)),
        "top_e": np.sort(share)[-2:].sum(),
        "quartiles": np.quantile(s2, 0.75) / np.quantile(s2, 0.25),
    }


@paper
def P20(d):
    return {"stable": (d.W**2).sum() / np.linalg.norm(d.W, 2) ** 2}


@paper
def P21(d):
    e = d.x[:8].T
    center = np.eye(d.D) - 1 / d.D
    gram = e.T @ center @ e
    a, b = np.linalg.eigvalsh(gram)[[0, -1]]
    scaled = (2 * gram - (a + b) * np.eye(8)) / (b - a)
    terms = [np.eye(8), scaled]
    for _ in range(3):
        terms.append(2 * scaled @ terms[-1] - terms[-2])
    return {
        "eigenscore": np.linalg.slogdet(gram + 1e-3 * np.eye(8))[1] / 8,
        "chebyshev": [np.trace(t) / 8 for t in terms],
    }


@paper
def P22(d):
    a, b = d.x - d.x.mean(0), d.x_t - d.x_t.mean(0)
    return {"cka": np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))}


@paper
def P23(d):
    inverse = np.linalg.inv(sum(np.outer(v, v) for v in d.x) / d.N)
    return {"denominator": [k @ inverse @ k for k in d.x_test]}


# ---- means and classifier rows
@paper
def P24(d):
    return {"simplex_gram": (d.K * np.eye(d.K) - 1) / (d.K - 1)}


@paper
def P25(d):
    e = np.exp(-2.0 * d.tree / d.tree.max())
    low, high = -1.0, 0.0  # the smallest offset that leaves no negative eigenvalue, by bisection
    for _ in range(100):
        middle = (low + high) / 2
        fits = np.linalg.eigvalsh((1 - middle) * e + middle)[0] >= 0
        low, high = (low, middle) if fits else (middle, high)
    s = (1 - high) * e + high
    m = class_means(d) - d.x.mean(0)
    gap = [unit(m)[i] @ unit(m)[j] - s[i, j] for i, j in pairs(d.K)]
    centred = class_means(d) - d.fixed.x.mean(0)
    return {
        "S": s, "row_gram": s, "haf_deviation": np.mean(np.abs(gap)), "haf_std": np.std(gap),
        "haf_duality": np.linalg.norm(d.W / np.linalg.norm(d.W) - centred / np.linalg.norm(centred)) ** 2,
        "haf_loss": np.mean([((d.rows @ v - s[c]) ** 2).sum() for v, c in zip(unit(d.x), d.y, strict=True)]),
    }  # fmt: skip


@paper
def P26(d):
    a = d.W * d.mask
    norms = np.linalg.norm(a, axis=1)
    angles = [np.degrees(np.arccos(unit(a)[i] @ unit(a)[j])) for i, j in pairs(d.K)]
    return {
        "sse_loss": ((norms - 0.1) ** 2).sum() - max_arccos(a),
        "angle_mean": np.mean(angles), "angle_var": np.var(angles), "sse_norm_mean": norms.mean(),
        "sse_norm_var": norms.var(),
    }  # fmt: skip


@paper
def P27(d):
    norms = np.sqrt((d.W**2).sum(1))
    return {"gamma": norms[:4].mean() / norms[4:].mean()}


@paper
def P28(d):
    z, t = logits(d), teacher_logits(d)
    log_p = z - lse(z)[:, None]
    cos = unit(d.W_t) @ unit(d.W_t).T
    top = np.argsort(-t, 1)[:, :3]
    q = softmax(np.take_along_axis(t, top, 1))
    return {
        "kd_sim": -np.mean([(softmax(cos[c] / 0.3) * row).sum() for c, row in zip(d.y, log_p, strict=True)]),
        "kd_topk": -(q * np.take_along_axis(log_p, top, 1)).sum(1).mean(),
    }


@paper
def P29(d):
    found = nearest_mean(unit(d.x), unit(means(unit(d.x), d.y, d.K)))
    return {"nme": found, "nme_accuracy": np.mean(found == d.y)}


# ---- logits
@paper
def P30(d):
    z = logits(d)
    log_z = np.log(np.exp(z).sum(1))
    return {
        "z_loss": 1e-4 * np.mean(log_z**2), "log_z_mean": np.abs(log_z).mean(), "log_z_max": np.abs(log_z).max(),
        "logit_max": z.max(), "attention_max": max(a @ b / math.sqrt(4) for a in d.q[0] for b in d.k[0]),
    }  # fmt: skip


@paper
def P31(d):
    z = logits(d)
    zn = (of_target(z, d.y) - z.mean(1)) / z.std(1)
    plain = d.x @ d.W.T
    return {
        "spherical": np.mean(np.log(1 + np.exp(0.3 * (4 - zn))) / 0.3),
        "logit_sum": plain.sum(1),
        "logit_sumsq": (plain**2).sum(1),
    }


@paper
def P32(d):
    z = logits(d)
    u = np.array([sum(math.exp(row[k] - row[c]) for k in classes(d) if k != c) for row, c in zip(z, d.y, strict=True)])
    return {
        "logistic": np.log(1 + u).mean(), "sum_exp": u.mean(), "gce": ((1 - (1 + u) ** -0.7) / 0.7).mean(),
        "mae": (1 - 1 / (1 + u)).mean(),
    }  # fmt: skip


def ldr_kl(z, y, lam, c):
    exponent = (z + c * (1 - np.eye(z.shape[1])[y]) - of_target(z, y)[:, None]) / lam
    return np.squeeze(lam) * np.log(np.exp(exponent).mean(1))


@paper
def P33(d):
    z = logits(d)
    positive = np.log(1 + np.exp(z))
    p = softmax(logits(d.fixed))
    lam = 1 - np.sum(p * np.log(d.K * p), 1, keepdims=True) / (2 * math.log(d.K))
    return {
        "ldr": ldr_kl(z, d.y, 0.7, 2.0).mean(),
        "ldr_code": ldr_kl(positive / positive.mean(1, keepdims=True), d.y, 1.0, 2.0).mean(),
        "aldr": (ldr_kl(z, d.y, lam, 2.0) - 2 * math.log(d.K) / 2 * (lam[:, 0] - 1) ** 2).mean(),
    }


@paper
def P34(d):
    z = logits(d)
    p, ranked = softmax(z), np.sort(z, 1)[:, ::-1]
    logit_margin = others_max(z, d.y) - of_target(z, d.y)
    return {
        "probability_margin": others_max(p, d.y) - of_target(p, d.y),
        "logit_margin": logit_margin,
        "dlr": logit_margin / (ranked[:, 0] - ranked[:, 2]),
    }


@paper
def P35(d):
    p = softmax(logits(d))
    confidence, correct = p.max(1), p.argmax(1) == d.y
    ece = 0.0
    for b in range(15):
        rows = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if rows.any():
            ece += rows.mean() * abs(correct[rows].mean() - confidence[rows].mean())
    return {"ece": ece, "correctness": np.mean((confidence - correct) ** 2)}


@paper
def P36(d):
    z = logits(d)
    p = softmax(z)
    confidence, correct = p.max(1), p.argmax(1) == d.y
    parts = np.array_split(np.argsort(confidence, kind="stable"), 15)
    low, high = 1e-2, 1e2
    for _ in range(100):  # the slope of the mean nll in 1 / T is 0
        middle = math.sqrt(low * high)
        slope = np.mean((softmax(z / middle) * z).sum(1) - of_target(z, d.y))
        low, high = (middle, high) if slope > 0 else (low, middle)
    return {
        "ace": sum(len(i) / d.N * abs(correct[i].mean() - confidence[i].mean()) for i in parts),
        "nll": nll(z, d.y).mean(),
        "temperature": low,
    }


@paper
def P37(d):
    z, mixed = logits(d), d.x_mix @ d.W.T + d.b
    mrl = np.maximum(mixed.max(2) - z.max(1) + 0.1, 0) * (d.y_mix != d.y)
    p, p_mixed = softmax(z).max(1), softmax(mixed).max(2)
    loss = []
    for i in range(d.N):
        gains = np.maximum(d.lam[:, i], 1 - d.lam[:, i])
        order = np.argsort(-gains)
        dcg = p[i] + sum(p_mixed[o, i] / math.log2(r) for r, o in enumerate(order, 3))
        ideal = 1 + sum(gains[o] / math.log2(r) for r, o in enumerate(order, 3))
        loss.append(1 - min(dcg / ideal, ideal / dcg))
    return {"mrl": mrl.mean(), "mndcg": np.mean(loss)}


@paper
def P38(d):
    h = entropy(softmax(logits(d)))
    return {"reliable": h < 0.4 * math.log(d.K), "sar": h[h < 0.4 * math.log(d.K)].mean()}


@paper
def P39(d):
    p, fixed = softmax(logits(d)), softmax(logits(d.fixed))
    destroyed = softmax(d.fixed.x_aug @ d.fixed.W.T + d.fixed.b)
    guess = p.argmax(1)

    def plpd(p):
        return of_target(p, guess) - of_target(destroyed, guess)

    h, h_fixed = entropy(p), entropy(fixed)
    kept = (h_fixed < 0.5 * math.log(d.K)) & (plpd(fixed) > 0.2)
    weight = 1 / np.exp(h_fixed - 0.4 * math.log(d.K)) + 1 / np.exp(-plpd(fixed))
    return {"plpd": plpd(p), "deyo": (weight * h)[kept].mean()}


@paper
def P40(d):
    total, t = 0.0, d.q.shape[1]
    for head in range(2):
        for i in range(t):
            a = softmax(d.k[head, : i + 1] @ d.q[head, i] / 2)
            off = -np.sum(a * np.log(a + 1e-9)) - d.theta[head] * math.log(t)
            total += off**2 if abs(off) > 0.2 * math.log(t) else 0
    return {"penalty": 1e-5 * total / 2}


@paper
def P41(d):
    weak, strong = softmax(logits(d.fixed)), d.x_aug @ d.W.T + d.b
    loss, confidence, removed = [], [], []
    for p, z in zip(weak, strong, strict=True):
        order = np.argsort(-p)
        found = (0.0, p.max(), 0)
        if p.max() < 0.95:
            for c in range(2, d.K):
                kept = [order[0], *order[c:]]
                if p[order[0]] / p[kept].sum() >= 0.95:
                    found = (p.max() * (lse(z[kept]) - z[order[0]]), p[order[0]] / p[kept].sum(), c - 1)
                    break
        for values, value in zip((loss, confidence, removed), found, strict=True):
            values.append(value)
    return {"shrunk_loss": np.mean(loss), "shrunk_confidence": confidence, "shrunk_classes": removed}


@paper
def P42(d):
    u = unit(d.x)
    negative = [16 * u[i] @ u[j] for i, j in pairs(d.N) if d.y[i] != d.y[j]]
    loss = []
    for v, c in zip(u, d.y, strict=True):
        z = 16 * (unit(d.W) @ v - 0.35 * np.eye(d.K)[c])
        loss.append(lse(np.array([*z, *negative])) - z[c])
    return {"unpg": np.mean(loss)}


@paper
def P43(d):
    width = 8 / d.K
    edges = -4 + width * np.arange(d.K + 1)
    mass = []
    for t in d.targets[:, 0]:
        cdf = (1 + erf((edges - t) / (0.75 * width * math.sqrt(2)))) / 2
        mass.append((cdf[1:] - cdf[:-1]) / (cdf[-1] - cdf[0]))
    z = logits(d)
    return {"hl_gauss": mass, "hl_loss": -(np.array(mass) * (z - lse(z)[:, None])).sum(1).mean()}


@paper
def P44(d):
    new, old = -nll(logits(d), d.y), -nll(d.fixed.x_old @ d.fixed.W.T + d.fixed.b, d.y)
    total = 0.0
    for start in range(0, d.N, 20):
        rows = slice(start, start + 20)
        if new[rows].sum() < old[rows].sum():
            total += np.maximum(old[rows] - new[rows], 0).sum()
    return {"drop": np.maximum(old - new, 0), "displacement": total / d.N}


@paper
def P45(d):
    natural = entropy(softmax(teacher_logits(d) / 2)).mean()
    adversarial = entropy(softmax((d.x_aug @ d.W.T + d.b) / 1.5)).mean()
    return {"natural": natural, "adversarial": adversarial, "balance": adversarial - natural}


@paper
def P46(d):
    t, z = softmax(teacher_logits(d)), logits(d)
    weight = t.max(1) / t.max(1).sum()
    permuted = []
    for p, noise in zip(t, d.shuffle, strict=True):
        others = [k for k in classes(d) if k != p.argmax()]
        row = p.copy()
        row[others] = p[others][np.argsort(noise)]
        permuted.append(row)
    return {
        "cwtm_weight": weight,
        "cwtm": (weight * nll(z, d.y)).sum(),
        "dkpp_target": permuted,
        "dkpp": -(np.array(permuted) * (z - lse(z)[:, None])).sum(1).mean(),
    }


# ---- two streams of logits
@paper
def P47(d):
    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    t, s = teacher_logits(d), logits(d)
    p, q = sigmoid(t / 2), sigmoid(s / 2)
    binary = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return {
        "binary_kl": 4 * binary.sum(1).mean(),
        "binary_kl_norm": 4 * np.log(np.cosh((s - t) / 4)).sum(1).mean(),
    }


@paper
def P48(d):
    t, s = softmax(teacher_logits(d)), softmax(logits(d))
    return {
        "forward_kl": kl(t, s), "reverse_kl": kl(s, t), "entropy_t": entropy(t), "entropy_s": entropy(s),
        "balanced": (kl(t, s) + kl(s, t)).mean() / 2,
    }  # fmt: skip


@paper
def P49(d):
    t, s = softmax(teacher_logits(d)), softmax(logits(d))
    return {"symmetric_ce": (-0.5 * (t * np.log(s)).sum(1) - 0.5 * (s * np.log(t)).sum(1)).mean()}


@paper
def P50(d):
    t, s = softmax(teacher_logits(d)), softmax(logits(d))
    tckd, nckd = np.empty(d.N), np.empty(d.N)
    for i, c in enumerate(d.y):
        others = [k for k in classes(d) if k != c]
        rest_t, rest_s = t[i, others].sum(), s[i, others].sum()
        tckd[i] = kl(np.array([t[i, c], rest_t]), np.array([s[i, c], rest_s]))
        nckd[i] = kl(t[i, others] / rest_t, s[i, others] / rest_s)
    uncertain = 1 - of_target(t, d.y)
    hard = uncertain >= np.sort(uncertain)[(d.N - 1) // 2]
    return {"tckd": tckd, "nckd": nckd, "atkd": 0.2 * nckd[~hard].mean() + 0.8 * (tckd[hard] + nckd[hard]).mean()}


@paper
def P51(d):
    t, s, loss = softmax(teacher_logits(d.fixed)), logits(d), []
    for p, z, c in zip(t, s, d.y, strict=True):
        order = [c, *(k for k in np.argsort(-p) if k != c)]
        loss.append(sum(p[k] * (lse(z[order[place:]]) - z[k]) for place, k in enumerate(order)))
    return {"pld": np.mean(loss)}


@paper
def P52(d):
    frozen = softmax(d.fixed.x_old @ d.fixed.W[:4].T + d.fixed.b[:4])
    return {"relation": kl(frozen, softmax(d.x @ d.W[:4].T + d.b[:4])).mean()}


# ---- pairs and neighbours
def spectral_entropy(x, sigma):
    g = np.exp(-((x[:, None] - x) ** 2).sum(2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    values = np.abs(np.linalg.eigvals(g / g.sum(1, keepdims=True)))  # of the walk itself
    share = values / values.sum() + np.finfo(float).eps
    return -(share * np.log2(share)).sum()


@paper
def P53(d):
    draw, information = torch.Generator().manual_seed(0), 0.0
    for c, n in enumerate(counts(d)):
        of_all = [spectral_entropy(d.x[torch.randperm(d.N, generator=draw)[:n].numpy()], 2.0) for _ in range(5)]
        information += n / d.N * (np.mean(of_all) - spectral_entropy(d.x[d.y == c], 2.0))
    return {"dse": spectral_entropy(d.x, 2.0), "dsmi": information}


@paper
def P54(d):
    u = unit(d.x)
    same = d.y[:, None] == d.y
    return {
        "uniformity": math.log(np.mean([math.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i, j in pairs(d.N)])),
        "tolerance": np.mean((u @ u.T) * same),
    }


@paper
def P55(d):
    u, fixed = unit(d.x), unit(d.fixed.x)
    cos, same = fixed @ fixed.T, d.y[:, None] == d.y
    utility = []
    for threshold in np.linspace(*np.round(np.quantile(cos[~same], [0.9, 0.99]), 2), 50):
        row = []
        for c in classes(d):
            of_class = d.y == c
            inside = cos[np.ix_(of_class, of_class)][~np.eye(of_class.sum(), dtype=bool)]
            se, sp = np.mean(inside >= threshold), np.mean(cos[np.ix_(of_class, ~of_class)] < threshold)
            row.append(2 * se * sp / (se + sp))
        utility.append(row)
    utility = np.array(utility)
    moving = u @ u.T
    positive = [moving[i, j] for i, j in pairs(d.N) if d.y[i] == d.y[j] and moving[i, j] <= 0.9]
    negative = [moving[i, j] for i, j in pairs(d.N) if d.y[i] != d.y[j] and moving[i, j] >= 0.5]
    return {
        "opis": np.mean((utility - utility.mean(1, keepdims=True)) ** 2),
        "tcm": np.mean(0.9 - np.array(positive)) + np.mean(np.array(negative) - 0.5),
    }


@paper
def P56(d):
    m = class_means(d)
    loss = []
    for x, c in zip(d.x, d.y, strict=True):
        distance = ((x - m) ** 2).sum(1)
        loss.append(max(0, distance[c] - min(distance[k] for k in classes(d) if k != c) + 1))
    _, index = neighbours(d.x, d.x, 5, own=True)
    return {"proto_triplet": np.mean(loss), "purity": np.mean(d.y[index] == d.y[:, None])}


@paper
def P57(d):
    r, _ = neighbours(d.x, d.fixed.x, 20, own=True)
    m = r[:, :-1].mean(1)
    moments = m / (r[:, -1] - m)
    return {
        "lid": -20 / np.log(r[:, :-1] / r[:, -1:] + 1e-4).sum(1),
        "lid_moments": moments,
        "ldreg": -np.abs(np.log(moments)).mean(),
    }


def data(values, moved=None):
    """Arrays of the page's data, of which ``moved`` replaces some."""
    arrays = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
    return SimpleNamespace(**arrays | (moved or {}), fixed=SimpleNamespace(**arrays))
