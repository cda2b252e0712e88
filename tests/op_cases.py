"""One problem per op and mode, run by any backend on any device and held against float64: what every backend shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from logit_columns import FLOATS, capped, dense, objective
from testing import IGNORE, assert_accurate, randn, random_labels
from torch import Tensor

import ncops
from ncops import backends
from ncops.backends.dtypes import compute_dtype
from ncops.backends.planes import DIVERGENCES
from ncops.cli import info

Inputs = dict[str, Any]
Outputs = dict[str, Tensor]


class OpCase(NamedTuple):
    """``run`` gives named results; float ones are compared in size, indices by the score that they pick."""

    op: str
    name: str
    make: Callable[[torch.dtype], Inputs]
    run: Callable[..., Outputs]
    scale: Callable[[str, Inputs], float] = lambda name, inputs: 0.0  # the least size that a result's error is held to
    score: Callable[[Inputs], Tensor] | None = None  # (rows, candidates) in float64, for results that are indices
    gradient: bool = False

    @property
    def title(self) -> str:
        return f"{self.op}-{self.name}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return compute_dtype(dtype)


def _size(values: Tensor) -> float:
    """The largest finite value in size; 0 where there is none."""
    finite = values[values.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


# ---- logits
def _logits_case(n: int, d: int, v: int, **options):
    def make(dtype):
        x, weight = randn(n, d, dtype=dtype), randn(v, d, dtype=dtype, scale=max(d, 1) ** -0.5)
        return {"x": x, "weight": weight, "bias": randn(v, dtype=dtype), "target": random_labels(n, v)} | options

    return make


def _stored(n: int, v: int, **options):
    return lambda dtype: {"logits": randn(n, v, dtype=dtype, scale=3), "target": random_labels(n, v)} | options


def _columns(stats) -> Outputs:
    names = (*FLOATS, "argmax", "second_index", "target_rank", "valid")
    return {name: getattr(stats, name) for name in names}


def _linear_stats(x, weight, bias, target, softcap=None):
    return _columns(ncops.linear_stats(x, weight, bias, target, scale=0.7, softcap=softcap))


def _linear_stats_gradients(x, weight, bias, target, softcap=None):
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    stats = ncops.linear_stats(*inputs, target, scale=0.7, softcap=softcap)
    loss = objective({name: getattr(stats, name) for name in FLOATS}, x.shape[0])
    return dict(zip(("g_x", "g_weight", "g_bias"), torch.autograd.grad(loss, inputs), strict=True))


def _linear_loss(x, weight, bias, target, softcap=None):
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    options = {"nll": 1.3, "z_loss": 1e-2, "entropy": -0.2, "label_smoothing": 0.1, "reduction": "sum"}
    loss, stats = ncops.linear_loss(*inputs, target, scale=0.7, softcap=softcap, **options)
    gradients = torch.autograd.grad(loss, inputs)
    columns = {name: getattr(stats, name) for name in ("lse", "nll", "entropy", "argmax", "target_rank")}
    return {"loss": loss.detach(), **columns, **dict(zip(("g_x", "g_weight", "g_bias"), gradients, strict=True))}


def _linear_topk(x, weight, bias, target, softcap=None):
    found = ncops.linear_topk(x, weight, bias, k=min(7, len(weight)), scale=0.7, softcap=softcap)
    return {"values": found.values, "lse": found.lse, "logprob": found.logprob, "index": found.indices}


def _linear_topk_gradients(x, weight, bias, target, softcap=None):
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    found = _linear_topk(*inputs, target, softcap)
    ranks = torch.linspace(1, -0.4, found["values"].shape[1], dtype=torch.float64, device=x.device)
    loss = (found["values"] * ranks + found["logprob"] * ranks.flip(0)).sum() - 0.3 * found["lse"].sum()
    return dict(zip(("g_x", "g_weight", "g_bias"), torch.autograd.grad(loss, inputs), strict=True))


def _logit_stats(logits, target, softcap=None):
    return _columns(ncops.logit_stats(logits, target, scale=0.7, softcap=softcap))


def _logit_stats_gradients(logits, target, softcap=None):
    stats = ncops.logit_stats(logits.requires_grad_(), target, scale=0.7, softcap=softcap)
    loss = objective({name: getattr(stats, name) for name in FLOATS}, logits.shape[0])
    return {"g_logits": torch.autograd.grad(loss, logits)[0]}


def _z(inputs: Inputs) -> Tensor:
    stored = "logits" in inputs
    z = 0.7 * inputs["logits"] if stored else dense(inputs["x"], inputs["weight"], inputs["bias"], 0.7)
    return capped(z, inputs["softcap"]) if "softcap" in inputs else z


def _logit_scale(name: str, inputs: Inputs) -> float:
    size = max(1.0, _size(_z(inputs)))
    return size**2 if name == "var" else size


def _loss_scale(name: str, inputs: Inputs) -> float:
    """A loss is a sum of terms of about the logits' size per row, a gradient one of terms of about 1."""
    return _logit_scale(name, inputs) * max(1, inputs["x"].shape[0]) if name == "loss" else 4.0


