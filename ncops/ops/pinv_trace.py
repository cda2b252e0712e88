"""Traces with pseudo-inverses of class scatter: ``tr(Sigma_W Sigma_B^+)`` and ``tr(Sigma_T^+ Sigma_B)`` in float64.

Never through a D x D pseudo-inverse of ``Sigma_B``, nor through a float32 or squared one: on wide spectra both are
wrong by orders of magnitude. The gradients are in closed form with the rank held fixed (Golub and Pereyra 1973),
because autograd through an eigendecomposition is NaN where eigenvalues coincide, as they do at an exact ETF.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_beside, check_device, check_floating, check_shape

NAN = float("nan")


def pinv_trace(
    within: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None, divide: bool = True,
) -> Tensor:  # fmt: skip
    """``tr(Sigma_W Sigma_B^+)``, divided by K unless ``divide=False``: NC1 of Papyan, Han and Donoho (2020).

    ``Sigma_B = sum_c w_c m_c m_c^T / sum w`` with ``m_c = means[c] - global_mean``.

    Args:
        within: ``(D, D)`` within-class covariance, symmetric.
        means: ``(K, D)`` class means.
        global_mean: ``(D,)``; None takes the (weighted) mean of ``means``.
        weights: ``(K,)`` non-negative class weights, for instance counts; None weighs all alike.
        rtol: singular values of the centred means up to ``rtol`` times the largest are dropped. None drops those that
            rounding explains: ``4 eps |means|_F (K^-1/2 + D^-1/2)``, eps of float64 if all inputs are float64, else
            of float32; the rank is at most ``min(D, K - 1)`` for means centred on their own mean.
        divide: by K, the number of classes.

    Returns:
        float64 scalar; NaN if ``means`` hold a NaN or an infinity, or for K = 0 with ``divide``.

    Raises:
        ValueError: shape or device mismatch.

    Gradients flow to every tensor argument, with the rank held fixed; a second derivative is refused.
    """
    scaled, rank, eps = _scaled_means(means, global_mean, weights, (within,))
    check_beside(within, "within", (means.shape[1],) * 2, "(D, D)", means, "means")
    within = within.double()
    with torch.no_grad():
        finite = scaled.isfinite().all()
        s, vt = _thin_svd(scaled.where(finite, 0.0))
        keep = _keep(s, _floor(means, weights, rtol, eps), rtol, rank)
        vt = vt * keep[:, None]
        inverse = torch.where(keep, 1 / s.where(keep, 1.0).square(), 0.0)
        trace = ((vt @ within * vt).sum(1) * inverse).sum().where(finite, NAN)
    trace = _Trace.apply("pinv_trace", trace, within, scaled, vt, inverse)
    return trace / means.shape[0] if divide else trace


def solve_trace(
    total: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None,
) -> Tensor:  # fmt: skip
    """``tr(Sigma_T^+ Sigma_B)``: one minus this over ``rank Sigma_B`` is the variability collapse index (VCI).

    Args:
        total: ``(D, D)`` total covariance, symmetric, positive semi-definite.
        means, global_mean, weights: as for :func:`pinv_trace`; they make ``Sigma_B``.
        rtol: eigenvalues of ``total`` up to ``rtol`` times the largest are dropped. None drops those that rounding
            explains: ``8 eps |total|_F D^-1/2``, eps of float64 if all inputs are float64, else of float32.

    Returns:
        float64 scalar; NaN if an input holds a NaN or an infinity.

    Raises:
        ValueError: shape or device mismatch.

    Gradients flow to every tensor argument, with the rank held fixed; a second derivative is refused.
    """
    scaled, _, eps = _scaled_means(means, global_mean, weights, (total,))
    check_beside(total, "total", (means.shape[1],) * 2, "(D, D)", means, "means")
    total = total.double()
    with torch.no_grad():
        finite = total.isfinite().all() & scaled.isfinite().all()
        values, vectors = torch.linalg.eigh(_symmetric(total).where(finite, 0.0))
        if rtol is None:
            floor = 8 * eps * total.norm() / max(1, total.shape[0]) ** 0.5
        else:
            floor = rtol * values.abs().max() if values.numel() else 0.0
        keep = values > floor
        vt = vectors.t() * keep[:, None]
        inverse = torch.where(keep, 1 / values.where(keep, 1.0), 0.0)
        trace = ((scaled @ vt.t()).square().sum(0) * inverse).sum().where(finite, NAN)
    return _Trace.apply("solve_trace", trace, total, scaled, vt, inverse)


def between_svd(
    means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None, rtol: float | None = None
) -> tuple[Tensor, Tensor]:
    """``(s (r,), V^T (r, D))`` in float64, with ``Sigma_B = V diag(s^2) V^T`` and r its rank by the rule of pinv_trace.

    ``projected_sqnorms(x, V^T / s[:, None], labels, means)`` summed over the samples is ``N tr(Sigma_W Sigma_B^+)``
    without a D x D matrix. Not differentiable. ValueError for means that are not finite: they have no rank.
    """
    with torch.no_grad():
        scaled, rank, eps = _scaled_means(means, global_mean, weights, ())
        if not scaled.isfinite().all():
            raise ValueError("means: expected finite rows (and global_mean and weights), got a NaN or an infinity")
        s, basis = _thin_svd(scaled)
        keep = _keep(s, _floor(means, weights, rtol, eps), rtol, rank)
        return s[keep], basis[keep]


def _scaled_means(
    means: Tensor, global_mean: Tensor | None, weights: Tensor | None, others: tuple[Tensor, ...]
) -> tuple[Tensor, int, float]:
    """``A (K, D)`` with ``Sigma_B = A^T A``, the largest rank it can have, and the eps of the input's dtype."""
    check_floating(means, "means", 2)
    k, d = means.shape
    dtypes = {t.dtype for t in (means, *others)}
    rank = min(k, d)
    centred = means.double()
    if weights is not None:
        if not isinstance(weights, Tensor):
            raise TypeError(f"weights: expected a tensor, got {type(weights).__name__}")
        check_shape(weights, "weights", (k,), "(K,)")
        check_device(weights, "weights", means, "means")
        weights = weights.double()
        weights = weights / weights.sum()
    if global_mean is None:
        rank = max(0, min(d, k - 1))
        if weights is None:
            global_mean = centred.mean(0) if k else centred.sum(0)
        else:
            global_mean = weights @ centred
    else:
        check_beside(global_mean, "global_mean", (d,), "(D,)", means, "means")
        dtypes.add(global_mean.dtype)
    centred = centred - global_mean.double()
    eps = torch.finfo(torch.float64 if dtypes == {torch.float64} else torch.float32).eps
    if weights is None:
        return centred / max(1, k) ** 0.5, rank, eps
    # The root of a zero weight has an infinite slope; such a class has no say in Sigma_B and gets no gradient.
    root = torch.where(weights > 0, weights, 1.0).sqrt()
    return centred * torch.where(weights > 0, root, 0.0)[:, None], rank, eps


