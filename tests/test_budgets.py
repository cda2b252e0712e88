"""Every kernel compiles for sm_80, sm_90 and sm_100, spills few registers or none, and stays in its budget.

`make test-oldest-triton` runs this file with the oldest Triton: every kernel compiles, fits, and spills what is known.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("triton")
sys.path.insert(0, str(ROOT / "tools"))
budgets = pytest.importorskip("budgets", reason="tools/ is part of the repository, not of the package")
import resources  # noqa: E402


@pytest.fixture(scope="module")
def run() -> dict:
    """Compiled in a process of its own: here Triton's kernels may belong to the interpreter."""
    if not (ROOT / "triton_kernels").is_dir():
        pytest.skip("needs the sources")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "tools" / "budgets.py"), "--json", "--changed"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def found(run) -> dict[str, dict[int, dict]]:
    figures = {name: {int(c): use for c, use in uses.items()} for name, uses in run["found"].items()}
    same = budgets.of_same_compilers(figures)
    if not same:
        pytest.skip(f"the budgets are those of {budgets.COMPILERS}")
    return same


@pytest.mark.slow
def test_kernels_stay_in_their_budgets(found):
    lines = budgets.exceeded(found, json.loads(budgets.BUDGETS.read_text()), budgets.known_spills())
    assert not lines, "\n".join(lines)


@pytest.mark.slow
def test_budgets_name_kernels_that_exist(run, found):
    there = {*json.loads(budgets.BUDGETS.read_text()), *json.loads(budgets.SPILLS.read_text())}
    kinds = {".cu: " in name for name in found}
    there = {name for name in there if (".cu: " in name) in kinds}
    assert not there - {*run["names"]}, "run tools/budgets.py --write"


def test_products_use_tensor_cores():
    """All but those of float32 that nobody allowed tf32 for, and that run over the rows of both factors."""
    products = "linear_stats", "nearest[", "pairs[", "pair_factors", "row_products", "projected_", "class_scatter["
    there = json.loads(budgets.BUDGETS.read_text())
    without = {name for name, uses in there.items() if not all(use["tensor_cores"] for use in uses.values())}
    without = {name for name in without if name.startswith(products) and ".cu: " not in name}
    exact = ("class_scatter", "projected_sqnorms.basis")
    assert without == {f"{name}[{kind}]" for name in exact for kind in ("fp32", "bf16")}


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "capability", "expected"),
    [
        (256, 56, 8704, 90, 0.5),  # the toolkit's calculator: four blocks, limited by registers
        (128, 32, 0, 80, 1.0),
        (256, 255, 0, 80, 0.125),
        (128, 32, 99 << 10, 80, 0.0625),  # one block of 100 KB
        (128, 32, 99 << 10, 90, 0.125),
        (32, 16, 0, 100, 0.5),  # 32 blocks at most
    ],
)
def test_occupancy(threads, registers, shared, capability, expected):
    use = resources.Resources(threads, registers, shared, 0, 0, 0, 0)
    assert use.occupancy(capability) == expected


def test_what_exceeds_a_budget():
    use = resources.Resources(128, 100, 4096, 0, 0, 4, 2).record()
    budget = {"kernel": {"90": use}}
    assert budgets.exceeded({"kernel": {90: use}}, budget, None) == []
    for change, words in (
        ({"registers": 111}, "111 registers"),
        ({"shared": 4100}, "4100 bytes of shared"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"spills": 2}, "2 instructions spill registers, 0 may"),
        ({"tensor_cores": 0}, "tensor cores are no longer used"),
        ({"async_copies": 0}, "async copies are no longer used"),
    ):
        (line,) = budgets.exceeded({"kernel": {90: use | change}}, budget, None)
        assert words in line
    (line,) = budgets.exceeded({"other": {90: use}}, budget, None)
    assert "no budget" in line
    larger = {"kernel": {90: use | {"registers": 108}}}
    (line,) = budgets.exceeded(larger, {"kernel": {"90": use | {"shared": 0}}}, None)
    assert "shared" in line  # eight registers more are a compiler's affair


def test_what_the_oldest_triton_may_spill():
    use = resources.Resources(128, 100, 4096, 0, 0, 4, 2).record()
    budget, found = {"kernel": {"90": use}}, {"kernel": {90: use | {"spills": 9, "registers": 255, "stack": 8}}}
    assert budgets.exceeded(found, budget, {"kernel": {"90": 9}}) == []
    (line,) = budgets.exceeded(found, budget, {"kernel": {"80": 9}})
    assert "9 instructions spill registers, 0 may" in line
    (line,) = budgets.exceeded({"kernel": {90: use | {"spills": 99}}}, budget, {"kernel": {"90": 99}})
    assert f"{budgets.MOST_SPILLS} may" in line  # whatever was written down
    (line,) = budgets.exceeded({"kernel": {90: use | {"tensor_cores": 0}}}, budget, {})
    assert "tensor cores" in line