def _divergence_case(n: int, d: int, v: int, two: bool, **options):
    def make(dtype):
        x, weight = randn(n, d, dtype=dtype), randn(v, d, dtype=dtype, scale=max(d, 1) ** -0.5)
        other = randn(n, d + 3, dtype=dtype) if two else (x + randn(n, d, scale=0.3)).to(dtype)
        inputs = {"x": x, "weight": weight, "other": other, "bias": randn(v, dtype=dtype)} | options
        if two:
            inputs["other_weight"] = randn(v, d + 3, dtype=dtype, scale=(d + 3) ** -0.5)
            inputs["other_bias"] = randn(v, dtype=dtype)
        return inputs

    return make


def _two_stored(n: int, v: int, **options):
    return lambda dtype: {name: randn(n, v, dtype=dtype, scale=2) for name in ("logits", "other_logits")} | options


def _divergence_columns(result) -> Outputs:
    return {name: getattr(result, name) for name in DIVERGENCES}


def _divergence_objective(result) -> Tensor:
    rows = torch.linspace(0.5, 1.5, result.kl.numel(), dtype=torch.float64, device=result.kl.device)
    weights = torch.linspace(1.0, -0.7, len(DIVERGENCES)).tolist()
    return sum(w * (getattr(result, name).double() * rows).sum() for w, name in zip(weights, DIVERGENCES, strict=True))


def _divergence(op: Callable):
    return lambda **inputs: _divergence_columns(op(**inputs, scale=0.7, beta=0.3))


def _divergence_gradients(op: Callable):
    def run(**inputs):
        floats = {n: t.requires_grad_() for n, t in inputs.items() if isinstance(t, Tensor)}
        loss = _divergence_objective(op(**inputs, scale=0.7, beta=0.3))
        return dict(zip((f"g_{n}" for n in floats), torch.autograd.grad(loss, list(floats.values())), strict=True))

    return run


def _divergence_scale(name: str, inputs: Inputs) -> float:
    """Every column is a sum of differences of logits, weighted by probabilities."""
    z = [inputs[n] for n in ("logits", "other_logits") if n in inputs]
    return max([4.0, *map(_size, z)])


# ---- classes
def _features(n: int, d: int, c: int, hot: bool = False):
    def make(dtype):
        labels = random_labels(n, c)
        if hot:  # half of the rows in one class
            labels[::2] = c // 2
        center = randn(c, d, dtype=_wide(dtype))
        return {"x": randn(n, d, dtype=dtype, shift=0.5), "labels": labels, "center": center}

    return make


def _class_moments(x, labels, center):
    moments = ncops.class_moments(x, labels, center.shape[0], center=center)
    return {name: getattr(moments, name) for name in ("sums", "sqnorms", "counts", "invalid")}


def _class_moments_gradients(x, labels, center):
    moments = ncops.class_moments(x.requires_grad_(), labels, center.shape[0], center=center.requires_grad_())
    loss = (moments.sums * 0.7).sum() + (moments.sqnorms * 0.3).sum()
    return dict(zip(("g_x", "g_center"), torch.autograd.grad(loss, (x, center)), strict=True))


