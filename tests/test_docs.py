"""The Python of every page in docs/ runs as it stands, top to bottom, and what the pages link to exists."""

from __future__ import annotations

import html
import re
import warnings
from pathlib import Path

import pytest

import ncops
from ncops.metrics.table import METRICS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))

# Packages that a page's examples need beyond those of every install.
NEEDS: dict[str, tuple[str, ...]] = {
    "examples.md": ("transformers", "accelerate", "tensorboard", "matplotlib"),
    "integrations.md": ("torchmetrics", "lightning", "transformers", "accelerate", "matplotlib"),
    "lens.md": ("transformers",),
}


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """``(line, code)`` of each block fenced as python."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page share their names; each page starts afresh, in an empty folder."""
    for module in NEEDS.get(page.name, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {"__name__": "__main__"}
    for line, code in python_blocks(page):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about small data and few workers
            exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_pages_with_needs_exist():
    assert set(NEEDS) <= {page.name for page in PAGES}


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ +- (?:\w+: )?(\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.M)
    assert len(set(listed)) == len(listed) and {page.name for page in PAGES} <= set(listed)


def test_the_citation_is_of_this_version():
    text = (DOCS.parent / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.M)[1] == ncops.__version__
    assert re.search(r"^license: (.*)$", text, re.M)[1] == "MIT"


@pytest.fixture(scope="module")
def written():
    """What `make docs` adds to the pages."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    from tools import pages

    return pages


def test_metrics_are_written_out(written):
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", written.metrics_page(), re.S | re.M))
    assert list(sections) == list(METRICS)
    for name, section in sections.items():
        told = html.unescape(section)
        for fact in (METRICS[name].formula, METRICS[name].span, METRICS[name].goal, METRICS[name].moved):
            assert fact in told, (name, fact)
        for row in section.splitlines():
            assert row.count("|") == (3 if row.startswith("|") else 0), row  # a bar in a formula would be a column
    assert "1.324 = least for K > D + 1" in sections["nc2_etf_error"] and "0 = collapsed" in sections["nc2_etf_error"]


@pytest.mark.parametrize(
    ("folder", "link", "built"),
    [
        (".", "[a](docs/gpu.md#x)", "[a](gpu.md#x)"),
        (".", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs", "[a](../README.md#ops)", "[a](index.md#ops)"),
        ("docs", "[a](reports.md)", "[a](reports.md)"),
        ("docs", "[`a`](../ncops/stats/classes.py)", "`a`"),
        (
            "docs",
            "[a](#here) [b](https://arxiv.org/abs/2008.08186)",
            "[a](#here) [b](https://arxiv.org/abs/2008.08186)",
        ),
    ],
)
def test_links_of_built_pages(written, folder, link, built):
    assert written.links(link, folder) == built
