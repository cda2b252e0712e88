"""Class by class: what a report knows of each, as a table that is sorted, cut and handed on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import metrics, tables
from ..conventions import Convention
from ..ops import PairStats
from .numbers import format_value
from .quantities import origin_of

if TYPE_CHECKING:
    from ..stats.decisions import DecisionStatistics
    from ..stats.geometry import ClassGeometry

COLUMNS = {
    "class": "class", "count": "samples", "kept": "kept", "class_var": "variance", "mean_norm": "mean norm",
    "row_norm": "row norm", "row_cosine": "cos with its row", "nearest": "nearest class",
    "nearest_cosine": "cos with nearest", "decided": "decision samples", "hit": "hit rate",
    "ncc_hit": "nearest-mean hit rate", "agree": "agreement", "nll": "NLL (nats)",
}  # fmt: skip
"""The columns that a table of classes may have, and what they are called where a person reads them."""

PRINTED, SHOWN = 20, 100
"""Rows of a table as text and in a notebook; all of them are in its columns."""


INTEGERS, FLAGS = ("class", "count", "nearest", "decided"), ("kept",)
"""Columns of integers, -1 where there is none, and of yes and no; the others are float64, NaN where there is none."""


class ClassTable:
    """One row per class. ``table["count"]`` is a column as a list, None or NaN where a class has no such number.

    Made, sorted and cut by :meth:`ncops.CollapseReport.classes`.

    Attributes:
        of: how many classes there are, of which these are the rows.
    """

    def __init__(self, columns: Mapping[str, Tensor], of: int | None = None):
        self._columns = dict(columns)
        self.of = len(self) if of is None else of

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], of: int) -> ClassTable:
        """From rows as a ``report.json`` has them, whose class is called ``id``."""
        columns: dict[str, Tensor] = {}
        for name in COLUMNS if rows else ():
            key = "id" if name == "class" else name
            if key in rows[0] or name == "kept":
                dtype, absent = _kind(name)
                values = [True if name == "kept" else row.get(key) for row in rows]
                columns[name] = torch.tensor([absent if value is None else value for value in values], dtype=dtype)
        return cls(columns, of)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that there are."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return next((column.shape[0] for column in self._columns.values()), 0)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._columns:
            raise KeyError(f"classes: no column {name!r}; it has {', '.join(self._columns) or 'none'}")
        values = self._columns[name].tolist()
        return [None if value < 0 else value for value in values] if name in INTEGERS else values

    def sort(self, by: str, descending: bool = False) -> ClassTable:
        """The rows in the order of a column, equal ones as they were; those without a number come last.

        Raises:
            ValueError: no such column.
        """
        if by not in self._columns:
            raise ValueError(f"by: expected one of {', '.join(self._columns) or 'no column'}, got {by!r}")
        values = self._columns[by]
        absent = (values != values) | (values == -1 if by in INTEGERS else False)
        known, last = (~absent).nonzero()[:, 0], absent.nonzero()[:, 0]
        order = torch.argsort(values[known], descending=descending, stable=True)
        return self._take(torch.cat([known[order], last]))

    def head(self, limit: int) -> ClassTable:
        """The first ``limit`` rows, or as many as there are."""
        return self._take(slice(limit))

    def kept(self) -> ClassTable:
        """The rows of classes that are kept."""
        return self._take(self._columns["kept"].nonzero()[:, 0]) if self._columns else self

    def _take(self, rows: Tensor | slice) -> ClassTable:
        return ClassTable({name: column[rows] for name, column in self._columns.items()}, self.of)

    def to_dict(self) -> dict[str, list[Any]]:
        """Name -> one value per class."""
        return {name: self[name] for name in self._columns}

    def to_frame(self):
        """A ``pandas.DataFrame`` with these columns, a row per class.

        Raises:
            ModuleNotFoundError: without pandas.
        """
        return tables.frame(self.to_dict())

    def __repr__(self) -> str:
        rows, told = self._shown(PRINTED)
        return "\n".join([tables.plain_table(self.names, rows), *told])

    def _repr_html_(self) -> str:
        rows, told = self._shown(SHOWN)
        return tables.html_table([COLUMNS[name] for name in self.names], rows, notes=told)

    def _shown(self, limit: int) -> tuple[list[tuple[str, ...]], list[str]]:
        columns = [[_cell(name, value) for value in values] for name, values in self.head(limit).to_dict().items()]
        rows = list(zip(*columns, strict=True))
        if len(rows) == self.of:
            return rows, []
        return rows, [f"{len(rows):,} of {self.of:,} classes; to_dict() and to_frame() have {len(self):,}."]


def _kind(name: str) -> tuple[torch.dtype, Any]:
    """The dtype of a column, and its value where there is none."""
    if name in FLAGS:
        return torch.bool, False
    return (torch.int64, -1) if name in INTEGERS else (torch.float64, math.nan)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if name in ("class", "nearest") and value is not None else format_value(value)


def class_table(
    geometry: ClassGeometry, rows: Tensor | None, decisions: DecisionStatistics | None, settings: Convention,
    cosines: PairStats | None,
) -> ClassTable:  # fmt: skip
    """The kept classes, and among them those that only the decision pass has met, in ascending order.

    Args:
        rows: the classifier's, of the kept classes. cosines: of the pairs of centred class means; None for K < 2.
    """
    means, origin = geometry.means, origin_of(geometry, settings)
    columns: dict[str, Tensor] = {
        "class": geometry.classes,
        "count": geometry.counts,
        "kept": torch.ones(geometry.num_kept, dtype=torch.bool),
        "class_var": geometry.class_var.double(),
        "mean_norm": metrics.mean_norms(means, global_mean=origin),
    }
    if rows is not None:
        rows = rows.to(means.device)
        columns["row_norm"] = metrics.mean_norms(rows, global_mean=means.new_zeros(geometry.dim))
        columns["row_cosine"] = metrics.row_similarity(
            rows, means, global_mean=origin, center_weight=settings.center_weight
        )
    if cosines is not None:
        found = cosines.row_argmax
        columns["nearest"] = torch.where(found < 0, -1, geometry.classes[found.clamp_min(0)])
        columns["nearest_cosine"] = cosines.row_max.double()
    columns = {name: column.cpu() for name, column in columns.items()}
    if decisions is None:
        return ClassTable(columns)
    d, count, kept = decisions, decisions.count.cpu(), decisions.kept.cpu()
    seen = ((count > 0) & ~kept).nonzero()[:, 0]
    # Of a class that is not kept the number of samples is known where a single one would have kept it.
    rest = {"class": seen, "count": torch.full_like(seen, 0 if geometry.coverage.get("min_count") == 1 else -1)}
    for name, column in columns.items():
        dtype, absent = _kind(name)
        more = rest.get(name, torch.full(seen.shape, absent, dtype=dtype))
        columns[name] = torch.cat([column, more])
    at = columns["class"]
    columns["decided"] = count[at]
    for name, total in (("hit", d.hit), ("ncc_hit", d.ncc_hit), ("agree", d.agree), ("nll", d.nll)):
        columns[name] = metrics.per_class_share(total, d.count).cpu()[at]
    if not kept.any():  # then no mean is the nearest
        columns["ncc_hit"], columns["agree"] = (torch.full(seen.shape, math.nan, dtype=torch.float64) for _ in range(2))
    return ClassTable(columns).sort("class")