def _accumulate(x, labels, center):
    c, d = center.shape
    counts = torch.zeros(c, dtype=torch.int64, device=x.device)
    sums, sqnorms = x.new_zeros((c, d), dtype=torch.float64), x.new_zeros(c, dtype=torch.float64)
    anchors, invalid = torch.zeros_like(center), counts.new_zeros(())
    half = x.shape[0] // 2
    for part in (slice(0, half), slice(half, None)):  # the second call meets classes that have anchors and new ones
        ncops.accumulate_class_moments_(counts, anchors, sums, sqnorms, invalid, x[part], labels[part])
    # Anchors are rounded: what they leave over is in the sums.
    return {"first": anchors.double() * counts[:, None] + sums, "counts": counts, "invalid": invalid}


def _class_scatter(x, labels, center):
    return {
        "within": ncops.class_scatter(x, labels, center),
        "total": ncops.class_scatter(x, None, center[0]),
        "raw": ncops.class_scatter(x),
    }


def _within_scatter(x, labels, center):
    return {"within": ncops.class_scatter(x, labels, center)}


def _class_scatter_gradients(x, labels, center):
    d = x.shape[1]
    weight = torch.linspace(-1, 1, d * d, dtype=torch.float64, device=x.device).view(d, d)
    loss = (ncops.class_scatter(x.requires_grad_(), labels, center.requires_grad_()) * weight).sum()
    return dict(zip(("g_x", "g_center"), torch.autograd.grad(loss, (x, center)), strict=True))


def _projection(n: int, d: int, r: int, c: int = 5):
    make = _features(n, d, c)
    return lambda dtype: make(dtype) | {"basis": randn(r, d, dtype=dtype)}


def _projected_sqnorms(x, labels, center, basis):
    return {
        "centred": ncops.projected_sqnorms(x, basis, labels, center),
        "raw": ncops.projected_sqnorms(x, basis),
    }


def _projected_sqnorms_gradients(x, labels, center, basis):
    inputs = [t.requires_grad_() for t in (x, basis, center)]
    out = ncops.projected_sqnorms(x, basis, labels, center)
    weight = torch.linspace(-1, 1, x.shape[0], dtype=torch.float64, device=x.device)
    return dict(zip(("g_x", "g_basis", "g_center"), torch.autograd.grad((out * weight).sum(), inputs), strict=True))


def _means(n: int, d: int, c: int):
    return lambda dtype: {
        "x": randn(n, d, dtype=dtype), "means": randn(c, d, dtype=_wide(dtype)), "valid": torch.arange(c) % 4 != 1
    }  # fmt: skip


def _nearest_class_mean(x, means, valid):
    nearest = ncops.nearest_class_mean(x, means, valid=valid)
    return {"index": nearest.index, "sqdist": nearest.sqdist}


def _negative_distances(inputs: Inputs) -> Tensor:
    distances = (inputs["x"].double()[:, None] - inputs["means"].double()).square().sum(2)
    return -distances.masked_fill(~inputs["valid"], math.inf)


def _points(n: int, d: int, m: int):
    return lambda dtype: {"x": randn(n, d, dtype=dtype), "rows": randn(m, d, dtype=dtype)}


def _nearest_neighbors(x, rows):
    k = min(3, len(rows))
    found = ncops.nearest_neighbors(x, rows, k=k)
    return {f"index {j}": found.index[:, j] for j in range(k)} | {"sqdist": found.sqdist}


def _nearest_neighbors_gradients(x, rows):
    x = x.requires_grad_()
    sqdist = ncops.nearest_neighbors(x, rows, k=3).sqdist
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64, device=x.device)
    return {"g_x": torch.autograd.grad((sqdist * weight).sum(), x)[0]}


# ---- pairs
def _pairs(k: int, d: int, kernel: str, classes: int = 0):
    def make(dtype):
        rows = randn(k, d, dtype=dtype, shift=0.3)
        if kernel == "cosine":  # nobody else's nearest: which of the two parallel rows is nearer, rounding would decide
            rows[0] = -rows[2:].mean(0)
        if kernel != "riesz":
            rows[1] = rows[0] * (1 + 2**-7)  # a close pair, for angles not quite parallel
            rows[1, 0] += 2**-4 * (kernel == "angle")
        variances = torch.rand(k).to(_wide(dtype)) + 0.1 if kernel == "cdnv" else None
        labels = torch.arange(k) * 7 % 11 % classes if classes else None
        return {
            "rows": rows, "kernel": kernel, "variances": variances, "valid": torch.arange(k) % 5 != 2, "labels": labels
        }  # fmt: skip

    return make


