"""The page of a lens: a heat map of some tokens, curves over layers, by position and by frequency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..lens import QUANTITIES, by_layer, heading, notes
from ..plots.curves import Axis, Line, draw
from . import fill, token_html, token_text
from .figures import Figure, drawn, figure

ACROSS = 16
"""Tokens beside each other in a heat map, as many as a sheet of paper takes; more tokens make more maps."""
LEVELS = 10
COLOURS = {"entropy": "e", "kl": "k", "logprob": "l"}
"""What a heat map may show, and how the classes of its cells begin."""
LOG = ("kl", "median_rank")
"""What is drawn on a logarithmic axis where it spans decades."""


def render_lens(lens: Mapping[str, Any], *, title: str) -> str:
    """The page as text; ``lens`` is what lens.json holds."""
    run, example = lens["run"], lens["example"]
    points, columns = lens["layers"], by_layer(lens)
    return fill(
        "lens.html",
        title=title,
        subtitle=" · ".join(str(run[name]) for name in ("model_name", "data") if run.get(name)),
        notes=notes(lens),
        colours={
            name: {"letter": letter, "heading": heading(name), "ends": _told_ends(example[name])}
            for name, letter in COLOURS.items()
        },
        levels=range(LEVELS),
        maps=list(_maps(example)),
        figures=drawn(_over_all(points, columns)),
        positions=drawn(_in_bins(points, lens["by_position"], "position", "positions")),
        frequencies=drawn(_in_bins(points, lens["by_frequency"], "frequency", "tokens seen")),
        layers=points,
        columns={heading(name): values for name, values in columns.items()},
        facts=run,
    )


# -- heat maps --------------------------------------------------------------------------------------------------------


def _known(rows: Sequence[Sequence[float | None]]) -> list[float]:
    return sorted(value for row in rows for value in row if value is not None)


def _ends(rows: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    """What the colours go from and to: nine tenths of the numbers, for a few far ones would make all others pale."""
    found = _known(rows)
    last = len(found) - 1
    return (found[round(0.05 * last)], found[round(0.95 * last)]) if found else (0.0, 0.0)


def _told_ends(rows: Sequence[Sequence[float | None]]) -> tuple[str, str]:
    """The ends in words: with a sign where numbers lie beyond."""
    found, (low, high) = _known(rows) or [0.0], _ends(rows)
    return f"{'≤ ' if found[0] < low else ''}{nats(low)}", f"{'≥ ' if found[-1] > high else ''}{nats(high)}"


def nats(value: float | None) -> str:
    """With two digits behind the point, as many as a person reads in a map; lens.json has all of them."""
    return "–" if value is None else f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _level(value: float | None, ends: tuple[float, float]) -> int:
    """0, pale, for the least to ``LEVELS - 1``, strong, for the largest."""
    if value is None or ends[1] <= ends[0]:
        return 0
    return min(max(int(LEVELS * (value - ends[0]) / (ends[1] - ends[0])), 0), LEVELS - 1)


def _maps(example: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One heat map after the other: its tokens, the true next ones, and its rows, the last layer first."""
    count = len(example["tokens"])
    ends = {name: _ends(example[name]) for name in COLOURS}
    for start in range(0, count, ACROSS):
        places = range(start, min(start + ACROSS, count))
        yield {
            "places": places,
            "tokens": [example["tokens"][t] for t in places],
            "targets": [example["targets"][t] for t in places],
            "rows": [
                (layer, [_cell(example, n, t, ends) for t in places])
                for n, layer in reversed(list(enumerate(example["layers"])))
            ],
        }


def _cell(example: Mapping[str, Any], n: int, t: int, ends: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    levels = [f"{letter}{_level(example[name][n][t], ends[name])}" for name, letter in COLOURS.items()]
    return {
        "text": example["top"][n][t][0],
        "css": " ".join([*levels, *(["hit"] if example["hit"][n][t] else [])]),
        "told": told(example, n, t),
    }


def told(example: Mapping[str, Any], n: int, t: int) -> str:
    """All that is known of one cell, in lines."""
    value = {name: nats(example[name][n][t]) for name in COLOURS}
    target, rank = example["targets"][t], example["rank"][n][t]
    lines = [f"layer {example['layers'][n]}, position {t}, after {token_text(example['tokens'][t])}"]
    if target is not None:
        lines.append(f"next is {token_text(target)}: rank {rank:,}, log-probability {value['logprob']}")
    agrees = "agrees" if example["agree"][n][t] else "disagrees"
    lines.append(f"entropy {value['entropy']}, KL {value['kl']} nats, {agrees} with the last layer")
    shares = ["–" if one is None else f"{100 * math.exp(one):.3g} %" for one in example["top_logprob"][n][t]]
    lines.append("   ".join(f"{token_text(a)} {b}" for a, b in zip(example["top"][n][t], shares, strict=True)))
    return "\n".join(lines)


def notebook(lens: Mapping[str, Any], title: str) -> str:
    """The first heat map, coloured by entropy, as HTML with styles of its own, for where there is no sheet."""
    example = lens["example"]
    ends = _ends(example["entropy"])
    count = min(len(example["tokens"]), ACROSS)
    head = "".join(f"<th>{token_html(text or '')}</th>" for text in example["targets"][:count])
    lines = [f"<table><caption>{escape(title)}: first choices, coloured by entropy</caption>"]
    lines.append(f"<thead><tr><th>next</th>{head}</tr></thead><tbody>")
    for n, layer in reversed(list(enumerate(example["layers"]))):
        cells = "".join(
            f'<td title="{escape(told(example, n, t))}" style="background:rgba(58,91,217,'
            f'{0.06 * _level(example["entropy"][n][t], ends):.2f})">{token_html(example["top"][n][t][0])}</td>'
            for t in range(count)
        )
        lines.append(f"<tr><th>{layer}</th>{cells}</tr>")
    foot = "".join(f"<th>{token_html(text)}</th>" for text in example["tokens"][:count])
    lines.append(f"</tbody><tfoot><tr><th>read</th>{foot}</tr></tfoot></table>")
    return "\n".join([*lines, *(f"<p>{escape(note)}</p>" for note in notes(lens))])


# -- curves -----------------------------------------------------------------------------------------------------------


def _over_all(layers: Sequence[int], columns: Mapping[str, Sequence[float | None]]) -> Iterator[Figure]:
    axis = Axis("layer", layers)
    for name, values in columns.items():
        way = QUANTITIES[name].sentence
        yield figure(f"all-{name}", heading(name), draw, axis, [Line("", values)], way=way, log=name in LOG)


def _in_bins(layers: Sequence[int], binned: Mapping[str, Any], key: str, noun: str) -> Iterator[Figure]:
    """One line per bin, from pale to strong."""
    axis = Axis("layer", layers)
    names = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in binned["bins"]]
    for name in COLOURS:
        lines = [Line(label, values) for label, values in zip(names, binned["means"][name], strict=True)]
        look = {"way": f"Lines: {noun}.", "ordered": True, "log": name in LOG}
        yield figure(f"{key}-{name}", heading(name), draw, axis, lines, **look)
