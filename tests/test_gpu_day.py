"""The script for a day on a GPU does here what it can: its cases on the CPU, its limits, its tables and its pack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from testing import threads

from ncops.bench.case import ON_CUDA, Case

pytest.importorskip("tools.gpu_day", reason="tools/ is part of the repository, not of the package")
from tools.gpu_day import __main__, bench, cases, ncu, pack, smoke, steps, table, tree  # noqa: E402
from tools.gpu_day.cases.data import Data  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
HERE = Data("cpu", reduced=True)


def module(name: str, *arguments) -> str:
    """The output of one of its programs, where Triton compiles and does not interpret."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON")}
    command = [sys.executable, "-m", f"tools.gpu_day.{name}", *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


# ---- smoke
@pytest.mark.parametrize("op", cases.OPS)
def test_cases_are_right_on_a_cpu(op, tmp_path):
    if smoke.backends.why_not("cpu", op, "cpu"):
        pytest.skip("no native kernels")
    with threads(1):
        assert smoke.run(op, "cpu", HERE, False, tmp_path / "rows") == 0, (tmp_path / "rows").read_text()
    assert len(table.read(tmp_path / "rows")) == len(cases.cases(op, HERE))


@pytest.mark.parametrize("op", cases.OPS)
def test_cases_are_right_in_plain_torch(op):
    with threads(1):
        rows = [smoke.check(case, "reference") for case in cases.cases(op, HERE) if case.dtype == torch.bfloat16]
    assert rows and [row for row in rows if not row["ok"]] == []


def test_reduced_sizes_keep_what_launchers_look_at():
    for size in (1, 16, 64, 250, 512, 1001, 300_000):
        (less,) = HERE.sizes(size)
        assert less % 16 == size % 16 and (less > 64) == (size > 64) and less <= size


def test_cases_reach_every_row_of_the_launch_table():
    pytest.importorskip("triton")
    from ncops.triton_kernels._launch import TABLE

    used = {tuple(line.split()) for line in module("warm", "--rows", "--reduced", "--steps", "smoke").splitlines()}
    kernels = {kernel for kernel, _ in used}
    for kernel, rows in TABLE.items():
        for kind in {kind for kind, _ in rows}:
            assert (kernel, kind) in used or (kind == "any" and kernel in kernels), (kernel, kind)


def broken(**changes):
    """A case whose result is wrong."""
    (case, *_) = cases.cases("projected_sqnorms", HERE)

    def run(*args):
        found = case.run(*args)
        if found["raw"].dtype != torch.float64:
            found["raw"][7] = changes["value"]
        return found

    return case._replace(run=run)


@pytest.mark.parametrize("value, words", [(1.0, "raw: "), (float("nan"), "raw: 1 of")])
def test_one_wrong_value_is_a_wrong_row(value, words):
    row = smoke.check(broken(value=value), "reference")
    assert not row["ok"] and words in row["why"]


def test_a_backend_that_does_not_run_is_a_wrong_row(tmp_path):
    assert smoke.run("linear_stats", "cuda", HERE, False, tmp_path / "rows") == 1
    (row,) = table.read(tmp_path / "rows")
    assert not row["ok"] and "does not run" in row["why"]


def test_ranks_may_be_off_where_classes_are_as_near_as_float32_rounds():
    (case, *_), rank = cases.cases("linear_stats", HERE), torch.arange(100)
    few, all_, far = rank.clone(), rank + 1, rank.clone()
    few[:20], far[7] = few[:20] + 2, 60

    def wrong(mine, rows=100):
        return smoke.differences(case, {"target_rank": mine[:rows]}, {"target_rank": rank[:rows]}, False)[1]

    assert wrong(few) == [] and wrong(all_) and wrong(far) and wrong(all_, 1) == [] and wrong(far, 16)


def test_an_op_that_raises_is_a_wrong_row():
    (case, *_) = cases.cases("projected_sqnorms", HERE)
    row = smoke.check(case._replace(run=lambda *args: torch.zeros(2) @ torch.zeros(3)), "reference")
    assert not row["ok"] and "RuntimeError" in row["why"]


# ---- steps and limits
@pytest.fixture
def day(tmp_path):
    return steps.Day(tmp_path / "out", total=60)


def test_a_command_ends_at_its_limit_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "GRACE", 0.5)
    code = f"""
import signal, subprocess, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(['sleep', '60'])
open({str(tmp_path / "pid")!r}, 'w').write(str(child.pid))
time.sleep(60)"""
    begin = time.monotonic()
    assert "over its limit" in steps.run([sys.executable, "-c", code], 2)
    assert time.monotonic() - begin < 20
    status, end = Path("/proc") / (tmp_path / "pid").read_text() / "stat", time.monotonic() + 20
    while status.exists() and status.read_text().split()[2] != "Z":  # killed, and gone when the kernel gets to it
        assert time.monotonic() < end
        time.sleep(0.05)