def _few_pairs(k: int, d: int, kernel: str):
    def make(dtype):
        variances = torch.ones(k, dtype=_wide(dtype)) if kernel == "cdnv" else None
        valid = torch.ones(k, dtype=torch.bool)
        return {"rows": randn(k, d, dtype=dtype), "kernel": kernel, "variances": variances, "valid": valid}

    return make


def _pair_stats(rows, kernel, variances, valid, labels=None):
    stats = ncops.pair_stats(rows, kernel, variances=variances, valid=valid, labels=labels)
    return {name: getattr(stats, name) for name in ("mean", "var", "min", "max", "row_max", "count")}


def _pair_stats_gradients(rows, kernel, variances, valid, labels=None):
    inputs = [rows.requires_grad_()] + ([] if variances is None else [variances.requires_grad_()])
    stats = ncops.pair_stats(rows, kernel, variances=variances, valid=valid, labels=labels)
    loss = stats.mean.sum() + (stats.row_max.where(valid, 0) * 0.1).sum()
    return {f"g_{i}": g for i, g in enumerate(torch.autograd.grad(loss, inputs))}


def _pair_scale(name: str, inputs: Inputs) -> float:
    """Gaussians change by their exponent times what it is rounded by: the least of them, exp(-84), 84 times as much."""
    if inputs["kernel"] != "gaussian" or name != "min":
        return 0.0
    with ncops.use_backend("reference"):
        least = float(_pair_stats(**inputs)["min"])
    return least * max(1.0, -math.log(least))


CASES = (
    OpCase("linear_stats", "forward", _logits_case(37, 40, 90), _linear_stats, _logit_scale, _z),
    OpCase("linear_stats", "few rows", _logits_case(2, 24, 300), _linear_stats, _logit_scale, _z),
    OpCase("linear_stats", "few classes", _logits_case(37, 256, 10), _linear_stats, _logit_scale, _z),
    OpCase("linear_stats", "few classes, odd", _logits_case(37, 250, 11), _linear_stats, _logit_scale, _z),
    OpCase("linear_stats", "backward", _logits_case(37, 40, 90), _linear_stats_gradients, gradient=True),
    OpCase("linear_stats", "capped", _logits_case(37, 40, 90, softcap=1.5), _linear_stats, _logit_scale, _z),
    OpCase("linear_stats", "capped few rows", _logits_case(2, 24, 300, softcap=1.5), _linear_stats, _logit_scale, _z),
    OpCase(
        "linear_stats", "capped backward", _logits_case(37, 40, 90, softcap=1.5), _linear_stats_gradients, gradient=True
    ),
    OpCase("linear_loss", "all terms", _logits_case(37, 40, 90), _linear_loss, _loss_scale, _z, gradient=True),
    OpCase(
        "linear_loss", "capped", _logits_case(37, 40, 90, softcap=1.5), _linear_loss, _loss_scale, _z, gradient=True
    ),
    OpCase("linear_topk", "forward", _logits_case(37, 40, 90), _linear_topk, _logit_scale, _z),
    OpCase("linear_topk", "capped few rows", _logits_case(2, 24, 300, softcap=1.5), _linear_topk, _logit_scale, _z),
    OpCase(
        "linear_topk", "backward", _logits_case(37, 40, 90), _linear_topk_gradients, lambda *_: 4.0, gradient=True
    ),
    OpCase("logit_stats", "capped", _stored(37, 90, softcap=1.5), _logit_stats, _logit_scale, _z),
    OpCase("logit_stats", "capped backward", _stored(37, 90, softcap=1.5), _logit_stats_gradients, gradient=True),
    OpCase("logit_stats", "forward", _stored(37, 90), _logit_stats, _logit_scale, _z),
    OpCase("logit_stats", "backward", _stored(37, 90), _logit_stats_gradients, gradient=True),
    *(
        OpCase(op, f"{name}{part}", make, way(function), _divergence_scale, gradient=part != "")
        for part, way in (("", _divergence), (" backward", _divergence_gradients))
        for op, name, function, make in (
            ("logit_divergence", "forward", ncops.logit_divergence, _two_stored(37, 90)),
            ("logit_divergence", "capped", ncops.logit_divergence, _two_stored(37, 90, softcap=1.5)),
            ("linear_divergence", "one head", ncops.linear_divergence, _divergence_case(37, 40, 90, False)),
            ("linear_divergence", "two heads", ncops.linear_divergence, _divergence_case(37, 40, 90, True)),
            ("linear_divergence", "capped", ncops.linear_divergence, _divergence_case(37, 40, 90, True, softcap=1.5)),
        )
    ),
    OpCase("class_moments", "forward", _features(130, 33, 7), _class_moments),
    OpCase("class_moments", "hot class", _features(130, 33, 40, hot=True), _class_moments),
    OpCase("class_moments", "backward", _features(65, 33, 7), _class_moments_gradients, gradient=True),
    OpCase("accumulate_class_moments_", "two calls", _features(130, 33, 12, hot=True), _accumulate),
    OpCase("class_scatter", "forward", _features(130, 33, 7), _class_scatter),
    OpCase("class_scatter", "backward", _features(65, 33, 7), _class_scatter_gradients, gradient=True),
    OpCase("projected_sqnorms", "forward", _projection(65, 33, 20), _projected_sqnorms),
    OpCase("projected_sqnorms", "backward", _projection(65, 33, 20), _projected_sqnorms_gradients, gradient=True),
    OpCase("nearest_class_mean", "forward", _means(65, 33, 40), _nearest_class_mean, score=_negative_distances),
    OpCase("nearest_neighbors", "forward", _points(65, 33, 40), _nearest_neighbors),
    OpCase("nearest_neighbors", "backward", _points(65, 33, 40), _nearest_neighbors_gradients, gradient=True),
    *(
        OpCase("pair_stats", kernel, _pairs(40, 17, kernel), _pair_stats, _pair_scale)
        for kernel in ("dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv")
    ),
    *(
        OpCase("pair_stats", f"{kernel} by class", _pairs(40, 17, kernel, classes=3), _pair_stats, _pair_scale)
        for kernel in ("dot", "angle", "distance", "cdnv")
    ),
    *(
        OpCase(
            "pair_stats", f"{kernel} by class backward", _pairs(40, 17, kernel, classes=3), _pair_stats_gradients,
            gradient=True,
        )  # fmt: skip
        for kernel in ("cosine", "angle", "distance", "cdnv")
    ),
    *(
        OpCase("pair_stats", f"{kernel} backward", _pairs(40, 17, kernel), _pair_stats_gradients, gradient=True)
        for kernel in ("dot", "cosine", "angle", "distance", "log_distance", "riesz", "gaussian", "cdnv")
    ),
)


