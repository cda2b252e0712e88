"""An op that is missing from a list is never run there, and nothing else says so: every list names every op."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_compile
import test_forward_mode
from op_cases import CASES

from ncops import backends, bench
from ncops.bench import gpu
from ncops.cli import info
from ncops.ops.op import DEFINED

ROOT = Path(__file__).resolve().parent.parent
DIFFERENTIABLE = {name.removesuffix("_backward") for name in DEFINED if name.endswith("_backward")}
# The reference's on every backend: k terms a row; what is dense of linear_topk's is linear_stats_backward.
PLAIN_GRADIENTS = {"linear_topk", "nearest_neighbors"}
UPDATES = {"accumulate_class_moments_"}  # measured with class_moments, whose file it lies in


def missing(expected, found) -> set[str]:
    return set(expected) - set(found)


def test_backends_of_the_compiled_kernels():
    registered: dict[str, set[str]] = {"CPU": set(), "CUDA": set()}
    for path in (ROOT / "csrc").glob("*.cpp"):
        for key, body in re.findall(r"LIBRARY_IMPL\(ncops_C, (CPU|CUDA), m\) (\{.*?\n?\})", path.read_text(), re.S):
            registered[key] |= set(re.findall(r'm\.impl\("(\w+)"', body))
    assert {*info.OPS, *(f"{name}_backward" for name in DIFFERENTIABLE - PLAIN_GRADIENTS)} <= registered["CPU"]
    assert {name for name in registered["CUDA"] if name in info.OPS} == set(backends.CUDA_OPS)


def test_triton_kernels():
    pytest.importorskip("triton")
    gradients = (f"{name}_backward" for name in DIFFERENTIABLE - PLAIN_GRADIENTS)
    assert not [name for name in (*info.OPS, *gradients) if backends._no_triton(name)]
    assert all(backends._no_triton(f"{name}_backward") for name in PLAIN_GRADIENTS)


def test_cases_of_tests():
    assert not missing(info.OPS, (case.op for case in CASES))
    assert not missing(DIFFERENTIABLE, (case.op for case in CASES if case.gradient))
    assert not missing(info.OPS, (call.op for call in test_compile.CALLS))
    assert not missing(DIFFERENTIABLE, test_forward_mode.CALLS)


def test_benchmarks():
    assert not missing(info.OPS, {*bench.OPS, *UPDATES})
    assert not missing(info.OPS, {*(case.bench.op for case in gpu.CASES), *UPDATES})


def test_production_shapes():
    pytest.importorskip("triton")
    from tools import launches
    from tools.gpu_day import cases

    assert not missing(info.OPS, {*cases.OPS, *UPDATES})
    assert not missing(DIFFERENTIABLE, (name.removesuffix("_backward") for name in cases.OPS))
    assert launched() and not missing(launched(), launches.NAMES)


def launched() -> set[str]:
    """The kernels that Triton launches, ``kernel[grid](...)``, by file."""
    found = set()
    for path in (ROOT / "triton_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                names = [n.id for n in ast.walk(node.func.value) if isinstance(n, ast.Name)]
                found |= {name for name in names if name in JITTED}
    return {JITTED[name] for name in found}


JITTED = {
    name: f"{path.stem}.{name}"
    for path in (ROOT / "triton_kernels").glob("*.py")
    for name in re.findall(r"^@triton\.jit(?:\(.*\))?\n(?:@.*\n)*def (\w+)\(", path.read_text(), re.M)
}


def test_kernels_use_no_containers():
    """The linker would share a function of theirs that was compiled for a new machine with an old one."""
    files = [*(ROOT / "csrc" / "cpu").glob("*_cpu.cpp"), *(ROOT / "csrc" / "cpu").rglob("*.h")]
    used = re.compile(r"std::(vector|string|map|set|unordered_\w+|deque|function|shared_ptr)\b")
    bad = {f"{path.name}: {found[0]}" for path in files for found in used.finditer(path.read_text())}
    assert len(files) > 30 and not bad, bad


def test_a_second_import_is_refused_in_one_line():
    """torch takes the definition of an op once in a process."""
    code = """
import sys, ncops
for name in [name for name in sys.modules if name.partition(".")[0] == "ncops"]:
    del sys.modules[name]
import ncops
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: ncops: expected one import in a process, got another")
