"""Traces with pseudo-inverses of class scatter: ``tr(Sigma_W Sigma_B^+)`` and ``tr(Sigma_T^+ Sigma_B)`` in float64.

Never through a D x D pseudo-inverse of ``Sigma_B``, nor through a float32 or squared one: on wide spectra both are
wrong by orders of magnitude. The gradients are in closed form with the rank held fixed (Golub and Pereyra 1973),
because autograd through an eigendecomposition is NaN where eigenvalues coincide, as they do at an exact ETF.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_beside, check_device, check_floating, check_shape

NAN = float("nan")
OF_MEANS, OF_FEATURES = 4.0, 0.5
"""Rounding, in eps of an entry: of means that were summed in their own dtype (2.7 was met), and of features to nearest,
which means summed in float64 carry on (0.2 was met)."""


def pinv_trace(
    within: Tensor, means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None,
    rtol: float | None = None, divide: bool = True, input_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """``tr(Sigma_W Sigma_B^+)``, divided by K unless ``divide=False``: NC1 of Papyan, Han and Donoho (2020).

    ``Sigma_B = sum_c w_c m_c m_c^T / sum w`` with ``m_c = means[c] - global_mean``.

    Args:
        within: ``(D, D)`` within-class covariance, symmetric.
        means: ``(K, D)`` class means.
        global_mean: ``(D,)``; None takes the (weighted) mean of ``means``.
        weights: ``(K,)`` finite, non-negative class weights, for instance counts; None weighs all alike.
        rtol: singular values of the centred means up to ``rtol`` times the largest are dropped; 0 or more. None drops
            those that rounding of their own coordinates explains: ``|A v| <= 4 eps |c * v| (1 + (D/K)^1/2)`` for the
            direction v, with c_j the root mean square of coordinate j of the means and eps of float64 if all inputs
            are float64, else of float32. So a coordinate with a large offset costs no other one. The rank is at most
            ``min(D, K - 1)`` for means centred on their own mean.
        divide: by K, the number of classes.
        input_dtype: of the features that float64 means were formed of, for ``rtol=None``: unless it is float64, what
            half an eps of float32 in each entry explains is dropped too.

    Returns:
        float64 scalar; NaN if ``means`` hold a NaN or an infinity, or for K = 0 with ``divide``.

    Raises:
        ValueError: shape or device mismatch; on the CPU also weights that are negative or not finite (elsewhere looking
            would synchronise, and the result is NaN); an rtol that is.

    Gradients flow to every tensor argument, with the rank held fixed; a second derivative is refused.
    """
    rtol = _check_rtol(rtol)
    _check_square(within, "within", means)
    a = _scaled_means(means, global_mean, weights, (within,), input_dtype)
    within, scaled = within.double(), a.scaled
    with torch.no_grad():
        finite = scaled.isfinite().all()
        s, vt = _thin_svd(scaled.where(finite, 0.0))
        keep = _keep(a, s, vt, rtol)
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
        rtol: eigenvalues of ``total`` up to ``rtol`` times the largest are dropped; 0 or more. None drops those that
            rounding of their own coordinates explains: ``8 eps sum_j total_jj v_j^2`` for the eigenvector v, eps of
            float64 if all inputs are float64, else of float32.

    Returns:
        float64 scalar; NaN if an input holds a NaN or an infinity.

    Raises:
        ValueError: as :func:`pinv_trace`.

    Gradients flow to every tensor argument, with the rank held fixed; a second derivative is refused.
    """
    rtol = _check_rtol(rtol)
    _check_square(total, "total", means)
    a = _scaled_means(means, global_mean, weights, (total,), None)
    total, scaled = total.double(), a.scaled
    with torch.no_grad():
        finite = total.isfinite().all() & scaled.isfinite().all()
        values, vectors = torch.linalg.eigh(_symmetric(total).where(finite, 0.0))
        if rtol is None:
            floor = 8 * a.eps * (total.diagonal().abs() @ vectors.square())
        else:
            floor = rtol * values.abs().max() if values.numel() else 0.0
        keep = values > floor
        vt = vectors.t() * keep[:, None]
        inverse = torch.where(keep, 1 / values.where(keep, 1.0), 0.0)
        trace = ((scaled @ vt.t()).square().sum(0) * inverse).sum().where(finite, NAN)
    return _Trace.apply("solve_trace", trace, total, scaled, vt, inverse)


