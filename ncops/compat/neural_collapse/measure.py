"""Metrics of class means, covariances and classifiers, as Python floats or per class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import metrics
from ...metrics.configuration import simplex_error
from ...ops import pinv_trace
from .accumulate import DecAccumulator, Indices
from .util import normalize

Center = Tensor | float


def _global_mean(M: Tensor, m_G: Center) -> Tensor | None:  # noqa: N803
    """``m_G`` as ``(D,)``; None where it is the mean of M up to rounding, which then must not count as a direction."""
    given = torch.as_tensor(m_G, device=M.device)
    given = (given if given.is_floating_point() else given.to(M.dtype)).reshape(-1).expand(M.shape[1])
    own, magnitude = M.double().mean(0), M.double().square().mean(0).sqrt()
    apart = (given.double() - own) / magnitude.where(magnitude > 0, 1.0)  # every coordinate in units of its own
    return None if apart.square().mean().sqrt() <= 8 * torch.finfo(torch.float32).eps else given


def covariance_ratio(V_intra: Tensor, M: Tensor, m_G: Center = 0, metric: str = "pinv") -> float:  # noqa: N803
    """NC1 from the ``(D, D)`` within-class covariance and the ``(K, D)`` class means.

    ``"pinv"`` and ``"svd"``: ``tr(Sigma_W Sigma_B^+) / K`` in float64, the rank decided on the means' singular values;
    ``"quotient"``: ``tr Sigma_W / tr Sigma_B``.

    Raises:
        NotImplementedError: for another ``metric``.
    """
    M, V_intra = M.detach(), V_intra.detach().to(M.device)  # noqa: N806
    if metric == "quotient":
        between = (M.double() - torch.as_tensor(m_G, device=M.device).double()).square().sum() / M.shape[0]
        return (V_intra.double().trace() / between).item()
    if metric in ("pinv", "svd"):
        return pinv_trace(V_intra, M, global_mean=_global_mean(M, m_G)).item()
    raise NotImplementedError(f"metric: expected 'pinv', 'svd' or 'quotient', got {metric!r}")


def variability_cdnv(V_norms: Tensor, M: Tensor, dist_exp: float = 1.0, tile_size: int | None = None) -> float:  # noqa: N803
    """Mean over pairs i < j of ``(v_i + v_j) / (2 |m_i - m_j|^(2 dist_exp))``, without a grid: no ``tile_size``."""
    return metrics.nc1_cdnv(V_norms.reshape(-1), M, power=dist_exp).item()


def mean_norms(M: Tensor, m_G: Center = 0, post_funcs: Sequence[Callable[[Tensor], Tensor]] = ()) -> Tensor:  # noqa: N803
    """``(K)`` norms of ``M - m_G``, passed through ``post_funcs`` one after the other."""
    result = (M - m_G).norm(dim=-1)
    for function in post_funcs:
        result = function(result)
    return result


def interference_grid(M: Tensor, m_G: Center = 0) -> Tensor:  # noqa: N803
    """``(K, K)`` inner products of the rows of ``M - m_G``. For statistics of them use ``ncops.pair_stats``."""
    rows = M - m_G
    return rows @ rows.mT


def similarities(W: Tensor, M: Tensor, m_G: Center = 0, cos: bool = False) -> Tensor:  # noqa: N803
    """``(K)`` inner products, or cosines, of each row of W with its row of ``M - m_G``; on W's device."""
    rows = (M - m_G).to(W.device)
    wide = torch.promote_types(W.dtype, rows.dtype)
    weight, rows = W.to(wide), rows.to(wide)
    if cos:
        return torch.nn.functional.cosine_similarity(weight, rows)
    return (weight * rows).sum(-1)


def distance_norms(W: Tensor, M: Tensor, m_G: Center = 0, norm: bool = True) -> Tensor:  # noqa: N803
    """``(K)`` distances of each row of W to its row of ``M - m_G``, both normalised unless ``norm=False``."""
    rows = (M - m_G).to(W.device)
    return ((normalize(W) - normalize(rows)) if norm else (W - rows)).norm(dim=-1)


def structure_error(A: Tensor, B: Tensor) -> float:  # noqa: N803
    """Distance of ``B A^T``, scaled to norm 1, from a simplex of norm 1; without the K x K matrix."""
    return simplex_error(B.detach().to(A.device), A.detach()).item()


def simplex_etf_error(M: Tensor, m_G: Center = 0) -> float:  # noqa: N803
    """:func:`structure_error` of the centred means with themselves."""
    rows = M - m_G
    return structure_error(rows, rows)


def self_duality_error(W: Tensor, M: Tensor, m_G: Center = 0) -> float:  # noqa: N803
    """:func:`structure_error` of the centred means with the classifier rows."""
    return structure_error(M - m_G, W)


def clf_ncc_agreement(
    accum: DecAccumulator, indices: Indices = None, weighted: bool = True
) -> float:
    """Share of rows in which both classifiers agree: over all rows, or the mean of the classes' shares."""
    return accum.compute(indices, weighted)[1].item()


def orthogonality_deviation(M: Tensor, m_G_ood: Tensor | None = None) -> float:  # noqa: N803
    """Mean absolute cosine of each class mean with ``m_G_ood (D)``, the mean of out-of-distribution features.

    Raises:
        ValueError: without ``m_G_ood``; there is no direction to compare with.
    """
    if not isinstance(m_G_ood, Tensor) or tuple(m_G_ood.shape) != (M.shape[1],):
        got = tuple(m_G_ood.shape) if isinstance(m_G_ood, Tensor) else m_G_ood
        raise ValueError(f"m_G_ood: expected shape (D,) = ({M.shape[1]},), got {got}")
    return similarities(M, m_G_ood, cos=True).abs().mean().item()