# Of the same ops, sizes that the CPU kernels cut into several tasks.
SEVERAL_TASKS = (
    *(
        OpCase(op, way, _logits_case(300, 20, 1100), run, gradient=way == "backward")
        for op, way, run in (
            ("linear_stats", "forward", _linear_stats),
            ("linear_stats", "backward", _linear_stats_gradients),
            ("linear_loss", "backward", _linear_loss),
            ("linear_topk", "forward", _linear_topk),
            ("linear_topk", "backward", _linear_topk_gradients),
        )
    ),
    OpCase("linear_stats", "few rows", _logits_case(2, 20, 2100), _linear_stats),
    OpCase("linear_stats", "few classes", _logits_case(600, 1100, 10), _linear_stats),
    OpCase("linear_topk", "few classes", _logits_case(600, 1100, 10), _linear_topk),
    OpCase("logit_stats", "forward", _stored(70, 1100), _logit_stats),
    OpCase("logit_stats", "backward", _stored(70, 1100), _logit_stats_gradients, gradient=True),
    *(
        OpCase(op, f"{name}{part}", make, way(function), gradient=part != "")
        for part, way in (("", _divergence), (" backward", _divergence_gradients))
        for op, name, function, make in (
            ("logit_divergence", "forward", ncops.logit_divergence, _two_stored(70, 1100)),
            ("linear_divergence", "one head", ncops.linear_divergence, _divergence_case(300, 20, 600, False)),
            ("linear_divergence", "two heads", ncops.linear_divergence, _divergence_case(300, 20, 600, True)),
        )
    ),
    OpCase("class_moments", "forward", _features(3000, 40, 30, hot=True), _class_moments),
    OpCase("class_moments", "backward", _features(3000, 40, 30), _class_moments_gradients, gradient=True),
    OpCase("accumulate_class_moments_", "two calls", _features(3000, 40, 30, hot=True), _accumulate),
    OpCase("class_scatter", "forward", _features(1100, 70, 7), _class_scatter),
    OpCase("class_scatter", "backward", _features(1100, 70, 7), _class_scatter_gradients, gradient=True),
    OpCase("projected_sqnorms", "forward", _projection(1100, 33, 130), _projected_sqnorms),
    OpCase("projected_sqnorms", "few directions", _projection(1100, 576, 5), _projected_sqnorms),
    OpCase("projected_sqnorms", "backward", _projection(1100, 33, 130), _projected_sqnorms_gradients, gradient=True),
    OpCase("nearest_class_mean", "forward", _means(1100, 33, 300), _nearest_class_mean),
    OpCase("nearest_class_mean", "few classes", _means(1100, 576, 11), _nearest_class_mean, score=_negative_distances),
    OpCase("nearest_neighbors", "forward", _points(600, 33, 1100), _nearest_neighbors),
    OpCase("nearest_neighbors", "backward", _points(600, 33, 1100), _nearest_neighbors_gradients, gradient=True),
    *(OpCase("pair_stats", kernel, _pairs(400, 17, kernel, classes=3), _pair_stats) for kernel in ("angle", "cdnv")),
    *(
        OpCase("pair_stats", f"{kernel} backward", _pairs(400, 17, kernel), _pair_stats_gradients, gradient=True)
        for kernel in ("dot", "distance", "cdnv")
    ),
)