def between_svd(
    means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None, rtol: float | None = None,
    input_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(s (r,), V^T (r, D))`` in float64, with ``Sigma_B = V diag(s^2) V^T`` and r its rank by the rule of pinv_trace.

    ``projected_sqnorms(x, V^T / s[:, None], labels, means)`` summed over the samples is ``N tr(Sigma_W Sigma_B^+)``
    without a D x D matrix. Not differentiable. ValueError for means that are not finite: they have no rank.
    """
    found = between_spectrum(means, global_mean=global_mean, weights=weights, rtol=rtol, input_dtype=input_dtype)
    return found.s[found.keep], found.vt[found.keep]


class Spectrum(NamedTuple):
    """The directions of centred means, widest first. See :func:`between_spectrum`."""

    s: Tensor
    vt: Tensor
    keep: Tensor
    dropped: Tensor


def between_spectrum(
    means: Tensor, *, global_mean: Tensor | None = None, weights: Tensor | None = None, rtol: float | None = None,
    input_dtype: torch.dtype | None = None,
) -> Spectrum:  # fmt: skip
    """All that :func:`between_svd` chooses from: ``s (m,)``, ``V^T (m, D)`` and two masks ``(m,)``.

    ``keep`` are the directions that count; ``dropped`` those that would if every digit of the means were right: what
    they hold is taken for rounding, or excluded by ``rtol``.
    """
    rtol = _check_rtol(rtol)
    with torch.no_grad():
        a = _scaled_means(means, global_mean, weights, (), input_dtype)
        if not a.scaled.isfinite().all():
            raise ValueError("means: expected finite rows (and global_mean and weights), got a NaN or an infinity")
        s, vt = _thin_svd(a.scaled)
        keep = _keep(a, s, vt, rtol)
        exact = a._replace(rounding=OF_MEANS * torch.finfo(torch.float64).eps)
        return Spectrum(s, vt, keep, _keep(exact, s, vt, None) & ~keep)


class _Scaled(NamedTuple):
    """``A (K, D)`` with ``Sigma_B = A^T A``, and what its singular values are judged by."""

    scaled: Tensor
    rank: int  # the largest it can have
    magnitude: Tensor  # (D,) root mean square of each coordinate of the means, before they were centred
    eps: float  # of the dtype of the inputs
    rounding: float  # relative error of an entry of the means


def _scaled_means(
    means: Tensor, global_mean: Tensor | None, weights: Tensor | None, others: tuple[Tensor, ...],
    input_dtype: torch.dtype | None,
) -> _Scaled:  # fmt: skip
    check_floating(means, "means", 2)
    k, d = means.shape
    dtypes = {t.dtype for t in (means, *others)}
    rank = min(k, d)
    rows = means.double()
    if weights is not None:
        weights = _check_weights(weights, means)
        weights = weights / weights.sum()
    if global_mean is None:
        rank = max(0, min(d, k - 1))
        if weights is None:
            global_mean = rows.mean(0) if k else rows.sum(0)
        else:
            global_mean = weights @ rows
    else:
        check_beside(global_mean, "global_mean", (d,), "(D,)", means, "means")
        dtypes.add(global_mean.dtype)
    narrow, wide = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    eps = wide if dtypes == {torch.float64} else narrow
    rounding = max(OF_MEANS * eps, 0.0 if input_dtype in (None, torch.float64) else OF_FEATURES * narrow)
    with torch.no_grad():
        squares = rows.square()
        magnitude = (squares.sum(0) / max(1, k) if weights is None else weights @ squares).sqrt()
    centred = rows - global_mean.double()
    if weights is None:
        return _Scaled(centred / max(1, k) ** 0.5, rank, magnitude, eps, rounding)
    # The root of a zero weight has an infinite slope; such a class has no say in Sigma_B and gets no gradient.
    root = torch.where(weights > 0, weights, 1.0).sqrt()
    return _Scaled(centred * torch.where(weights > 0, root, 0.0)[:, None], rank, magnitude, eps, rounding)


def _check_square(matrix: Tensor, name: str, means: Tensor) -> None:
    check_floating(means, "means", 2)
    check_beside(matrix, name, (means.shape[1],) * 2, "(D, D)", means, "means")


def _check_weights(weights: Any, means: Tensor) -> Tensor:
    """The weights in float64; NaN where one is negative or not finite and no error could say so."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights: expected a tensor, got {type(weights).__name__}")
    if weights.is_complex():
        raise ValueError(f"weights: expected real numbers, got {weights.dtype}")
    check_shape(weights, "weights", (means.shape[0],), "(K,)")
    check_device(weights, "weights", means, "means")
    weights = weights.double()
    good = weights.isfinite() & (weights >= 0)
    if weights.device.type == "cpu" and not torch.compiler.is_compiling() and not good.all():
        row = int((~good).nonzero()[0])
        raise ValueError(f"weights: expected finite numbers of 0 or more, got {float(weights[row])} at class {row}")
    return weights.where(good.all(), NAN)


def _check_rtol(rtol: Any) -> float | None:
    if rtol is None:
        return None
    try:
        number = float(rtol)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        number = NAN
    if isinstance(rtol, str) or not 0 <= number < math.inf:
        raise ValueError(f"rtol: expected a finite number of 0 or more, or None, got {rtol!r}")
    return number


def _keep(a: _Scaled, s: Tensor, vt: Tensor, rtol: float | None) -> Tensor:
    """Which singular values (descending) count. A mask, not a number: nothing here waits for the device."""
    if rtol is None:
        # Errors of this size in every entry reach a direction v with a norm of about |c * v| (1 + (D/K)^1/2) rounding.
        edge = 1 + (a.scaled.shape[1] / max(1, a.scaled.shape[0])) ** 0.5
        floor = a.rounding * edge * (vt * a.magnitude).norm(dim=1)
    else:
        floor = rtol * s[:1]
    return (s > floor) & (torch.arange(s.shape[0], device=s.device) < a.rank)


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
