"""Statistics that the code of Linguistic Collapse (Wu and Papyan 2024) stores, read into ncops and written back.

That code keeps, per checkpoint of a model, one ``torch.save`` file of class sums, one of summed squared distances to
the class means, and one of decisions; each ``{"hash", "N_seqs", "Ns_toks" (C), "totals"}``, where ``hash`` is the
sha256 of the class means. Files are read with ``weights_only``: nothing in them is executed.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..stats.classes import ClassStatistics
from .neural_collapse.util import hashify

Path = str | os.PathLike


class Hits(NamedTuple):
    """Decisions per true class, as :class:`ncops.DecisionStatistics` counts them."""

    count: Tensor  # (C,) int64 rows
    agree: Tensor  # (C,) int64 rows in which classifier and nearest class mean decide alike


def read_statistics(
    means: Path, vars: Path | None = None, *, input_dtype: torch.dtype = torch.float32
) -> ClassStatistics:
    """Class statistics from a means file and, for class variances, the vars file that was made with it.

    Args:
        means: file of class sums. vars: file of class variances; None leaves them NaN, and NC1 with them.
        input_dtype: dtype of the features that were collected; it decides what counts as rounding, and with what the
            statistics can be merged.

    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, or variances about other means.
    """
    first = _read(means, "means")
    counts, totals = first["Ns_toks"].long().reshape(-1), first["totals"].double()
    if totals.ndim != 2 or counts.shape[0] != totals.shape[0]:
        raise ValueError(f"means: expected totals (C, D) with C = {counts.shape[0]}, got {tuple(totals.shape)}")
    n = counts.clamp(min=1).double()
    stats = ClassStatistics(*totals.shape)
    stats.input_dtype, stats.counts = input_dtype, counts
    exact = totals / n[:, None]
    stats.center = exact.to(compute_dtype(input_dtype))
    left = exact - stats.center.double()  # what the anchor's rounding leaves over
    stats.sums = left * counts[:, None]
    stats.sqnorms = torch.full_like(n, float("nan")).masked_fill_(counts == 0, 0)
    if vars is None:
        return stats
    second = _read(vars, "vars")
    if first["hash"] and second["hash"] and first["hash"] != second["hash"]:
        raise ValueError(f"vars: made with other means: hash {second['hash'][:8]}, the means have {first['hash'][:8]}")
    seen = second["Ns_toks"].long().reshape(-1)
    if seen.shape != counts.shape or second["totals"].reshape(-1).shape != counts.shape:
        raise ValueError(f"vars: expected {counts.shape[0]} classes, got {tuple(second['totals'].shape)}")
    if not torch.equal(seen, counts):
        # A pass that stopped early has variances of fewer rows: they are taken as those of all.
        warnings.warn("vars: another number of rows than the means; variances are scaled to theirs", stacklevel=2)
    variance = second["totals"].double().reshape(-1) / seen.clamp(min=1)
    stats.sqnorms = (variance + left.square().sum(1)) * counts
    return stats


def write_statistics(stats: ClassStatistics, means: Path, vars: Path | None = None, *, sequences: int = 0) -> str:
    """Writes what :func:`read_statistics` reads; ``sequences`` is the number that a resumed collection skips.

    Returns:
        The hash of the class means that both files carry.
    """
    geometry = stats.compute()
    totals = torch.zeros(stats.num_classes, stats.dim, dtype=torch.float64)
    squares = torch.zeros(stats.num_classes, dtype=torch.float64)
    counts = stats.counts.cpu()
    kept, n = geometry.classes.cpu(), geometry.counts.cpu().double()
    totals[kept] = geometry.means.cpu() * n[:, None]
    squares[kept] = geometry.class_var.cpu() * n
    # As that code makes its means from the totals, so that its own check of the hash passes.
    eps = torch.finfo(torch.float64).eps
    name = hashify(totals / (counts.int().unsqueeze(1) + eps).to(torch.float64))
    for path, values in ((means, totals), (vars, squares)):
        if path is not None:
            torch.save({"hash": name, "N_seqs": sequences, "Ns_toks": counts.int(), "totals": values}, path)
    return name


def read_hits(decs: Path) -> Hits:
    """Decisions from a decs file. NC4 is ``agree.sum() / count.sum()``."""
    stored = _read(decs, "decs")
    return Hits(stored["Ns_toks"].long().reshape(-1), stored["totals"].long().reshape(-1))


def _read(path: Path, name: str) -> dict[str, Any]:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: no file {os.fspath(path)}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise what they like for a damaged file
        raise ValueError(f"{name}: {os.fspath(path)} cannot be read as tensors: {str(error).splitlines()[0]}") from None
    wanted = ("hash", "N_seqs", "Ns_toks", "totals")
    if not isinstance(stored, dict) or any(key not in stored for key in wanted):
        got = sorted(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{name}: {os.fspath(path)}: expected the entries {', '.join(wanted)}, got {got}")
    return stored