def test_statuses_of_commands():
    assert steps.run([sys.executable, "-c", "raise SystemExit(7)"], 30) == 7
    assert steps.run([sys.executable, "-c", "import os; os.abort()"], 30) == -6
    assert "did not start" in steps.run(["no-such-program"], 30)


def test_the_first_step_says_what_runs_here(day):
    pytest.importorskip("triton")
    steps.environment(day, 120)
    assert "'class_moments': (" in (day.out / "env.txt").read_text()


def test_no_step_stops_the_next_or_takes_more_than_is_left(day):
    limits = []
    day.step("bad", lambda day, limit: 1 / 0, 10, "bad.txt")
    day.step("good", lambda day, limit: limits.append(limit), 10, "good.txt")
    day.step("long", lambda day, limit: limits.append(limit), 1000, "long.txt")
    assert limits[0] == 10 and 40 < limits[1] < 60
    assert day.failures == ["bad: ZeroDivisionError: division by zero"]
    day.end = time.monotonic() + 1
    day.step("late", lambda day, limit: limits.append(limit), 10, "good.txt")
    assert len(limits) == 2 and day.failures[-1] == "late: no time left"


def test_a_process_that_dies_is_a_wrong_row(day, monkeypatch):
    ends = {"linear_stats": "os.abort()", "logit_stats": "pass", "pair_stats": "time.sleep(60)"}
    monkeypatch.setattr(cases, "jobs", lambda only: [(op, "triton", False) for op in ends])
    monkeypatch.setattr(steps, "GRACE", 0.5)
    monkeypatch.setattr(
        steps, "module", lambda name, op, *_: [sys.executable, "-c", f"import os, time; {ends[op]}"]
    )
    steps.smoke(day, 3)
    why = {row["op"]: row["why"] for row in table.read(day.out / "smoke.jsonl")}
    assert "-6" in why["linear_stats"] and "checked nothing" in why["logit_stats"] and "limit" in why["pair_stats"]
    assert day.failures == ["smoke: 3 of 3 wrong"]


def test_smoke_table_says_once_what_is_wrong_in_many_cases():
    row = {"op": "logit_stats", "backend": "cuda", "dtype": "float32", "ok": False, "worst": 1.0, "why": "no CUDA"}
    fine = row | {"backend": "triton", "case": "c", "ok": True, "worst": 1e-7}
    lines = table.smoke([row | {"case": "a"}, row | {"case": "b"}, fine]).splitlines()
    assert lines[1].split() == ["logit_stats", "cuda", "0", "of", "2"]
    assert lines[2].split() == ["logit_stats", "triton", "1", "of", "1", "1.0e-07"]
    assert lines[3:] == ["WRONG logit_stats cuda a float32 and 1 more: no CUDA"]


def test_bench_goes_on_after_the_group_in_which_a_process_died(day, monkeypatch):
    code = """
import json, os, sys
*groups, _, out = sys.argv[1:]
for group in groups:
    print(json.dumps({'group': group}), file=open(out, 'a'))
    if group == 'logit_stats':
        os.abort()"""
    monkeypatch.setattr(steps, "module", lambda name, *rest: [sys.executable, "-c", code, *rest])
    steps.bench(day, 30)
    rows = table.read(day.out / "bench.jsonl")
    assert [row["group"] for row in rows if "group" in row] == list(bench.GROUPS)
    assert [row["case"] for row in rows if "error" in row] == ["logit_stats"]


def test_the_day_says_what_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tree, "prepare", lambda: ["no pack"])
    monkeypatch.setattr(sys, "argv", ["gpu_day", "--steps", "sanitizer", "--out", str(tmp_path)])
    assert __main__.main() == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert "FAILED no pack" in summary and "sanitizer: memcheck: did not start" in summary
    assert "3 failures" in summary and len(list(tmp_path.iterdir())) <= 8


# ---- tables
def test_bench_table_sets_measurement_beside_ceiling_and_roofline():
    name, work = "linear_stats bfloat16 32x4096x128256", {"flops": 1e9, "bytes": 4e9, "paper_ms": 0.314}
    rows = [
        {"group": "ceilings"},
        {"case": "ceiling", "who": "mm bfloat16", "ms": 1.0, "mb": 0, "flops": 1e12, "bytes": 0},
        {"case": "ceiling", "who": "copy", "ms": 1.0, "mb": 0, "flops": 0, "bytes": 4e9},
        {"case": name, "dtype": "bfloat16", "who": "triton", "ms": 2.0, "host_ms": 0.7, "mb": 6.0, **work},
        {"case": name, "dtype": "bfloat16", "who": "cuda", "error": "RuntimeError: no", **work},
    ]
    lines = {tuple(line.split()[3:4]): line.split() for line in table.bench(rows).splitlines()[1:]}
    assert lines["triton",][4:] == ["2.000", "0.5", "2000", "6", "0.70", "50%", "0.314"]
    assert "RuntimeError: no" in " ".join(lines["cuda",])


