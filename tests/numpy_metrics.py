"""The report's numbers once more, in float64 NumPy with class loops and K x K grids: what the tests hold ncops
against."""

from __future__ import annotations

import numpy as np


def class_geometry(x, y, num_classes, min_count=1):
    """Means, variances, counts and pooled covariance; two passes, float64."""
    x = np.asarray(x, dtype=np.float64)
    seen = [c for c in range(num_classes) if (y == c).any()]
    scatter = np.zeros((x.shape[1], x.shape[1]))
    total, rows = 0.0, 0
    out = {"classes": [], "counts": [], "means": [], "class_var": []}
    every = []
    for c in seen:
        mine = x[y == c]
        mean = mine.mean(0)
        deviations = mine - mean
        scatter += deviations.T @ deviations
        total += (deviations**2).sum()
        rows += len(mine)
        every.append(mine)
        if len(mine) >= min_count:
            for name, value in zip(out, (c, len(mine), mean, (deviations**2).sum(1).mean()), strict=True):
                out[name].append(value)
    out = {name: np.array(value) for name, value in out.items()}
    out.update(
        within_cov=scatter / rows,
        within_trace=total / rows,
        num_samples=rows,
        sample_mean=np.concatenate(every).mean(0),
        global_mean=out["means"].mean(0),
    )
    return out


def pairs(grid):
    return grid[np.triu_indices(len(grid), 1)]


def spread(values, ddof=0):
    return values.std(ddof=ddof) / abs(values.mean())


def simplex_distance(g):
    k = len(g)
    return np.linalg.norm(g / np.linalg.norm(g) - (np.eye(k) - 1 / k) / np.sqrt(k - 1))


def cosines(rows):
    """Of all pairs of rows as they are."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return pairs(unit @ unit.T)


def squared_distances(m):
    return np.stack([((m - row) ** 2).sum(1) for row in m])


def geometry_metrics(g, weight=None, *, global_mean="class", divide=True, power=1, norm_squared=False, norm_ddof=0,
                     similarity="cosine", pair_ddof=0, center=True, etf_of="means", duality_similarity="cosine",
                     duality_ddof=0, duality="gram"):  # fmt: skip
    means, k = g["means"], len(g["means"])
    centred = means - (g["global_mean"] if global_mean == "class" else g["sample_mean"])
    between = centred.T @ centred / k
    values = np.linalg.svd(centred, compute_uv=False)
    rank = int((values > 1e-6 * values[0]).sum())
    norms = np.linalg.norm(centred, axis=1)
    unit = centred / norms[:, None]
    grid = unit @ unit.T if similarity == "cosine" else centred @ centred.T
    v = g["class_var"]
    with np.errstate(divide="ignore", invalid="ignore"):
        cdnv = (v[:, None] + v) / (2 * squared_distances(means) ** power)
    directions = unit if center else means / np.linalg.norm(means, axis=1, keepdims=True)
    logs = -0.5 * np.log(pairs(squared_distances(directions)))
    sized = norms**2 if norm_squared else norms
    out = {
        "nc1_pinv": np.trace(g["within_cov"] @ np.linalg.pinv(between, rcond=1e-11)) / (k if divide else 1),
        "nc1_quotient": g["within_trace"] / np.trace(between),
        "nc1_cdnv": pairs(cdnv).mean(),
        "vci": 1 - np.trace(np.linalg.pinv(g["within_cov"] + between, rcond=1e-11) @ between) / rank,
        "nc2_norm_cv": spread(sized, norm_ddof),
        "nc2_log_norm_cv": spread(np.log(sized), norm_ddof),
        "nc2_cos_mean": pairs(grid).mean(),
        "nc2_cos_std": pairs(grid).std(ddof=pair_ddof),
        "nc2_cos_error": abs(cosines(centred) + 1 / (k - 1)).mean(),
        "nc2_etf_error": simplex_distance(centred @ centred.T),
        "gnc2_log_mean": logs.mean(),
        "gnc2_log_var": logs.var(),
    }
    if weight is not None:
        w = np.asarray(weight, dtype=np.float64)[g["classes"]]
        dots = (w * centred).sum(1)
        lengths = np.linalg.norm(w, axis=1)
        out["nc2_w_norm_cv"] = spread(lengths**2 if norm_squared else lengths, norm_ddof)
        out["nc2_w_cos_std"] = cosines(w).std(ddof=pair_ddof)
        out["nc2_w_cos_error"] = abs(cosines(w) + 1 / (k - 1)).mean()
        aligned = dots / (lengths * norms) if duality_similarity == "cosine" else dots
        out["nc3_cos_mean"] = aligned.mean()
        out["nc3_cos_cv"] = spread(aligned, duality_ddof)
        out["nc3_duality_error"] = simplex_distance(w @ centred.T)
        if duality == "distance":
            scaled = w / np.linalg.norm(w) - centred / np.linalg.norm(centred)
            out["nc3_duality_error"] = (scaled**2).sum()
        if etf_of == "weight":
            out["nc2_etf_error"] = simplex_distance(w @ w.T)
    return out


def decision_metrics(x, y, weight, bias, g, *, use_bias=True, candidates="all", rows="all"):
    """The decision numbers and the per-row quantities behind them."""
    x, weight = np.asarray(x, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, dtype=np.float64)
    keep = np.isin(y, g["classes"]) if rows == "kept" else np.ones(len(y), bool)
    x, y = x[keep], y[keep]
    logits = x @ weight.T + bias
    top = logits.max(1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(1))
    p = np.exp(logits - lse[:, None])
    choice = logits.argmax(1)
    alike = x @ weight.T + (bias if use_bias else 0)
    if candidates == "kept":
        agreeing = g["classes"][alike[:, g["classes"]].argmax(1)]
    else:
        agreeing = alike.argmax(1)
    nearest = g["classes"][np.stack([((x - m) ** 2).sum(1) for m in g["means"]]).argmin(0)]
    confidence, right = p.max(1), choice == y
    edges = np.linspace(0, 1, 16)
    bins = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, 14)
    ece = sum(abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(15)) / len(y)
    entropies = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    rivals = logits.copy()
    rivals[np.arange(len(y)), y] = -np.inf
    return {
        "nc4_agreement": (agreeing == nearest).mean(),
        "ncc_accuracy": (nearest == y).mean(),
        "accuracy": right.mean(),
        "nll": (lse - logits[np.arange(len(y)), y]).mean(),
        "entropy": entropies.mean(),
        "ece": ece,
        "entropies": entropies,
        "margin": logits[np.arange(len(y)), y] - rivals.max(1),
        "confidence": confidence,
        "bins": bins,
    }
