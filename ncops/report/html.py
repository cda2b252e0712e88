"""A report as one self-contained HTML file: no request leaves it, it follows light and dark, and it fits a phone."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from . import plots
from .details import caveats, coverage_items
from .explain import HEADLINE_TITLES, HEADLINES, format_value, meaning

_PLOT, _SMALL = (5.6, 3.4), (3.1, 2.0)
_COLUMNS = {
    "count": ("samples", "number"),
    "class_var": ("variance", "number"),
    "mean_norm": ("mean norm", "number"),
    "row_cosine": ("cos with its row", "number"),
    "held_out": ("held-out samples", "number"),
    "hit": ("hit rate", "number"),
    "agree": ("agreement", "number"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
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
        elif _CONTROL.match(char):
            parts.append(f"<u>\\u{ord(char):04x}</u>")
        else:
            parts.append(html.escape(char, quote=True))
    return "<code>" + ("".join(parts) or " ") + "</code>"


def _cards(report: Mapping[str, float]) -> str:
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
            f'<div class="card"><div class="name">{html.escape(HEADLINE_TITLES[name])}</div>'
            f'<div class="value">{format_value(value)}</div>'
            f'<div class="track"><i style="width:{100 * share:.1f}%"></i></div>'
            f'<div class="ends"><span>not collapsed</span><span>{html.escape(entry.goal)}</span></div>'
            f"<p>{html.escape(entry.sentence)}</p></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _coverage(report: Mapping[str, float]) -> str:
    items = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>"
        for label, value in coverage_items(report)
    )
    return f'<div class="box coverage">{items}</div>' if items else ""


def _sentence(report: Mapping[str, float], name: str) -> str:
    note = getattr(report, "notes", {}).get(name)
    return html.escape(meaning(name).sentence) + (f" <b>{html.escape(note)}</b>" if note else "")


def _metrics(report: Mapping[str, float]) -> str:
    rows = "".join(
        f'<tr><td class="l">{html.escape(meaning(name).label)}</td><td>{format_value(float(value))}</td>'
        f'<td class="l">{html.escape(meaning(name).goal)}</td>'
        f'<td class="l wrap">{_sentence(report, name)}</td>'
        f'<td class="l"><code>{html.escape(name)}</code></td></tr>'
        for name, value in report.items()
    )
    left = "".join(f'<th class="l">{label}</th>' for label in ("direction", "meaning", "name"))
    head = f'<tr><th class="l">metric</th><th>value</th>{left}</tr>'
    return f'<h2>Every number</h2><div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


class _Figures:
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

    def __call__(self, draw, name: str, title: str, caption: str, size=_PLOT) -> str:
        svg = self._svg(draw, name, size, html.escape(f"{title}. {caption}", quote=True))
        heading = f"<h3>{html.escape(title)}</h3>" if title else ""
        caption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        return f"<figure>{heading}{svg}{caption}</figure>"


def _mean_mark(data: Mapping[str, Any]) -> dict[str, float]:
    return {f"mean {format_value(data['mean'])}": data["mean"]} if data.get("mean") is not None else {}


def _distributions(figure: _Figures, report: Mapping[str, float], details: Mapping[str, Any]) -> str:
    data = details.get("histograms", {})
    drawn = [
        figure(
            lambda ax: plots.overview(ax, report, plots.SENTINEL),
            "overview",
            "How far from collapse",
            "Distances under 10⁻⁴ are drawn at the left edge.",
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
    return f'<h2>Plots</h2><div class="grid">{"".join(drawn)}</div>'


def _trajectory(figure: _Figures, data: Mapping[str, Any], key: str, title: str, text: str) -> str:
    drawn = [
        figure(
            lambda ax, v=values, n=name: plots.curve(ax, data["axis"], data["points"], v, n, plots.SENTINEL),
            f"{key}-{name}",
            meaning(name).label,
            "",
            _SMALL,
        )
        for name, values in data["metrics"].items()
        if any(v is not None for v in values)
    ]
    return (
        f'<h2>{title}</h2><p class="note">{html.escape(text)}</p><div class="grid small">{"".join(drawn)}</div>'
        if drawn
        else ""
    )


def _trajectory_table(data: Mapping[str, Any]) -> str:
    names = list(data["metrics"])
    head = f"<th>{html.escape(data['axis'])}</th>" + "".join(f"<th>{html.escape(meaning(n).label)}</th>" for n in names)
    rows = "".join(
        f"<tr><td>{point:g}</td>" + "".join(f"<td>{_number(data['metrics'][n][i])}</td>" for n in names) + "</tr>"
        for i, point in enumerate(data["points"])
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'<details class="inner"><summary>The same as a table</summary>{table}</details>'


def _number(value: Any) -> str:
    return "–" if value is None else format_value(value)


def _cell(value: Any) -> str:
    raw = "" if value is None else repr(value)
    return f'<td data-v="{raw}">{_number(value)}</td>'


def _classes(data: Mapping[str, Any]) -> str:
    rows, noun = data["rows"], html.escape(data.get("noun", "class"))
    if not rows:
        return ""
    names = [n for n in _COLUMNS if n in rows[0]]
    heads = [(noun, "text"), ("id", "number")] + [_COLUMNS[n] for n in names]
    head = "".join(
        f'<th{" class=l" if i == 0 else ""} data-kind="{kind}"{" aria-sort=descending" if label == "samples" else ""}>'
        f'<button type="button">{html.escape(label)}</button></th>'
        for i, (label, kind) in enumerate(heads)
    )
    body = "".join(
        f'<tr><td class="l">{token_html(str(row["text"]))}</td>'
        f"{_cell(row['id'])}{''.join(_cell(row.get(n)) for n in names)}</tr>"
        for row in rows
    )
    plural = noun + ("es" if noun.endswith("s") else "s")
    limit = "all kept" if len(rows) == data["of"] else f"the {len(rows):,} most frequent of {data['of']:,} kept"
    note = f"Showing {limit} {plural}. Select a heading to sort. "
    if "agree" in rows[0]:
        note += "Hit rate: the classifier is right. Agreement: it picks the nearest class mean. "
        note += "Both on the decision part; – where it has no sample."
    return (
        f'<h2>Class by class</h2><p class="note">{note}</p>'
        f'<input type="search" data-filter="classes" placeholder="find a {noun}" aria-label="find a {noun}">'
        f'<div class="scroll tall"><table id="classes" data-sort><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _facts(details: Mapping[str, Any], report: Mapping[str, float]) -> str:
    facts = {"convention": getattr(report, "convention", "ncops"), **details.get("run", {})}
    rows = "".join(
        f'<tr><td class="l">{html.escape(str(k).replace("_", " "))}</td>'
        f'<td class="l wrap">{html.escape(str(v))}</td></tr>'
        for k, v in facts.items()
        if v is not None
    )
    table = f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>How this was measured</summary>{table}</details>"


def render(report: Mapping[str, float], *, title: str | None = None, details: Mapping[str, Any] | None = None) -> str:
    """The page as text."""
    details, figure = details or {}, _Figures()
    parts = [_cards(report), _coverage(report)]
    parts.append(
        '<p class="note">The class geometry (NC1 to NC3) describes the kept classes only: read every number with this '
        "coverage. The bars are a guide, 1/(1+value) where 0 is collapsed.</p>"
    )
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in [*details.get("notes", []), *caveats(report)]]
    if not figure:
        parts.append('<p class="note">Drawn without matplotlib: pip install ncops[cli] adds the plots.</p>')
    for key, heading, text in (
        (
            "checkpoints",
            "Collapse during training",
            "Each checkpoint measured on its own; dashed: the value at full collapse.",
        ),
        (
            "layers",
            "Layer by layer",
            "Classes are the next tokens at every layer; layer 0 is the embedding. The first token of a window, an "
            "attention sink in many models, can dominate the layers in the middle. Dashed: the value at full collapse.",
        ),
    ):
        if key in details:
            curves = _trajectory(figure, details[key], key, heading, text) if figure else f"<h2>{heading}</h2>"
            parts.append(curves + _trajectory_table(details[key]))
    if figure:
        parts.append(_distributions(figure, report, details))
    parts.append(_metrics(report))
    if "classes" in details:
        parts.append(_classes(details["classes"]))
    parts.append(_facts(details, report))
    title = title or "Neural collapse report"
    run = details.get("run", {})
    subtitle = " · ".join(str(run[k]) for k in ("model_name", "data") if run.get(k)) or "measured with ncops"
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    values = {"title": html.escape(title), "subtitle": html.escape(subtitle), "body": "\n".join(p for p in parts if p)}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def write_html(
    report: Mapping[str, float],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``report`` as one HTML file; see ``ncops.report.details`` for what ``details`` may hold."""
    Path(path).write_text(render(report, title=title, details=details), encoding="utf-8")
