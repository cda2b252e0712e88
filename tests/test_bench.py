"""The benchmark: contestants compute the same thing, contestants alternate, verdicts, memory, CSV, JSON, command."""

from __future__ import annotations

import csv
import dataclasses
import json
import time

import pytest
import torch

from ncops import cli
from ncops.bench import OPS, accuracy, limits, memory, plan, records, runner, table, timing, verdict
from ncops.bench.case import COMPILE, EAGER, OURS, Case, Goal, labels
from ncops.cli import commands

TINY = {"N": 40, "D": 8, "V": 13, "C": 5, "K": 9, "R": 4}
BENCHES = [bench for op in OPS for bench in plan.benches(op)]


@pytest.fixture(autouse=True)
def _no_compilation(monkeypatch):
    """torch.compile costs seconds per contestant and is not what is tested here."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    limits._register.cache_clear()
    monkeypatch.setattr(limits, "REGISTER_SECONDS", 0.0)
    monkeypatch.setattr(limits, "READ_ELEMENTS", 1 << 17)
    limits._read.cache_clear()
    yield
    limits._register.cache_clear()
    limits._read.cache_clear()


def tiny(bench, **changes) -> Case:
    return Case(bench, "tiny", {k: TINY[k] for k in bench.base}, **changes)


def tensors(outputs):
    return [torch.as_tensor(t).detach() for t in outputs]


@pytest.mark.parametrize("bench", BENCHES, ids=lambda b: f"{b.op}-{b.mode}")
def test_every_contestant_runs_and_the_full_ones_agree(bench):
    case = tiny(bench)
    inputs = case.inputs()
    names = case.names(everything=True)
    assert names[:3] == [OURS, EAGER, COMPILE] and case.versus in names
    wanted = tensors(bench.contestants[EAGER](*inputs))
    for name in names:
        found = bench.contestants[name](*inputs)
        if name in (OURS, COMPILE, "one thread") or "linear_cross_entropy" in name:
            for mine, theirs in zip(tensors(found), wanted, strict=True):
                torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-4, atol=2e-4)
    assert case.flops > 0 and case.bytes > 0


@pytest.mark.parametrize("op", ["linear_stats", "logit_stats", "class_moments", "pair_stats"])
def test_numpy_peers_agree(op):
    (bench, *_) = plan.benches(op)
    inputs = tiny(bench, data=bench.data[-1]).inputs()
    for mine, theirs in zip(bench.contestants["numpy"](*inputs), bench.contestants[EAGER](*inputs), strict=True):
        if theirs.is_floating_point():
            torch.testing.assert_close(torch.as_tensor(mine).double(), theirs.double(), rtol=2e-4, atol=2e-4)


def test_goals_of_every_promised_row_are_in_the_quick_run():
    goals = {case.title: case.goal for case in plan.quick() if case.goal != Goal()}
    assert goals.pop("linear_loss large V") == Goal(megabytes=100)
    assert {title: goal.limit for title, goal in goals.items()} == {
        "linear_stats float32": 0.85, "linear_stats bfloat16": 0.80, "linear_stats forward + backward": 0.75,
        "linear_stats 10 classes": None, "linear_stats 100 classes": 0.70, "linear_stats 1 row": 0.70,
        "linear_stats 32 rows": 0.70, "linear_loss float32": 0.80, "linear_loss bfloat16": 0.70,
        "linear_loss 2048 features": 0.80, "linear_topk the 20 largest": 0.80, "logit_stats float32": 0.75,
        "linear_divergence two heads": pytest.approx(0.74, abs=0.001), "class_moments 1000 classes": 0.60,
        "class_moments 50257 classes, Zipf": 0.35, "class_scatter 1000 classes": 0.80, "pair_stats cosine": 0.80,
        "pair_stats log distance": 0.80, "pair_stats angle": 0.80, "pair_stats cosine by class": 0.80,
        "nearest_class_mean 1000 classes": 0.80, "nearest_neighbors 10,000 points": 0.60,
        "projected_sqnorms full rank": 0.80,
    }  # fmt: skip
    fused = (EAGER, COMPILE, "linear_cross_entropy")
    assert {title: tuple(goal.beats) for title, goal in goals.items() if goal.beats} == {
        "linear_stats 10 classes": ("matmul",), "linear_loss float32": fused, "linear_loss bfloat16": fused,
        "linear_loss 2048 features": fused,
    }  # fmt: skip
    titles = [(c.title, c.bench.mode) for c in plan.full()]
    assert len(titles) == len(set(titles)) and len(titles) > 100


def test_inputs_are_the_same_every_time_and_labels_follow_zipf():
    case = tiny(plan.bench("class_moments", "forward"), data="zipf")
    for a, b in zip(case.inputs(), case.inputs(), strict=True):
        assert torch.equal(a, b)
    counts = torch.bincount(labels(torch.Generator().manual_seed(0), 60000, 50, "zipf"), minlength=50)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2) and counts.min() > 0


def test_contestants_alternate_and_ratios_are_paired():
    order = []

    def contestant(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    samples = timing.race({"a": contestant("a", 0.003), "b": contestant("b", 0.009)}, budget=0, least=4)
    assert order == ["a", "b"] + ["a", "b", "b", "a"] * 2
    assert [len(s) for s in samples.values()] == [4, 4]
    assert 1.5 < timing.ratio(samples["b"], samples["a"]).p50 < 3.5
    assert timing.ratio([2, 20, 6], [1, 10, 2]) == timing.Quantiles(2, 2, pytest.approx(2.6))


def test_a_peer_that_fails_is_left_out():
    def broken():
        raise MemoryError("too large")

    told = []
    samples = timing.race({"x": lambda: None, "y": broken}, 0, failed=lambda name, e: told.append((name, str(e))))
    assert list(samples) == ["x"] and told == [("y", "too large")]
    with pytest.raises(MemoryError):
        timing.race({"y": broken}, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_limit_is_of_what_is_multiplied(monkeypatch, dtype):
    """Only some kernels multiply bfloat16 as it is; float16 none."""
    asked = []
    monkeypatch.setattr(runner, "limits", lambda dtype, device: asked.append((dtype, device)) or {})
    cases = [tiny(plan.bench(op, "forward"), dtype=dtype) for op in ("linear_stats", "class_scatter")]
    for case in cases:
        runner._speed(case, [OURS], 0.0, runner.Result(case, 1), print)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert asked == [(dtype if dtype == torch.bfloat16 else wide, "cpu"), (wide, "cpu")]
    assert dataclasses.replace(cases[1], device="cuda").products == dtype, "a GPU's limit is a product of that dtype"


def result(**changes) -> runner.Result:
    case = tiny(plan.bench("linear_stats", "forward"), goal=Goal(0.5, (EAGER, COMPILE, "matmul"), 10))
    found = runner.Result(case, threads=2, share=timing.Quantiles(0.6, 0.55, 0.65), bound="register")
    found.milliseconds = {OURS: timing.Quantiles(2.0, 1.9, 2.4)}
    found.speedup = {EAGER: 5.0, COMPILE: 2.0, "matmul": 1.25}
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_verdicts():
    met = result(megabytes={OURS: 9.0}, errors={OURS: 2e-7, EAGER: 1e-7})
    assert verdict.words(verdict.checks(met)) == "met"
    assert verdict.goals(verdict.speed_checks(met)) == "50% limit, 1x eager, 1x compile, 1x matmul"
    missed = result(speedup={EAGER: 0.5, COMPILE: 3.0}, megabytes={OURS: 15.0}, errors={OURS: 1e-2, EAGER: 1e-3})
    words = verdict.words(verdict.checks(missed))
    assert words.startswith("missed by 2.00x (eager), 1.50x (memory), 5.00x (error)")
    assert verdict.words(verdict.checks(result(share=timing.Quantiles(0.4, 0.4, 0.6)))) == "missed by 1.25x (limit)"
    assert verdict.words([]) == ""
    assert verdict.words(verdict.accuracy_checks(result(errors={OURS: float("nan"), EAGER: 1e-7}))) != "met"


def test_collapsed_logits_show_what_the_eager_expression_loses():
    case = next(c for c in plan.quick(["linear_stats"]) if c.data == "collapsed")
    errors = accuracy.errors(case)
    assert errors[OURS] < 1e-3 and errors[EAGER] > 0.5


def test_memory_is_what_the_contestant_allocates():
    case = Case(plan.bench("linear_stats", "forward"), "memory", {"N": 512, "D": 16, "V": 20000})
    ours, eager = memory.measure(case, OURS), memory.measure(case, EAGER)
    if ours is None:
        pytest.skip("this system does not tell a process's peak memory")
    logits = 4 * 512 * 20000 / 1e6
    assert 2 * logits * 0.9 < eager < 4 * logits and ours < logits / 2


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda case, name: 1.5)
    monkeypatch.setattr(runner, "QUICK_SECONDS", 0.0)
    cases = [tiny(b, goal=Goal(0.5, (EAGER, COMPILE)), measures=("speed", "memory", "accuracy")) for b in BENCHES]
    cases += [
        Case(BENCHES[0], f"growth {n}", {**tiny(BENCHES[0]).sizes, "N": n}, axis="N", contestants=(OURS, EAGER))
        for n in (20, 40)
    ]
    return runner.run(cases, progress=False)


def test_csv_has_the_fields_columns_and_newer_rows_win(measured, tmp_path):
    machine, results = measured
    path = tmp_path / records.NAME
    rows = list(records.rows(machine, results))
    for _ in range(2):
        records.write_csv(path, rows)
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == records.COLUMNS and len(found) == len(rows)
    row = next(r for r in found if r["kernel_provider"] == OURS and r["metric_name"] == "speed")
    assert row["kernel_name"] == "linear_stats" and row["kernel_operation_mode"] == "forward"
    assert row["metric_unit"] == "ms" and (row["x_name"], row["x_value"]) == ("N", "40")
    assert float(row["y_value_20"]) <= float(row["y_value_50"]) <= float(row["y_value_80"])
    assert json.loads(row["extra_benchmark_config_str"])["V"] == TINY["V"] and row["gpu_name"] == machine["device"]
    assert row["cpu_isa"] == machine["isa"] and row["torch_version"] == torch.__version__
    share = next(r for r in found if r["metric_name"] == records.SHARE)
    assert share["kernel_provider"] == OURS and float(share["y_value_50"]) == results[0].share.p50
    records.write_csv(path, [{**one, "cpu_isa": "another"} for one in rows])
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * len(rows), "figures of two instruction sets stand side by side"


def test_document_is_json_and_tables_and_plots_come_out(measured, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from ncops.bench.plots import save_plots

    machine, results = measured
    text = json.dumps(records.document(machine, results))
    entry = json.loads(text)["results"][0]
    assert entry["op"] == "linear_stats" and entry["speedup"][EAGER] > 0 and entry["verdict"]
    table.show(machine, results)
    out = capsys.readouterr().out
    for word in ("limit share", "vs compile", "verdict", "linear_stats tiny", "matmul", f"Speed with {machine['isa']}"):
        assert word in out
    assert "growth" not in out
    paths = save_plots(results, tmp_path)
    assert {"speedup.png", "growth_linear_stats_forward.png"} <= {p.name for p in paths}
    assert all(p.stat().st_size > 1000 for p in paths)


def test_a_gpu_has_its_roofline(tmp_path):
    pytest.importorskip("matplotlib")
    from ncops.bench.plots import save_plots

    limits_of_gpu = {"matmul": timing.Quantiles(8e14, 8e14, 8e14), "copy": timing.Quantiles(4e12, 4e12, 4e12)}
    paths = save_plots([result(bound="matmul", limits=limits_of_gpu)], tmp_path)
    assert {path.name for path in paths} == {"roofline.png", "speedup.png"}


def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(plan, "quick", lambda ops: [tiny(b) for op in ops for b in plan.benches(op)])
    threads = torch.get_num_threads()
    arguments = ["bench", "--ops", "class_scatter, pair_stats", "--threads", "1", "--json", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["op"] for r in found["results"]] == ["class_scatter"] * 2 + ["pair_stats"] * 2  # forward, full
    assert found["machine"]["threads"] == 1 and torch.get_num_threads() == threads
    assert (tmp_path / records.NAME).exists() and (tmp_path / "speedup.png").exists()
    assert cli.main(["bench", "--ops", "nope"]) == 2
    assert "--ops: expected some of linear_stats" in capsys.readouterr().err


def test_a_run_that_ends_early_keeps_what_it_measured(monkeypatch, tmp_path):
    cases = [tiny(plan.benches("logit_stats")[0]), tiny(plan.benches("class_moments")[0])]
    monkeypatch.setattr(plan, "quick", lambda ops: cases)
    measure = runner._measure

    def measure_one(case, *more):
        if case is cases[1]:
            raise MemoryError("no more")
        return measure(case, *more)

    monkeypatch.setattr(runner, "_measure", measure_one)
    with pytest.raises(MemoryError, match="no more"):
        commands.bench(ops=None, output=tmp_path)
    with open(tmp_path / records.NAME, newline="") as file:
        assert {row["kernel_name"] for row in csv.DictReader(file)} == {"logit_stats"}
    assert [path.name for path in tmp_path.iterdir()] == [records.NAME]


def test_cases_of_a_gpu(monkeypatch):
    """Where there is no GPU: what is asked for, what it is held against, and the code around it on the CPU."""
    cases = plan.cuda()
    assert {case.bench.op for case in cases} == {*OPS}
    assert all(case.device == "cuda" for case in cases)
    assert all(case.goal == Goal() for case in cases), "nothing is promised that nobody measured"
    for case in cases:
        assert not {"numpy", "one thread", "neural_collapse"} & set(case.names(everything=True))
    full = plan.cuda(["linear_stats"], everything=True, device="cuda:1")
    assert {case.bench.op for case in full} == {"linear_stats"} and full[0].device == "cuda:1"
    monkeypatch.setattr(limits, "MATRIX", 64)
    found = {"matmul": limits.matmul(torch.float32, "cpu"), "copy": limits.copy("cpu")}
    assert found["matmul"].work == 2 * 64**3 and found["copy"].work == 2 * 4 * limits.READ_ELEMENTS
    for limit in found.values():
        limit.run()
    limits.matmul.cache_clear()
    limits.copy.cache_clear()


def test_waits_for_the_device_around_each_group_of_calls():
    told = []
    slow = {"a": lambda: (told.append("run"), time.sleep(0.003))}
    timing.race(slow, budget=0, least=2, wait=lambda: told.append("wait"))
    assert told == ["run", "wait"] + ["wait", "run", "wait"] * 2


def test_device_is_checked(capsys):
    if not torch.cuda.is_available():
        assert cli.main(["bench", "--device", "cuda"]) == 2
        told = capsys.readouterr().err
        assert "--device: 'cuda' is not a device here: " in told
        assert "Torch not compiled with CUDA" in told or "Found no NVIDIA driver" in told
    assert cli.main(["bench", "--device", "nonsense"]) == 2