def _few_terms(name: str, inputs: Inputs) -> float:
    """A gradient of one class is a sum over rows of terms of about 1, of both signs, rounded in half precision."""
    return 4.0


def _zero_sizes() -> Iterable[OpCase]:
    """Every op, forward and backward, for none, one and some of each size that may be none."""
    for n, d, c in itertools.product((0, 1, 5), (0, 1, 4), (0, 1, 3)):
        name = f"N={n} D={d} C={c}"
        features, projection = _features(n, d, c), _projection(n, d, 2, c)
        yield OpCase("class_moments", name, features, _class_moments)
        yield OpCase("class_moments", f"{name} backward", features, _class_moments_gradients, gradient=True)
        yield OpCase("accumulate_class_moments_", name, features, _accumulate)
        yield OpCase("class_scatter", name, features, _within_scatter)
        yield OpCase("class_scatter", f"{name} backward", features, _class_scatter_gradients, gradient=True)
        yield OpCase("projected_sqnorms", name, projection, _projected_sqnorms)
        yield OpCase("projected_sqnorms", f"{name} backward", projection, _projected_sqnorms_gradients, gradient=True)
        yield OpCase("nearest_class_mean", name, _means(n, d, c), _nearest_class_mean, score=_negative_distances)
        if c:
            logits, stored = _logits_case(n, d, c), _stored(n, c)
            yield OpCase("linear_stats", name, logits, _linear_stats, _logit_scale, _z)
            yield OpCase(
                "linear_stats", f"{name} backward", logits, _linear_stats_gradients, _few_terms, gradient=True
            )
            yield OpCase("linear_loss", name, logits, _linear_loss, _loss_scale, _z, gradient=True)
            yield OpCase("linear_topk", name, logits, _linear_topk, _logit_scale, _z)
            yield OpCase("linear_topk", f"{name} backward", logits, _linear_topk_gradients, _few_terms, gradient=True)
            for way, gradient in ((_divergence, False), (_divergence_gradients, True)):
                for two in (False, True):
                    make, run = _divergence_case(n, d, c, two), way(ncops.linear_divergence)
                    title = f"{name} two={two}"
                    yield OpCase("linear_divergence", title, make, run, _divergence_scale, gradient=gradient)
                make, run = _two_stored(n, c), way(ncops.logit_divergence)
                yield OpCase("logit_divergence", name, make, run, _divergence_scale, gradient=gradient)
            yield OpCase("logit_stats", name, stored, _logit_stats, _logit_scale, _z)
            yield OpCase("logit_stats", f"{name} backward", stored, _logit_stats_gradients, gradient=True)
    for k, d in itertools.product((0, 1, 5), (0, 1, 4)):
        for kernel in ("dot", "distance", "cdnv"):
            make = _few_pairs(k, d, kernel)
            yield OpCase("pair_stats", f"K={k} D={d} {kernel}", make, _pair_stats, _pair_scale)
            yield OpCase("pair_stats", f"K={k} D={d} {kernel} backward", make, _pair_stats_gradients, gradient=True)


