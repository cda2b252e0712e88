"""The parts of a report's page: cards, figures and tables as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.table import HEADLINES, direction, meaning
from . import plots
from .curves import CONTROL, has_values
from .details import coverage_items
from .numbers import format_value

SIZE, WIDE = (4.4, 2.9), (4.4, 3.6)
"""Inches of a figure: drawn as wide as a phone shows it, so that its text is never scaled down."""
CLASS_COLUMNS = {
    "count": ("samples", "number"),
    "class_var": ("variance", "number"),
    "mean_norm": ("mean norm", "number"),
    "row_cosine": ("cos with its row", "number"),
    "held_out": ("held-out samples", "number"),
    "hit": ("hit rate", "number"),
    "agree": ("agreement", "number"),
}
_VISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def token_html(text: str) -> str:
    """A token's text as escaped HTML in which white space and control characters can be seen."""
    parts = []
    for index, char in enumerate(text):
        edge = char == " " and (index == 0 or index == len(text) - 1 or text[index - 1] == " ")
        if edge:
            parts.append("<u>·</u>")
        elif char in _VISIBLE:
            parts.append(f"<u>{_VISIBLE[char]}</u>")
        elif CONTROL.match(char):
            parts.append(f"<u>\\u{ord(char):04x}</u>")
        else:
            parts.append(html.escape(char, quote=True))
    return "<code>" + ("".join(parts) or " ") + "</code>"


def cards(report: Mapping[str, float]) -> str:
    cards = []
    for name in HEADLINES:
        if name not in report:
            continue
        value, entry = float(report[name]), meaning(name)
        if math.isfinite(value):
            share = 1 / (1 + value) if entry.target == 0 else min(max(value, 0.0), 1.0)
        else:
            share = 0.0
        cards.append(
            f'<div class="card"><div class="name">{html.escape(entry.card)}</div>'
            f'<div class="value">{format_value(value)}</div>'
            f'<div class="track"><i style="width:{100 * share:.1f}%"></i></div>'
            f'<div class="ends"><span>not collapsed</span><span>{html.escape(entry.goal)}</span></div>'
            f"<p>{html.escape(entry.sentence)}</p></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def coverage(report: Mapping[str, float]) -> str:
    items = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"
        for label, value in coverage_items(report)
    )
    return f'<div class="box coverage">{items}</div>' if items else ""


def _sentence(report: Mapping[str, float], name: str) -> str:
    note = getattr(report, "notes", {}).get(name)
    return html.escape(meaning(name).sentence) + (f" <b>{html.escape(note)}</b>" if note else "")


def metric_table(report: Mapping[str, float]) -> str:
    rows = [
        f'<tr><td class="l">{html.escape(meaning(name).label)}</td>{cell(float(value))}'
        f'<td class="l">{html.escape(direction(name))}</td>'
        f'<td class="l wrap">{_sentence(report, name)}</td>'
        f'<td class="l"><code>{html.escape(name)}</code></td></tr>'
        for name, value in report.items()
    ]
    columns = [(c, "number" if c == "value" else "text") for c in ("metric", "value", "direction", "meaning", "name")]
    return f"<h2>Every number</h2>{data_table(columns, rows, 'Every metric, its value and its meaning')}"


class Figures:
    """Draws figures where matplotlib is there; says so once where it is not."""

    def __init__(self) -> None:
        try:
            import matplotlib  # noqa: F401

            from .svg import inline_svg
        except ModuleNotFoundError:
            inline_svg = None
        self._svg = inline_svg

    def __bool__(self) -> bool:
        return self._svg is not None

    def __call__(self, draw, name: str, title: str, caption: str = "", size=SIZE, *, way: str = "") -> str:
        """A ``<figure>`` with what ``draw(ax)`` draws; ``way`` says under the title where the values go."""
        told = ". ".join(text for text in (title, way, caption) if text)
        svg = self._svg(draw, name, size, html.escape(told, quote=True))
        caption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        heading = f'<h3 id="{name}-title">{html.escape(title)}</h3>'
        heading += f'<p class="way">{html.escape(way)}</p>' if way else ""
        return f'<figure aria-labelledby="{name}-title">{heading}{svg}{caption}</figure>'


