"""What a file or a dictionary says is a state is proved to be one, before anything is made of it.

Sizes are compared with the tensors that are there, so that nothing is allocated because a configuration declares it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .blocks import blocks

OVERFLOW = 1e37
"""From here on squares may have overflowed in float32, and what was added to them need not be finite."""
MAX_ROWS = 2**62


def check_config(
    config: Any, kinds: Mapping[str, type | tuple[type, ...]], what: str = "config",
    later: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``config`` as a dictionary of its own; ValueError unless its names and the types of its values are these.

    ``later`` are the values that files of before stand for, by names that they lack.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{what}: expected a dictionary, got {type(config).__name__}")
    config = {**(later or {}), **config}
    if set(config) != set(kinds):
        raise ValueError(f"{what}: expected the names {_names(kinds)}, got {_names(config)}")
    for name, kind in kinds.items():
        value, kind = config[name], kind if isinstance(kind, tuple) else (kind,)
        fits = type(value) in (kind if kind != (float,) else (float, int))
        if not fits or (isinstance(value, (int, float)) and not -(2**63) <= value < 2**63):  # NaN is not either
            expected = " or ".join("None" if one is type(None) else one.__name__ for one in kind)
            raise ValueError(f"{what}: {name}: expected {expected}, got {reprlib.repr(value)}")
    return config


def check_tensors(tensors: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless ``tensors`` has the names, shapes and dtypes of ``expected``, on one device."""
    if set(tensors) != set(expected):
        raise ValueError(f"state: expected the tensors {_names(expected)}, got {_names(tensors)}")
    first = None
    for name, mine in expected.items():
        theirs = tensors[name]
        if not isinstance(theirs, Tensor) or theirs.layout != torch.strided:
            got = theirs.layout if isinstance(theirs, Tensor) else type(theirs).__name__
            raise ValueError(f"state: {name}: expected a dense tensor, got {got}")
        if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
            got = f"{theirs.dtype} {tuple(theirs.shape)}"
            raise ValueError(f"state: {name}: expected {mine.dtype} {tuple(mine.shape)}, got {got}")
        first = theirs.device if first is None else first
        if theirs.device != first:
            raise ValueError(f"state: {name}: expected all tensors on one device, got {theirs.device} beside {first}")


def require(holds: Tensor, name: str, expectation: str, values: Tensor) -> None:
    """Raises ValueError naming the first of ``values`` for which ``holds`` is false."""
    if not holds.all():
        at = tuple((~holds).nonzero()[0].tolist())
        place = f" at {at[0] if len(at) == 1 else at}" if at else ""
        raise ValueError(f"state: {name}: expected {expectation}, got {values[at].item()}{place}")


def check_counts(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for numbers of rows that are negative, or more than can have been counted."""
    for name, counts in tensors.items():
        require(counts >= 0, name, "numbers of rows", counts)
        if counts.double().sum() >= MAX_ROWS:
            raise ValueError(f"state: {name}: expected fewer than 2^62 rows, got {counts.double().sum().item():g}")


def check_class_moments(counts: Tensor, center: Tensor | None, sums: Tensor, sqnorms: Tensor) -> None:
    """Raises ValueError for sums and squared norms that no rows have: |s|^2 <= n q in every class.

    A class that has met a NaN or an infinity shows it in its squared norms.
    """
    if center is None:
        require(counts == 0, "counts", "no rows beside the input_dtype None", counts)
    require(~(sqnorms < 0), "sqnorms", "sums of squares", sqnorms)
    spoilt = ~(sqnorms < OVERFLOW)
    tiny = torch.finfo(torch.float32).tiny * sums.shape[1]  # of each square, what float32 may have lost
    for rows in blocks(*sums.shape):
        n, s, q, bad = counts[rows].double(), sums[rows], sqnorms[rows], spoilt[rows] & (counts[rows] > 0)
        fits = (s.square().sum(1) <= 1.001 * n * q + tiny * n.square()) | bad
        if not fits.all():
            at = rows.start + int((~fits).nonzero()[0])
            raise ValueError(
                f"state: sums, sqnorms: class {at}: expected those of {int(counts[at])} rows, got a sum of length "
                f"{float(sums[at].norm()):g} and squared norms of {float(sqnorms[at]):g}"
            )
        if center is not None:
            finite = torch.isfinite(center[rows]).all(1) | bad
            if not finite.all():
                at = rows.start + int((~finite).nonzero()[0])
                raise ValueError(f"state: center: class {at}: expected finite numbers, as its squared norms are")


def check_squares(squares: Tensor, counts: Tensor, sqnorms: Tensor) -> None:
    """Raises ValueError for sums of squares by dimension that do not add up to the squared norms."""
    require(~(squares < 0), "squares", "sums of squares", squares)
    tiny = torch.finfo(torch.float32).tiny * squares.shape[1]
    for rows in blocks(*squares.shape):
        total, q = squares[rows].sum(1), sqnorms[rows]
        fits = ((total - q).abs() <= 1e-3 * q + tiny * counts[rows]) | ~(q < OVERFLOW)
        if not fits.all():
            at = rows.start + int((~fits).nonzero()[0])
            raise ValueError(
                f"state: squares: class {at}: expected a sum of {float(sqnorms[at]):g}, its squared norms, "
                f"got {float(squares[at].sum()):g}"
            )


def check_scatter(scatter: Tensor, sqnorms: Tensor) -> None:
    """Raises ValueError for a scatter that is not finite though all squared norms are."""
    if bool((sqnorms < OVERFLOW).all()):
        require(torch.isfinite(scatter), "scatter", "finite numbers, as the squared norms are", scatter)


def _names(mapping: Mapping[Any, Any]) -> str:
    names = sorted(map(str, mapping))
    return ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "") or "none"
