"""The Python of every page in docs/ runs as it stands, top to bottom, and what the pages link to exists."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))

# Packages that a page's examples need beyond those of every install.
NEEDS: dict[str, tuple[str, ...]] = {
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
