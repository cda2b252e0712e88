"""How alike two representations of the same samples are."""

from __future__ import annotations

from torch import Tensor

from ..ops.checks import check_floating, check_integer, shape


def linear_cka(scatter: Tensor, dim: int) -> Tensor:
    """Linear centred kernel alignment ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)``, X and Y centred. Kornblith et al. 2019.

    Args:
        scatter: ``(D1 + D2, D1 + D2)`` of the rows ``[x, y]``, centred:
            ``ncops.class_scatter(torch.cat([x, y], 1), center=...)``, or :class:`ncops.ClassStatistics` with one class.
        dim: D1, the columns of x.

    Returns:
        float64 scalar between 0 and 1, which is that of representations equal up to a rotation and a scale.
        Differentiable.
    """
    check_floating(scatter, "scatter", 2)
    dim = check_integer(dim, "dim", 1)
    if scatter.shape[0] != scatter.shape[1] or dim >= scatter.shape[0]:
        raise ValueError(f"scatter: expected a square matrix of more than dim={dim} rows, got shape {shape(scatter)}")
    s = scatter.double()
    return s[:dim, dim:].square().sum() / (s[:dim, :dim].norm() * s[dim:, dim:].norm())
