"""The command line: help, info, measure, one-line errors, JSON that stays JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy_metrics
import pytest
import torch
from safetensors.torch import save_file

import ncops
from ncops import cli
from ncops.cli import info
from ncops.stats.arrays import BIAS, WEIGHT, Arrays


def data(n=600, dim=6, classes=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    centres = 3 * rng.standard_normal((classes, dim))
    x = (centres[y] + rng.standard_normal((n, dim))).astype(dtype)
    return (
        x,
        y,
        (centres + rng.standard_normal((classes, dim))).astype(dtype),
        rng.standard_normal(classes).astype(dtype),
    )


def run(capsys, *arguments, status=0):
    found = cli.main(list(map(str, arguments)))
    out = capsys.readouterr()
    assert found == status, out.err
    return out


def error(capsys, *arguments) -> str:
    out = run(capsys, *arguments, status=2)
    assert out.out == "" and out.err.count("\n") == 1 and "Traceback" not in out.err
    return out.err


def wanted(x, y, weight, bias, xv, yv, min_count=1):
    geometry = numpy_metrics.class_geometry(x, y, len(weight), min_count)
    decisions = numpy_metrics.decision_metrics(xv, yv, weight, bias, geometry)
    return {
        **numpy_metrics.geometry_metrics(geometry, weight),
        **{k: v for k, v in decisions.items() if np.isscalar(v)},
    }


def assert_close(found, values, rtol=1e-9):
    for name, value in values.items():
        assert found[name] == pytest.approx(value, rel=rtol, abs=rtol), name


def test_help_reads_well(capsys):
    for arguments in ((), ("--help",)):
        out = run(capsys, *arguments).out
        for command in ("info", "measure", "lm", "demo"):
            assert f"  {command} " in out
    for command in ("info", "measure", "lm", "demo"):
        assert "--json" in run(capsys, command, "--help").out


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "ncops", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ncops {ncops.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "ncops", "measure"], capture_output=True, text=True)
    assert done.returncode == 2 and "Missing argument" in done.stderr and done.stderr.count("\n") == 1


AS_COMMAND = "import sys; sys.argv = ['ncops', *sys.argv[1:]]; {}; from ncops.cli import main; sys.exit(main())"
"""What the installed command runs, with something before it."""


def command(before: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", AS_COMMAND.format(before), *map(str, arguments)], stderr=subprocess.PIPE, text=True,
        **{"stdout": subprocess.PIPE, **options},
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("--help",), ("measure", "--help"), ("--version",), ("bogus",)])
def test_help_needs_no_torch(arguments):
    """Neither by the name of the command nor by ``python -m ncops``."""
    done = command("sys.modules['torch'] = sys.modules['numpy'] = None", *arguments)
    assert done.returncode == (2 if arguments == ("bogus",) else 0) and "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ncops", *arguments], capture_output=True, text=True
    )  # fmt: skip
    assert not re.search(r"\| +(torch|numpy|matplotlib)$", done.stderr, re.M)


def test_every_other_import_registers_the_ops():
    code = "import ncops, sys, torch; torch.ops.ncops.class_moments.default; assert 'linear_stats' in ncops.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(ncops.__all__) <= set(dir(ncops))


def test_ctrl_c_while_torch_is_imported():
    before = (
        "import importlib.abc; "
        "hook = type('Hook', (importlib.abc.MetaPathFinder,), {'find_spec': lambda self, name, path, target=None: "
        "(_ for _ in ()).throw(KeyboardInterrupt) if name == 'torch' else None}); sys.meta_path.insert(0, hook())"
    )
    done = command(before, "info")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ncops: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    x, y, *_ = data()
    np.savez(tmp_path / "f.npz", features=x, labels=y)
    for arguments in (["measure", tmp_path / "f.npz", "--json"], ["info", "--json"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = command("0", *arguments, stdout=full)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    done = command("0", "measure", tmp_path / "f.npz", "--html", "/dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_info(capsys):
    facts = json.loads(run(capsys, "info", "--json").out)
    assert facts["torch"] == torch.__version__ and "PyTorch version" in facts["torch_env"]
    for op in ("class_moments", "linear_stats", "pair_stats"):
        assert facts["ops"][op]["cpu"]["runs"] in ("cpu", "reference")
    assert facts["native"]["loaded"] or facts["native"]["reason"]


def test_info_says_each_reason_once_and_names_the_instruction_set(capsys, monkeypatch):
    facts = info.collect(torch_env=False)
    if facts["native"]["loaded"]:
        assert facts["native"]["instruction_set"] == torch.ops.ncops_C.cpu_isa()
        info.show(facts)
        assert f"CPU instruction set: {torch.ops.ncops_C.cpu_isa()}\n" in capsys.readouterr().out
    for devices in facts["ops"].values():
        devices["cpu"]["why_not"] = {"cpu": "there is none"}
    facts["ops"]["pair_stats"]["cuda"]["why_not"] = {"triton": "too old"}
    info.show(facts)
    out = capsys.readouterr().out
    assert out.count("there is none") == 1 and "cpu is off for every op: there is none\n" in out
    assert "triton is off for pair_stats: too old\n" in out


def test_info_knows_every_extra():
    project = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    found = {line.partition(" =")[0]: re.findall(r'"([\w-]+)', line) for line in section.splitlines() if line}
    assert {extra: list(modules) for extra, modules in info.EXTRAS.items()} | {"dev": found["dev"]} == found


def test_the_oldest_typer_is_the_one_that_the_package_asks_for():
    """`make test-oldest-typer` runs these tests with it."""
    root = Path(__file__).resolve().parent.parent
    wanted = re.search(r'"typer>=([\d.]+)"', (root / "pyproject.toml").read_text())[1]
    assert f"OLDEST_TYPER := {wanted}.0\n" in (root / "Makefile").read_text()


def test_info_tells_what_is_forced(capsys, monkeypatch):
    from ncops.cli import info

    monkeypatch.setenv("NCOPS_BACKEND", "reference")
    facts = info.collect(torch_env=False)
    assert facts["forced_backend"] == "reference" and facts["ops"]["linear_stats"]["cpu"]["runs"] == "reference"
    info.show(facts)
    assert "linear_stats" in capsys.readouterr().out
    monkeypatch.setenv("NCOPS_BACKEND", "cuda")
    entry = info.collect(torch_env=False)["ops"]["linear_stats"]["cpu"]
    assert entry["runs"] is None and "cannot run" in entry["problem"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_measure_agrees_with_numpy(tmp_path, capsys, kind):
    x, y, weight, bias = data()
    arrays = {"features": x[:500], "labels": y[:500], "val_features": x[500:], "val_labels": y[500:]}
    head = {"weight": weight, "bias": bias}
    if kind == "npz":
        np.savez(tmp_path / "f.npz", **arrays)
        np.savez(tmp_path / "h.npz", **head)
    else:
        for name, content in (("f", arrays), ("h", head)):
            save_file({k: torch.from_numpy(v.copy()) for k, v in content.items()}, tmp_path / f"{name}.safetensors")
    out = run(
        capsys, "measure", tmp_path / f"f.{kind}", "--classifier", tmp_path / f"h.{kind}", "--batch", 99, "--json"
    )  # the last batch of the held-out rows is one row
    page = json.loads(out.out)
    assert_close(page["metrics"], wanted(x[:500], y[:500], weight, bias, x[500:], y[500:]))
    assert page["coverage"]["samples"] == 500 and page["coverage"]["decision_samples"] == 100
    assert page["notes"] == [] and page["run"]["decisions_on"] == "held-out data"


def test_measure_short_names_and_everything_in_one_file(tmp_path, capsys):
    x, y, weight, bias = data()
    np.savez(tmp_path / "f.npz", x=x, y=y.astype(np.int32), W=weight, b=bias)
    page = json.loads(run(capsys, "measure", tmp_path / "f.npz", "--json").out)
    assert_close(page["metrics"], wanted(x, y, weight, bias, x, y))
    assert "training data itself" in page["notes"][0] and page["run"]["decisions_on"] == "training data"


def test_measure_keeps_classes_with_enough_rows(tmp_path, capsys):
    x, y, weight, bias = data()
    keep = (y != 2) | (np.cumsum(y == 2) <= 7)  # seven rows of one class
    x, y = x[keep], y[keep]
    np.savez(tmp_path / "f.npz", x=x, y=y, W=weight, b=bias)
    for least, kept in ((7, len(weight)), (8, len(weight) - 1)):
        page = json.loads(run(capsys, "measure", tmp_path / "f.npz", "--min-count", least, "--json").out)
        assert page["coverage"]["classes_kept"] == kept and page["coverage"]["min_count"] == least
        assert_close(page["metrics"], wanted(x, y, weight, bias, x, y, least))


def test_arrays_are_found_by_the_first_usual_name(tmp_path):
    np.savez(tmp_path / "f.npz", W=np.zeros((2, 2)), weight=np.zeros((3, 2)))
    arrays = Arrays(tmp_path / "f.npz")
    assert arrays.find(None, WEIGHT, "--weight-key") == "weight" and arrays.find("W", WEIGHT, "--weight-key") == "W"
    assert arrays.find(None, BIAS, "--bias-key") is None


def test_measure_without_a_classifier(tmp_path, capsys):
    x, y, _, _ = data()
    np.savez(tmp_path / "f.npz", acts=x, ids=y)
    out = run(capsys, "measure", tmp_path / "f.npz", "--features-key", "acts", "--labels-key", "ids", "--json")
    page = json.loads(out.out)
    geometry = numpy_metrics.class_geometry(x, y, 5)
    assert_close(page["metrics"], numpy_metrics.geometry_metrics(geometry))
    assert page["metrics"]["accuracy"] is None and "--classifier" in page["notes"][0]
    assert "decisions_on" not in page["run"]


def test_measure_half_features_and_convention(tmp_path, capsys):
    x, y, weight, bias = (torch.from_numpy(a) for a in data())
    save_file({"features": x.bfloat16(), "labels": y, "weight": weight, "bias": bias}, tmp_path / "f.safetensors")
    out = run(capsys, "measure", tmp_path / "f.safetensors", "--convention", "papyan", "--json")
    page = json.loads(out.out)
    assert page["convention"] == "papyan" and page["run"]["dtype"] == "bfloat16" and page["metrics"]["accuracy"] > 0.5


def test_measure_writes_files_and_a_plain_table(tmp_path, capsys):
    x, y, weight, bias = data()
    np.savez(tmp_path / "f.npz", x=x, y=y, weight=weight, bias=bias)
    folder = tmp_path / "new" / "folder"
    out = run(capsys, "measure", tmp_path / "f.npz", "-o", folder, "--html", tmp_path / "page.html")
    assert "nc1_quotient" in out.out and "classes kept" in out.out and "\x1b" not in out.out
    assert json.loads((folder / "report.json").read_text())["coverage"]["samples"] == 600
    assert "<svg" in (tmp_path / "page.html").read_text()


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_measure_never_unpickles(tmp_path, capsys):
    np.savez(tmp_path / "f.npz", features=np.array([Payload()], dtype=object), labels=np.array([0]))
    assert "without pickle" in error(capsys, "measure", tmp_path / "f.npz")
    (tmp_path / "g.npz").write_bytes(b"\x80\x04K\x01.")
    assert "not a readable .npz" in error(capsys, "measure", tmp_path / "g.npz")


@pytest.mark.parametrize(
    ("arrays", "extra", "message"),
    [
        ({"features": np.zeros((4, 2))}, [], "no labels: expected an array named labels or y, got features"),
        (
            {"features": np.zeros((4, 2)), "labels": np.zeros(3, int)},
            [],
            "expected features (N, D) and labels (N), got (4, 2) and (3,)",
        ),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4)}, [], "labels: expected integers, got float64"),
        ({"features": np.zeros((4, 2)), "labels": np.array([0, 1, 7, 0])}, ["--num-classes", "3"], "7"),
        ({"features": np.zeros((4, 2)), "labels": np.full(4, -100)}, [], "names no class"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, ["--labels-key", "nope"], "--labels-key"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int), "weight": np.zeros((3, 5))}, [], "weight"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, ["--html", "/nowhere/at/all.html"], "--html"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, ["--classifier", "nope.npz"], "no file"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, ["--min-count", "0"], "--min-count"),
        ({"features": np.zeros((4, 2)), "labels": np.zeros(4, int)}, ["--convention", "odd"], "--convention"),
    ],
)
def test_measure_says_what_is_wrong(tmp_path, capsys, arrays, extra, message):
    np.savez(tmp_path / "f.npz", **arrays)
    assert message in error(capsys, "measure", tmp_path / "f.npz", *extra)


def test_other_bad_usage(tmp_path, capsys):
    (tmp_path / "f.pt").write_bytes(b"x")
    (tmp_path / "f.safetensors").write_bytes(b"x" * 40)
    assert "expected a .safetensors or .npz file" in error(capsys, "measure", tmp_path / "f.pt")
    assert "not a readable .safetensors" in error(capsys, "measure", tmp_path / "f.safetensors")
    assert "No such command" in error(capsys, "bogus")
    assert "No such option" in error(capsys, "info", "--bogus")
    assert "Missing argument" in error(capsys, "lm")
    (tmp_path / "config.json").write_text("{}")
    assert "no file" in error(capsys, "lm", tmp_path, "--text", tmp_path / "none.txt")
    (tmp_path / "t.txt").write_text("text")
    assert "holds neither config.json nor a .gguf" in error(capsys, "lm", tmp_path / "..", "--text", tmp_path / "t.txt")
    assert "not looked up" in error(capsys, "lm", "some/name", "--text", tmp_path / "t.txt")
    assert "cannot be made" in error(capsys, "demo", "--model", "digits", "-o", tmp_path / "t.txt")


@pytest.mark.parametrize("command", ("info", "measure"))
def test_a_wrong_switch_is_one_line(tmp_path, capsys, monkeypatch, command):
    x, y, _, _ = data()
    np.savez(tmp_path / "f.npz", features=x, labels=y)
    arguments = (command, tmp_path / "f.npz") if command == "measure" else (command,)
    monkeypatch.setenv("NCOPS_BACKEND", "gpu")
    assert "NCOPS_BACKEND: expected one of" in error(capsys, *arguments)
    monkeypatch.setenv("NCOPS_BACKEND", "cuda")
    if command == "measure":
        assert "backend 'cuda' cannot run" in error(capsys, *arguments)


def test_text_takes_many_files():
    assert cli.spread_text(["lm", "M", "--text", "a", "b", "--json"]) == [
        "lm",
        "M",
        "--text",
        "a",
        "--text",
        "b",
        "--json",
    ]
    assert cli.spread_text(["lm", "M", "--window", "3", "--text", "a"]) == ["lm", "M", "--window", "3", "--text", "a"]
    spread = cli.spread_text(["lm", "M", "--text", "-", "b", "--held-out", "c", "d", "--json", "e"])
    assert " ".join(spread) == "lm M --text - --text b --held-out c --held-out d --json e"


def test_missing_cli_extra_is_one_line(capsys, monkeypatch):
    for name in ("application", "commands", "models", "options"):
        monkeypatch.delitem(sys.modules, f"ncops.cli.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert "pip install 'ncops[cli]'" in error(capsys, "info")


def test_measure_skips_or_refuses_rows_that_are_not_finite(tmp_path, capsys):
    x, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    x[7, 2] = np.nan
    np.savez(tmp_path / "f.npz", features=x, labels=y)
    skipped = json.loads(run(capsys, "measure", tmp_path / "f.npz", "--nonfinite", "skip", "--json").out)
    assert skipped["coverage"]["skipped_rows"] == 1 and skipped["metrics"]["nc1_pinv"] > 0
    refused = run(capsys, "measure", tmp_path / "f.npz", "--nonfinite", "raise", status=2)
    assert "first row 7" in refused.err