ZERO_SIZES = tuple(_zero_sizes())

# What each backend of CUDA tensors is designed to run. Its tests force it, so that where it does not run they fail.
GPU_OPS = {"cuda": backends.CUDA_OPS, "triton": tuple(info.OPS)}


def gpu_backends(*ops: str) -> pytest.MarkDecorator:
    """Parametrizes ``gpu_backend`` by the backends that have all these ops."""
    return pytest.mark.parametrize("gpu_backend", [name for name in GPU_OPS if set(ops) <= set(GPU_OPS[name])])


def gpu_cases(cases: Iterable[OpCase]) -> pytest.MarkDecorator:
    """Parametrizes ``gpu_backend`` and ``case`` by the pairs that are there by design."""
    cases = list(cases)
    pairs = [(name, case) for name, ops in GPU_OPS.items() for case in cases if case.op in ops]
    assert {name for name, _ in pairs} == GPU_OPS.keys()
    titles = [f"{name}-{case.title}" for name, case in pairs]
    return pytest.mark.parametrize(("gpu_backend", "case"), pairs, ids=titles)


def fresh(inputs: Mapping[str, Any], device: str = "cpu", wide: torch.dtype | None = None) -> Inputs:
    """A copy of the inputs on a device, floats in ``wide`` where given."""

    def copy(value):
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone().to(device)
        return value.to(wide) if wide is not None and value.is_floating_point() else value

    return {name: copy(value) for name, value in inputs.items()}


def check(case: OpCase, backend: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """``backend`` on ``device`` against float64: at most twice the error of the plain PyTorch in the compute dtype."""
    inputs = case.make(dtype)
    with ncops.use_backend(backend):
        ours = {name: value.detach().cpu() for name, value in case.run(**fresh(inputs, device)).items()}
    with ncops.use_backend("reference"):
        truth = case.run(**fresh(inputs, wide=torch.float64))
        torchs = case.run(**fresh(inputs, wide=_wide(dtype)))
    exact = fresh(inputs, wide=torch.float64)
    for name, value in ours.items():
        what = f"{case.title} {name} on {backend}"
        if value.is_floating_point():
            size = max(case.scale(name, exact), _size(truth[name]))
            # Batch sums are float32 also where a float64 state receives them.
            value = value.to(_wide(dtype)) if value.dtype == torch.float64 else value
            rounded = torchs[name].to(value.dtype)
            eps = 8 if value.dtype.itemsize > 2 else 1  # a gradient in half precision is rounded once
            assert_accurate(value, rounded, truth[name], what=what, scale=size, eps=eps)
        elif name in ("argmax", "second_index", "index"):
            _check_indices(case, exact, value, truth[name], what)
        elif name == "target_rank":
            _check_ranks(case, exact, value, what)
        else:
            assert torch.equal(value, truth[name]), what


def _near(score: Tensor, exact: Inputs) -> float:
    features = next(iter(exact.values())).shape[1]
    return 16 * torch.finfo(torch.float32).eps * max(1.0, _size(score)) * features**0.5


def _check_indices(case: OpCase, exact: Inputs, mine: Tensor, truth: Tensor, what: str) -> None:
    """An index may differ from float64's only where the two candidates are closer than the scores' own error."""
    chosen = truth >= 0  # -1: nothing to choose from
    assert torch.equal(mine >= 0, chosen), what
    if not chosen.any():
        return
    score, mine, truth = case.score(exact)[chosen.nonzero()[:, 0]], mine[chosen], truth[chosen]
    picked, best = (score.gather(1, index[:, None]).squeeze(1) for index in (mine, truth))
    assert (picked >= best - _near(score, exact)).all(), what
    assert (mine == truth).sum() >= 0.9 * mine.numel(), what


def _check_ranks(case: OpCase, exact: Inputs, mine: Tensor, what: str) -> None:
    score, target = case.score(exact), exact["target"]
    if not target.numel():
        return
    valid = target != IGNORE
    own, near = score.gather(1, target.clamp(min=0)[:, None]), _near(score, exact)
    low, high = (score > own + near).sum(1), (score > own - near).sum(1)
    assert torch.where(valid, (low <= mine) & (mine <= high), mine == -1).all(), what