def test_every_contestant_has_a_row(tmp_path, monkeypatch):
    names = [case.name for group in bench.GROUPS.values() for case in group]
    assert len(set(names)) == len(names) == len(bench.CASES)
    (case, *_) = bench.GROUPS["pair_stats"]
    small, inputs = case.at_most({"K": 48, "D": 48}), Case.inputs
    monkeypatch.setattr(Case, "inputs", lambda self, made_on: inputs(self, "cpu"))
    monkeypatch.setitem(small.bench.contestants, "eager", lambda *args: 1 / 0)
    times = {"ms": 1.0, "host_ms": 1.0, "mb": 0.0}
    bench.measure(small, lambda run: times if run() is not None else {}, tmp_path / "rows", ours_only=False)
    rows = {row["who"]: row for row in table.read(tmp_path / "rows")}
    assert list(rows) == ["triton", "triton tf32", "eager", "matmul"]
    assert rows["eager"]["error"].startswith("ZeroDivisionError")
    assert rows["matmul"]["ms"] == 1 and rows["matmul"]["paper_ms"] > 0
    assert len(table.bench(list(rows.values())).splitlines()) == 5


def test_half_a_row_is_dropped(tmp_path):
    (tmp_path / "rows").write_text('{"case": "a"}\n{"case":')
    assert table.read(tmp_path / "rows") == [{"case": "a"}]


def test_profile_table():
    head = '"ID","Kernel Name","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"'
    row = '"0","f(int)","(8, 1, 1)","S",'
    text = f'==PROF== x\n{head}\n{row}"Duration","ns","1,234"\n{row}"Else","%","1"'
    assert ncu.table(text).splitlines()[1].split() == ["f(int)", "(8,", "1,", "1)", "1,234", "ns"]


def test_every_kernel_to_be_profiled_exists():
    root = Path(__file__).resolve().parent.parent
    kernels = "".join(p.read_text() for p in [*root.glob("triton_kernels/*.py"), *root.glob("csrc/cuda/*.cuh")])
    for name in ncu.KERNELS:
        assert re.search(rf"(?:def |\b)\w*{name}\w*\(", kernels), name


def test_peers_that_are_there_are_contestants(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    (case, *_) = bench.GROUPS["linear_stats_backward"]
    assert list(bench.contestants(case)) == ["triton", "eager", "compile", "liger", "cut_cross_entropy"]
    (case, *_) = bench.GROUPS["class_scatter"]
    assert list(bench.contestants(case)) == ["triton", "triton split_halves", "cuda", "triton tf32", "eager", "matmul"]


@pytest.mark.parametrize("name", bench.GROUPS)
def test_contestants_run(name, tmp_path):
    """Ours and the peers at small sizes, but for the times; compiling is left to torch's own tests."""
    for case in bench.GROUPS[name]:
        small = case.at_most(dict.fromkeys(case.sizes, 48))
        for peer in small.names(everything=False):
            if peer not in ("compile", *ON_CUDA):
                small.bench.contestants[peer](*small.inputs("cpu"))


# ---- the pack
def test_pack_moves_a_cache_to_another_folder(tmp_path):
    kernel = tmp_path / "made" / "KEY"
    kernel.mkdir(parents=True)
    names = ("k.cubin", "k.json", "k.ptx")
    for name in names:
        (kernel / name).write_text(name)
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {name: str(kernel / name) for name in names}}))
    root, archive = tmp_path / "root", tmp_path / "root" / "gpu-day-pack" / "pack.tar.xz"
    (root / "ncops").mkdir(parents=True)
    (root / "csrc").mkdir()
    library = {tree.LIBRARY: b"library", tree.SOURCES: b"of other sources"}
    pack.write(archive, library | pack.cache_files(tmp_path / "made"))
    assert tree.prepare(root, archive) == ["the carried library was built from other sources than this tree's csrc"]
    here = archive.parent / "open" / "triton" / "KEY"
    group = json.loads((here / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(here / name) for name in names[:2]}
    assert (root / "ncops" / tree.LIBRARY).read_bytes() == b"library"


@pytest.mark.slow
def test_what_is_compiled_without_a_gpu_is_found_again_elsewhere(tmp_path):
    pytest.importorskip("triton")
    arguments = ("--steps", "bench", "--only", "logit_stats", "--reduced", "--jobs", 2, "--part", 0, "--cache")
    module("warm", *arguments, tmp_path / "made")
    made = {path.name for path in (tmp_path / "made").glob("*/*.cubin")}
    pack.write(tmp_path / "pack", pack.cache_files(tmp_path / "made"))
    tree.unpack(tmp_path / "pack", tmp_path / "elsewhere")
    there = tmp_path / "elsewhere" / "triton"
    before = {path: path.stat().st_mtime_ns for path in there.glob("*/*.cubin")}
    assert made and len(before) >= len(made)
    module("warm", *arguments, there)
    assert {path: path.stat().st_mtime_ns for path in there.glob("*/*.cubin")} == before