def data_table(
    columns: Sequence[tuple[str, str]],
    rows: Sequence[str],
    label: str,
    *,
    name: str = "",
    css: str = "",
    sorted_by: tuple[str, str] | None = None,
) -> str:
    """A table whose headings sort it.

    Args:
        columns: (heading, ``"text"``, ``"number"`` or ``"order"``); all but numbers are aligned to the left.
        rows: ``<tr>`` elements. A cell's ``data-v`` is what it is sorted by, empty where it has no value.
        label: what it shows, for screen readers. name: its id. css: classes of the box around it: ``tall`` scrolls,
            ``wide`` has many columns, which paper gets small, or as rows where there are few rows.
        sorted_by: the heading that the rows follow already, and ``"ascending"`` or ``"descending"``.
    """
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"{"" if kind == "number" else " class=l"}'
        f"{f' aria-sort={sorted_by[1]}' if sorted_by and sorted_by[0] == heading else ''}>"
        f'<button type="button">{html.escape(heading)}</button></th>'
        for heading, kind in columns
    )
    if css == "wide" and len(columns) > 10:
        css = "wide turn" if len(rows) <= 8 else "wide many"
    told = f'tabindex="0" role="region" aria-label="{html.escape(label, quote=True)}"'
    return (
        f'<div class="scroll {css}" style="--n:{len(columns)}" {told}>'
        f"<table{f' id={name}' if name else ''} data-sort><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def number(value: Any) -> str:
    return "–" if value is None else format_value(value)


def cell(value: float | None, css: str = "") -> str:
    """A table cell of a number; one that is absent or NaN sorts last."""
    raw = "" if value is None or not math.isfinite(value) else repr(value)
    return f'<td data-v="{raw}"{f" class={css}" if css else ""}>{number(value)}</td>'


def _mean_mark(data: Mapping[str, Any]) -> dict[str, float]:
    return {f"mean {format_value(data['mean'])}": data["mean"]} if data.get("mean") is not None else {}


def distributions(figure: Figures, report: Mapping[str, float], details: Mapping[str, Any]) -> str:
    data = details.get("histograms", {})
    drawn = [
        figure(
            lambda ax: plots.overview(ax, report, plots.SENTINEL),
            "overview",
            "How far from collapse",
            "Values at the right. Distances under 10⁻⁴ are drawn at the left edge.",
            WIDE,
        )
    ]

    def add(key: str, title: str, xlabel: str, caption: str) -> None:
        if key in data and sum(data[key]["counts"]):
            entry = data[key]
            marks = _mean_mark(entry)
            if key == "pair_cosine" and entry["classes"] > 1:
                corner = -1 / (entry["of"] - 1)
                marks[f"simplex {corner:.3g}"] = corner
            drawn.append(
                figure(lambda ax: plots.distribution(ax, entry, xlabel, plots.SENTINEL, marks), key, title, caption)
            )

    add("mean_norm", "Length of the centred class means", "‖μ_c − μ_G‖", "Equal lengths (NC2) would be one bar.")
    add("row_cosine", "Class mean against its classifier row", "cosine", "Self-duality (NC3) puts every class at 1.")
    pairs = data.get("pair_cosine", {})
    sample = pairs and pairs["classes"] < pairs["of"]
    which = f"A random sample of {pairs['classes']} of {pairs['of']:,} kept classes" if sample else "All kept classes"
    add(
        "pair_cosine",
        "Angles between class means",
        "cosine of a pair",
        f"{which}; a simplex (NC2) is one bar at −1/(K−1).",
    )
    scatter = details.get("scatter")
    if scatter and scatter["shown"]:
        caption = f"{scatter['shown']:,} of {scatter['of']:,} kept classes with a variance above 0."
        drawn.append(
            figure(
                lambda ax: plots.count_variance(ax, scatter, plots.SENTINEL),
                "scatter",
                "Class count against class variance",
                caption,
            )
        )
    if "entropy" in data:
        guess = f"0 is full certainty, {format_value(data['entropy']['edges'][-1])} a blind guess among all classes."
        add("entropy", "Entropy of the predictions", "entropy (nats)", guess)
    add(
        "margin",
        "Margin of the right class",
        "its logit minus the best other logit",
        "Right of 0 the classifier is right.",
    )
    if "reliability" in data:
        ece = report["ece"] if "ece" in report else math.nan
        caption = (
            f"Expected calibration error {format_value(float(ece))}. Bars under the dashed line: too sure of itself. "
            "Dots: mean confidence of the bin."
        )
        drawn.append(
            figure(
                lambda ax: plots.reliability(ax, data["reliability"], plots.SENTINEL),
                "reliability",
                "Reliability",
                caption,
            )
        )
    return f'<div class="grid">{"".join(drawn)}</div>'


def trajectory_figures(figure: Figures, data: Mapping[str, Any], key: str) -> str:
    """One figure per metric along layers or checkpoints."""
    drawn = [
        figure(
            lambda ax, v=values, n=name: plots.curve(ax, data["axis"], data["points"], v, n, plots.SENTINEL),
            f"{key}-{name}",
            meaning(name).label,
            way=direction(name),
        )
        for name, values in data["metrics"].items()
        if has_values(values)
    ]
    return f'<div class="grid">{"".join(drawn)}</div>'


def trajectory_table(data: Mapping[str, Any]) -> str:
    names, axis = list(data["metrics"]), data["axis"]
    rows = [
        f'<tr><td data-v="{point!r}">{point:g}</td>{"".join(cell(data["metrics"][n][i]) for n in names)}</tr>'
        for i, point in enumerate(data["points"])
    ]
    columns = [(axis, "number"), *((meaning(n).label, "number") for n in names)]
    table = data_table(columns, rows, f"Metrics by {axis}", css="wide", sorted_by=(axis, "ascending"))
    return f'<details class="inner"><summary>The same as a table</summary>{table}</details>'


def class_table(data: Mapping[str, Any]) -> str:
    rows, noun = data["rows"], html.escape(data.get("noun", "class"))
    if not rows:
        return ""
    names = [n for n in CLASS_COLUMNS if n in rows[0]]
    columns = [(data.get("noun", "class"), "text"), ("id", "number"), *(CLASS_COLUMNS[n] for n in names)]
    body = [
        f'<tr><td class="l">{token_html(str(row["text"]))}</td>'
        f"{cell(row['id'])}{''.join(cell(row.get(n)) for n in names)}</tr>"
        for row in rows
    ]
    plural = noun + ("es" if noun.endswith("s") else "s")
    limit = "all kept" if len(rows) == data["of"] else f"the {len(rows):,} most frequent of {data['of']:,} kept"
    note = f"Showing {limit} {plural}. Select a heading to sort. "
    if "agree" in rows[0]:
        note += "Hit rate: the classifier is right. Agreement: it picks the nearest class mean. "
        note += "Both on the decision part; – where it has no sample."
    table = data_table(columns, body, f"Class by class, one {noun} a row", name="classes", css="tall",
                       sorted_by=("samples", "descending"))  # fmt: skip
    return (
        f'<h2>Class by class</h2><p class="note">{note}</p>'
        f'<input type="search" data-filter="classes" placeholder="find a {noun}" aria-label="find a {noun}">{table}'
    )


def facts_table(details: Mapping[str, Any], report: Mapping[str, float]) -> str:
    facts = {"convention": getattr(report, "convention", "ncops"), **details.get("run", {})}
    rows = "".join(
        f'<tr><td class="l">{html.escape(str(k).replace("_", " "))}</td>'
        f'<td class="l wrap">{html.escape(str(v))}</td></tr>'
        for k, v in facts.items()
        if v is not None
    )
    table = f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>How this was measured</summary>{table}</details>"
