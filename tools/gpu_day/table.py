"""The tables of the day, from the rows that its steps left behind."""

from __future__ import annotations

import json
from pathlib import Path


def read(path: Path) -> list[dict]:
    """The rows of a file; a last one that a killed process left half written is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def smoke(rows: list[dict]) -> str:
    """How many cases were right by op and backend, the worst error, and what is WRONG with every reason."""
    lines = [f"{'op':28}{'backend':14}{'right':>11}{'worst error':>14}"]
    for op, backend in sorted({(row["op"], row["backend"]) for row in rows}):
        those = [row for row in rows if (row["op"], row["backend"]) == (op, backend)]
        errors = [row["worst"] for row in those if row["ok"]]
        worst = f"{max(errors):.1e}" if errors else ""
        lines.append(f"{op:28}{backend:14}{f'{len(errors)} of {len(those)}':>11}{worst:>14}")
    wrong: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if not row["ok"]:
            case = f"{row['case']} {row.get('dtype', '')}".strip()
            wrong.setdefault((row["op"], row["backend"], row["why"]), []).append(case)
    for (op, backend, why), those in wrong.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        lines.append(f"WRONG {op} {backend} {those[0]}{more}: {why[:200]}")
    return "\n".join(lines)


def _ceilings(rows: list[dict]) -> dict[str, float]:
    """Flop/s of products by kind, and byte/s of a copy, as this card was measured."""
    found = {}
    for row in rows:
        if row.get("case") == "ceiling" and row["ms"] > 0:
            found[row["who"].removeprefix("mm ")] = (row["flops"] or row["bytes"]) / row["ms"] * 1e3
    return found


def bench(rows: list[dict]) -> str:
    """Every contestant beside the ceilings and the roofline.

    ``host`` is how many milliseconds pass until a call returns, ``share`` the part of the time that the card's own
    products, or its copies, would take for the same work, ``paper`` the least time by the data sheet of an H100.
    """
    rates = _ceilings(rows)
    head = f"{'case':50}{'who':18}{'ms':>9}{'TFLOP/s':>9}{'GB/s':>7}{'MB':>8}{'host':>7}{'share':>7}"
    lines = [f"{head}{'paper':>9}"]
    for row in rows:
        if "case" not in row:
            continue
        start = f"{row['case']:50}{row['who']:18}"
        if "error" in row:
            lines.append(f"{start} {row['error'][:120]}")
            continue
        ms = row["ms"] or float("nan")
        kind = "tf32" if "tf32" in row["who"] else row.get("dtype", "")
        least = max(row["flops"] / rates.get(kind, float("inf")), row["bytes"] / rates.get("copy", float("inf"))) * 1e3
        share = f"{least / ms:.0%}" if least > 0 else ""
        paper = f"{row['paper_ms']:.3f}" if "paper_ms" in row else ""
        lines.append(
            f"{start}{ms:9.3f}{row['flops'] / ms / 1e9:9.1f}{row['bytes'] / ms / 1e6:7.0f}{row['mb']:8.0f}"
            f"{row.get('host_ms', 0):7.2f}{share:>7}{paper:>9}"
        )
    return "\n".join(lines)
