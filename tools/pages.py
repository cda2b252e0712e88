"""What mkdocs needs beside docs/: the pages at the root, the table of metrics and the API written out.

A hook of mkdocs and an extension of griffe, named in mkdocs.yml; nothing that it makes is kept in the repository.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from posixpath import normpath
from types import ModuleType

import griffe
from mkdocs.structure.files import File

from ncops.metrics.goals import Goals
from ncops.metrics.papers import PAPERS
from ncops.metrics.table import METRICS, NOTATION

ROOT = Path(__file__).resolve().parent.parent
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the root of the repository, and what they are called here."""
SHAPES = ((10, 64), (50_257, 768))
"""Classes and dimensions whose goals are shown."""
API = {
    "ncops": "ncops",
    "ncops.metrics": "ncops.metrics",
    "ncops.losses": "ncops.losses",
    "ncops.report": "ncops.report",
    "ncops.nn": "ncops.nn",
    "ncops.distributed": "ncops.distributed",
    "ncops.lm": "ncops.lm",
    "ncops.integrations.torchmetrics": "ncops.integrations.torchmetrics",
    "ncops.integrations.lightning": "ncops.integrations.lightning",
    "ncops.integrations.transformers": "ncops.integrations.transformers",
}
"""Names of API pages, and the modules whose names they list."""


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    for source, page in MOVED.items():
        files.append(File.generated(config, page, content=links((ROOT / source).read_text(encoding="utf-8"), ".")))
    for name, module in API.items():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name, import_module(module))))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in the table of metrics, and sends links out of docs/ to where their pages are."""
    if page.file.generated_by is None:
        markdown = links(markdown, "docs")
    return markdown.replace("<!-- metrics -->", metrics_page())


def links(markdown: str, folder: str) -> str:
    """The links of a page in that folder of the repository, as they are in the built pages; those to code are text."""

    def link(match: re.Match) -> str:
        text, target, anchor = match.groups()
        if "://" in target or not target:
            return match[0]
        path = normpath(f"{folder}/{target}")
        inside = MOVED.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return f"[{text}]({inside}{anchor})" if inside else text

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*|)\)", link, markdown)


def metrics_page() -> str:
    """A section per metric, with an anchor of its name."""
    return NOTATION + "\n\n" + "\n".join(_metrics())


def _metrics() -> Iterator[str]:
    for group, metrics in groupby(METRICS.values(), key=lambda metric: metric.group):
        yield f"## {group}\n"
        for metric in metrics:
            goals = {f"{k:,} classes, {d} dimensions": Goals(k, d)[metric.name].text for k, d in SHAPES}
            facts = {
                "formula": f"`{metric.formula}`",
                "range": metric.span,
                "goal": metric.goal,
                **{f"goal of {shape}": text for shape, text in goals.items() if text != metric.goal},
                "what moves it": metric.moved,
                "source": "; ".join(
                    f"{p.authors}, *{p.title}*, [arXiv:{p.arxiv}]({p.url})" for p in map(PAPERS.get, metric.papers)
                ),
            }
            yield f"### {metric.name}\n\n**{metric.label}.** {metric.sentence}\n\n| | |\n|---|---|"
            for fact, text in facts.items():
                if text:
                    yield f"| {fact} | {text.replace('|', '&#124;') if '`' not in text else code(text)} |"
            yield ""


def code(text: str) -> str:
    """A formula in a cell of a table."""
    return "<code>" + text.strip("`").replace("<", "&lt;").replace("|", "&#124;") + "</code>"


def api_page(title: str, module: ModuleType) -> str:
    """A page of all public names of a module, each from where it is defined."""
    parts = [f"# {title}\n"]
    for name in sorted(getattr(module, "__all__", ()), key=str.lower):
        thing = getattr(module, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            where = f"{thing.__module__}.{thing.__qualname__}"
            parts.append(f"::: {where}\n    options: {{heading: {title}.{name}}}\n")
    return "\n".join(parts)


class Roles(griffe.Extension):
    """Docstrings without the roles of reStructuredText: ``:func:`ncops.collapse` `` is code."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", obj.docstring.value)
