"""What a native build runs: by compilers that write down what they are asked for, and do nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
NOTES_ITS_TARGET = """#!/bin/sh
echo "$0 $@" >> "$COMMANDS"
case "$1" in
  --list-gpu-code) echo sm_80 sm_90 sm_100;;
  --version) echo release 13.0;;
esac
while [ $# -gt 1 ]; do
  [ "$1" = -o ] && : > "$2"
  shift
done
exit 0
"""


@pytest.fixture
def build(tmp_path):
    """Builds a copy of the sources; returns the folder, what was run by (compiler, source) and what was said."""
    tree, tools = tmp_path / "tree", tmp_path / "bin"
    for name in ("csrc", "triton_kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "ncops").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ncops/_version.py"):
        shutil.copy(ROOT / name, tree / name)
    tools.mkdir()
    (tools / "ninja").symlink_to(shutil.which("ninja") or pytest.skip("needs ninja"))

    def run(*there: str, **options: str) -> tuple[Path, dict[tuple[str, str], str], str]:
        for name in ("c++", *there):
            (tools / name).write_text(NOTES_ITS_TARGET)
            (tools / name).chmod(0o755)
        theirs = ("NCOPS_", "CUDA_", "CXX", "CC", "MAX_JOBS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | {
            "PATH": str(tools), "CXX": str(tools / "c++"), "CC": str(tools / "c++"),
            "COMMANDS": str(tmp_path / "commands"), "TORCH_DONT_CHECK_COMPILER_ABI": "1",
            "NCOPS_REQUIRE_EXT": "1", **options,
        }  # fmt: skip
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "built"]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found = {}
        for line in (tmp_path / "commands").read_text().splitlines():
            if source := re.search(r"-c (\S+)\.(cpp|cu)\b", line):
                found[Path(line.split()[0]).name, Path(source[1]).name] = line
        return tree, found, done.stderr

    return run


def test_a_family_of_kernels_is_a_unit_of_each_instruction_set(build):
    """A unit of each file took twice as long; and torch's headers, a second of each unit, are read once."""
    tree, commands, _ = build(NCOPS_ISAS="avx2,generic")
    units = {name: (tree / "build" / "isa" / f"{name}.cpp").read_text() for _, name in commands}
    included = {name: re.findall(r'#include "(.*)"', text) for name, text in units.items()}
    sources = sorted(str(path.relative_to(tree / "csrc")) for path in (tree / "csrc").rglob("*.cpp"))
    kernels = [path for path in sources if path.endswith("_cpu.cpp")]
    assert sorted(included.pop("host")) == [path for path in sources if path not in kernels]
    for isa in ("avx2", "generic"):
        of_set = {name: paths for name, paths in included.items() if name.endswith(f"_{isa}")}
        assert sorted(path for paths in of_set.values() for path in paths) == kernels
        assert len(of_set) == len({Path(path).name.split("_")[0] for path in kernels})
        assert all(f"#define NCOPS_ISA {isa}\n" in units[name] for name in of_set)
    headers = [path for path in (tree / "csrc" / "cpu").rglob("*.h") if "<torch/" in path.read_text()]
    assert not [*headers, *(path for path in kernels if "<torch/" in (tree / "csrc" / path).read_text())]


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [
        ({}, ["nvcc"], set()),
        ({}, ["nvcc", "nvidia-smi"], {"80", "90", "100"}),
        ({"NCOPS_CUDA_ARCHS": "90"}, ["nvcc"], {"90"}),
        ({"NCOPS_CUDA_ARCHS": "90"}, [], set()),
        ({"NCOPS_CUDA": "0", "NCOPS_CUDA_ARCHS": "90"}, ["nvcc", "nvidia-smi"], set()),
    ],
)
def test_cuda_is_compiled_where_it_is_asked_for_or_can_run(build, options, there, expected):
    tree, commands, said = build(*there, NCOPS_ISAS="generic", **options)
    lines = [line for (compiler, _), line in commands.items() if compiler == "nvcc"]
    assert {arch for line in lines for arch in re.findall(r"code=sm_(\d+)", line)} == expected
    assert ("NCOPS_WITH_CUDA" in (tree / "build" / "cuda" / "cuda_build.h").read_text()) == bool(expected)
    assert ("NCOPS_CUDA=1 builds them" in said) == (not options and not expected)