def test_the_oldest_triton_is_the_one_that_the_package_asks_for():
    wanted = re.search(r'"triton>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert budgets.OLDEST_TRITON == f"{wanted}.0"
    assert f"OLDEST_TRITON := {budgets.OLDEST_TRITON}\n" in (ROOT / "Makefile").read_text()


def test_objects_of_the_build_are_read_where_they_are_of_todays_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "ROOT", tmp_path)
    folder, source = tmp_path / "build" / "cuda", tmp_path / "op_cuda.cu"
    nothing = None, budgets.CAPABILITIES
    folder.mkdir(parents=True)
    source.write_text("")
    made = folder / "op_cuda.o"
    for path, text in ((made, ""), (made.with_suffix(".log"), "\n"), (folder / "flags.txt", "")):
        assert budgets.built(source, []) == nothing
        path.write_text(text)
    assert budgets.built(source, []) == nothing  # of no capability
    (folder / "flags.txt").write_text(" ".join(f"-gencode=arch=compute_{c},code=sm_{c}" for c in budgets.CAPABILITIES))
    header = tmp_path / "header.h"
    header.write_text("")
    for path, seconds in ((source, 1), (header, 2), (made, 3)):
        os.utime(path, (seconds, seconds))
    assert budgets.built(source, [header]) == (made, budgets.CAPABILITIES)
    os.utime(header, (3, 3))
    assert budgets.built(source, [header]) == nothing
    os.utime(header, (2, 2))
    (folder / "flags.txt").write_text("-gencode=arch=compute_90,code=sm_90")
    assert budgets.built(source, [header]) == (made, (90,))
    made.with_suffix(".log").write_text("warning #177-D: variable was declared but never referenced")
    assert budgets.built(source, [header]) == nothing


def test_only_what_has_changed_is_compiled(monkeypatch):
    """And one in some of the others; the compiled ones of another release of Triton are no proof."""
    jobs = [(f"kernel{i}", capability, None) for i in range(64) for capability in (80, 90)]
    now = {name: "same" for name, *_ in jobs}
    monkeypatch.setattr(budgets, "fingerprints", lambda _: now)
    monkeypatch.setattr(budgets, "known_fingerprints", lambda: dict(now, kernel7="other") | {"gone": "same"})
    left = budgets.changed(jobs)
    assert {("kernel7", 80, None), ("kernel7", 90, None)} <= {*left} and 2 < len(left) < 32
    monkeypatch.setattr(budgets, "known_fingerprints", dict)
    assert budgets.changed(jobs) == jobs


FINGERPRINTS = """
import json, sys
sys.path[:0] = [".", "tools"]
import launches
from ncops.triton_kernels import _logit_state, linear_topk
def of(**options):
    data = json.dumps({"options": {"extern_libs": [["libdevice", "/a/path"]], **options}})
    return launches.fingerprint(launches.Launch("ncops.triton_kernels.linear_topk", "_sums", data))
def after(function, source):
    function._unsafe_update_src(source)
    linear_topk._sums.hash = None
    return of()
first, callee = of(), _logit_state.log1p
print(json.dumps({
    "again": of() == first, "launched otherwise": of(num_warps=8) == first,
    "its own source": after(linear_topk._sums, linear_topk._sums.src.replace("float64", "float32", 1)) == first,
    "a callee": after(callee, callee.src.replace("return", "return -", 1)) == first,
}))
"""


def test_what_a_fingerprint_depends_on():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", FINGERPRINTS]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    same = json.loads(result.stdout)
    assert same == {"again": True, "launched otherwise": False, "its own source": False, "a callee": False}


def test_partial_writes(tmp_path, monkeypatch):
    """Rows of other kernels, and of a compiler that did not run, stay; those of kernels that are gone do not."""
    monkeypatch.setattr(budgets, "BUDGETS", tmp_path / "budgets.json")
    old, new = {"registers": 1}, {"registers": 2}
    kernels = ("pairs[fp32]", "pairs[gone]", "nearest[fp32]", "pairs.cu: kernel")

    def after(found, only):
        budgets.write({name: {90: old} for name in kernels}, "")
        budgets.write({name: {90: new} for name in found}, only)
        written = json.loads(budgets.BUDGETS.read_text())
        return {name for name, uses in written.items() if uses["90"] == new}, written.keys()

    assert after(["pairs[fp32]"], "pairs") == ({"pairs[fp32]"}, set(kernels) - {"pairs[gone]"})
    assert after(["nearest[fp32]"], "") == ({"nearest[fp32]"}, {"nearest[fp32]", "pairs.cu: kernel"})
    assert after(["pairs.cu: other"], "") == ({"pairs.cu: other"}, {"pairs.cu: other", *kernels[:3]})


def test_partial_writes_of_spills(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "SPILLS", tmp_path / "spills.json")
    budgets.write_spills({"pairs[fp32]": {90: {"spills": 4}}, "nearest[fp32]": {80: {"spills": 2}}}, "")
    budgets.write_spills({"pairs[fp32]": {80: {"spills": 0}}, "pairs.cu: kernel": {90: {"spills": 1}}}, "pairs")
    assert json.loads(budgets.SPILLS.read_text()) == {"nearest[fp32]": {"80": 2}}
