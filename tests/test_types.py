"""The package as a type checker sees it: installed, with its py.typed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import ncops
from ncops import names

HERE = Path(__file__).parent
mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


# What no signature of ours names, and takes two thirds of the time to read.
UNREAD = "[mypy]\n[mypy-transformers.*,peft.*,huggingface_hub.*,sympy.*,torch._inductor.*,torch._dynamo.*]\n"


def check(script: Path, cwd: Path, **environment: str) -> str:
    """What mypy says, strictly, about a script; nothing where all is well."""
    (cwd / "mypy.ini").write_text(UNREAD + "follow_imports = skip\n")
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--config-file=mypy.ini"]
    options.append(f"--cache-dir={cwd / 'cache'}")
    command, there = [sys.executable, "-m", "mypy", *options, str(script)], {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=there, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A site folder with the package alone, found by path as an installed one is; not through the editable's hook."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(ncops.__file__).parent, site / "ncops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return site


@pytest.mark.slow
@mypy
def test_a_user_script_is_checked(installed, tmp_path):
    shutil.copy(HERE / "typed_user.py", tmp_path)
    assert check(tmp_path / "typed_user.py", tmp_path, MYPYPATH=str(installed)) == ""


def test_names_are_those_of_the_tables():
    from ncops import backends, conventions
    from ncops.ops import columns, pair_stats  # noqa: F401
    from ncops.stats import batch

    assert get_args(names.Preset) == tuple(conventions.PRESETS)
    assert get_args(names.Backend) == backends.BACKENDS and get_args(names.Nonfinite) == batch.NONFINITE
    assert get_args(names.Loss) == columns.LOSSES and get_args(names.Reduction) == columns.REDUCTIONS


def test_a_stateful_method_keeps_its_signature():
    import inspect

    assert list(inspect.signature(ncops.ClassStatistics.update).parameters) == ["self", "x", "labels"]