def _floor(means: Tensor, weights: Tensor | None, rtol: float | None, eps: float) -> Tensor | None:
    """The largest singular value of ``A`` that rounding of the means explains; None where ``rtol`` replaces it."""
    if rtol is not None:
        return None
    k, d = means.shape
    with torch.no_grad():
        rows = means.double()
        if weights is not None:
            rows = rows * (weights.double() / weights.sum() * k).clamp(min=0).sqrt()[:, None]
        # Rounding of relative size eps in every entry is a matrix of spectral norm about this; the factor 4 is safety.
        return 4 * eps * rows.norm() * (max(1, k) ** -0.5 + max(1, d) ** -0.5) / max(1, k) ** 0.5


def _keep(s: Tensor, floor: Tensor | None, rtol: float | None, rank: int) -> Tensor:
    """Which singular values (descending) count. A mask, not a number: nothing here waits for the device."""
    if floor is None:
        floor = rtol * s[:1]
    return (s > floor) & (torch.arange(s.shape[0], device=s.device) < rank)


def _thin_svd(a: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors ``V^T`` of ``(K, D)``; a QR first makes the SVD min(K, D) wide."""
    if a.shape[0] > a.shape[1]:
        _, s, vt = torch.linalg.svd(torch.linalg.qr(a, mode="r").R, full_matrices=False)
        return s, vt
    q, r = torch.linalg.qr(a.t())
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    return s, (q @ u).t()


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.t()) / 2


class _Once(torch.autograd.Function):
    """Passes a gradient on and refuses to be differentiated.

    torch's own ``once_differentiable`` looks at the incoming gradient alone: a gradient penalty on these traces would
    silently lose its second derivative.
    """

    @staticmethod
    def forward(ctx, name, gradient, *sources):
        ctx.name = name
        return gradient.clone()

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(f"{ctx.name}: second derivatives are not supported")


class _Trace(torch.autograd.Function):
    """``tr(M B^+)``, already computed, with its gradients by a matrix and by A, ``scaled``; ``B^+ = vt^T inverse vt``.

    In ``pinv_trace`` M is the matrix and B is ``A^T A``, in ``solve_trace`` they change places.
    """

    @staticmethod
    def forward(ctx, name, trace, matrix, scaled, vt, inverse):
        ctx.name = name
        ctx.save_for_backward(matrix, scaled, vt, inverse)
        return trace.clone()

    @staticmethod
    def backward(ctx, g):
        matrix, scaled, vt, inverse = ctx.saved_tensors
        g_matrix = g_scaled = None
        with torch.no_grad():
            pinv = (vt.t() * inverse) @ vt
            if ctx.needs_input_grad[2]:
                g_matrix = g * (pinv if ctx.name == "pinv_trace" else _pinv_slope(scaled.t() @ scaled, pinv, vt))
            if ctx.needs_input_grad[3]:
                slope = pinv if ctx.name == "solve_trace" else _pinv_slope(_symmetric(matrix), pinv, vt)
                g_scaled = 2 * g * (scaled @ slope)
        gradients = (None, None, g_matrix, g_scaled, None, None)
        if not torch.is_grad_enabled():  # nobody asked for create_graph
            return gradients
        return tuple(t if t is None else _Once.apply(ctx.name, t, g, matrix, scaled) for t in gradients)


def _pinv_slope(m: Tensor, pinv: Tensor, vt: Tensor) -> Tensor:
    """``d tr(M B^+) / dB`` for symmetric M and B: ``-P M P + P^2 M N + N M P^2``, N the projector off the range."""
    outside = m - vt.t() @ (vt @ m)  # N M
    cross = outside @ pinv @ pinv
    return cross + cross.t() - pinv @ m @ pinv
