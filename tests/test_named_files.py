"""Files that comments, docstrings and documents name exist: a reader who follows a name must arrive."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "ncops", "triton_kernels", "tools", "tests", "bench", "docs")
KINDS = ("py", "h", "cuh", "cu", "cpp", "md")
NAME = re.compile(rf"(?<![\w./<>*{{-])((?:[\w.-]+/)*[\w-]+\.(?:{'|'.join(KINDS)}))(?![\w(])")
ELSEWHERE = {"cuda_bf16.h", "cuda_fp16.h", "cuda/scale.cuh", "analyze.py"}  # the CUDA toolkit's; an example; others'


def sources() -> list[Path]:
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix[1:] in KINDS and p.is_file()]
    return [*found, *ROOT.glob("*.md"), ROOT / "setup.py", ROOT / "Makefile"]


def text_of(path: Path) -> str:
    """What is not code: comments of C++ and of Python, docstrings (strings in triple quotes), all of a document."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path.suffix == ".py" or path.name == "Makefile":
        strings = re.findall(r'"""(.*?)"""', text, re.S) if path.suffix == ".py" else []
        return "\n".join([*strings, *re.findall(r"(?:^|\s)#(.*)$", text, re.M)])
    return "\n".join(re.findall(r"//(.*)$", text, re.M))


def missing(text: str, beside: Path, known: set[str]) -> list[str]:
    """The names of files in ``text`` that are no file's path, or the end of one."""
    names = {match[1] for match in NAME.finditer(text)} - ELSEWHERE
    return sorted(n for n in names if not (beside / n).exists() and not any(f"/{k}".endswith(f"/{n}") for k in known))


@pytest.fixture(scope="module")
def known() -> set[str]:
    return {str(p.relative_to(ROOT)) for p in sources()}


def test_named_files_exist(known):
    lost = {str(p.relative_to(ROOT)): missing(text_of(p), p.parent, known) for p in sources()}
    assert not {path: names for path, names in lost.items() if names}


def test_a_missing_one_is_found(known):
    assert missing("see csrc/tensors.h and `tensors.h`, not tensors.hh or a.py(x)", ROOT, known) == []
    assert missing("see csrc/tensor.h, tests/test_gone.py", ROOT, known) == ["csrc/tensor.h", "tests/test_gone.py"]
