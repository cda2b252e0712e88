"""The three ways to install ncops, each into an empty environment, and what the wheels hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch, time
start = time.process_time()  # not of the wall: other tests run beside
import ncops
seconds = time.process_time() - start
x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
moments = ncops.class_moments(x, torch.tensor([0, 0, 1]), 2)
print(json.dumps({
    "seconds": seconds, "file": ncops.__file__, "sums": moments.sums.tolist(), "version": ncops.__version__,
    "backend": ncops.backends.choose("class_moments", "cpu"),
    "heavy": sorted({"jinja2", "matplotlib", "typer", "transformers", "triton", "rich"} & set(sys.modules)),
}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the tree without its build products, except compiled objects, which save their compilation."""
    copy = tmp_path_factory.mktemp("source") / "ncops"
    ignore = shutil.ignore_patterns(".venv", ".git", "*.so", "*.egg-info", "dist", "__pycache__", "build", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignore)
    return copy


def environment(folder: Path) -> Path:
    """An empty virtual environment that sees the packages of the running one, but not ncops."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    target = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A .pth file adds a folder without reading the .pth files in it, so an editable ncops there stays unseen.
    (target / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def probe(python: Path, cwd: Path) -> dict:
    import json

    return json.loads(run(python, "-c", PROBE, cwd=cwd).splitlines()[-1])


def pip(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd, **environment)


def wheel_of(source: Path, folder: Path, *options: str, **environment: str) -> Path:
    pip("wheel", "--no-deps", *options, "-w", folder, source, cwd=folder, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, python: Path, cwd: Path) -> None:
    pip("--python", python, "install", "--no-deps", "--no-index", wheel, cwd=cwd)


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def quick_build(tmp_path_factory) -> dict[str, str]:
    """The environment of a native build that compiles in less time: hardly optimised."""
    compiler = tmp_path_factory.mktemp("compiler") / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O1\n')
    compiler.chmod(0o755)
    return {
        "CXX": str(compiler), "NCOPS_REQUIRE_EXT": "1", "NCOPS_CUDA": "0", "NCOPS_ISAS": "generic", "MAX_JOBS": "2",
    }  # fmt: skip


def test_native_wheel(source, tmp_path, quick_build):
    wheel = wheel_of(source, tmp_path, "--no-build-isolation", **quick_build)
    assert "cp310-abi3" in wheel.name
    content = names(wheel)
    assert "ncops/_C.abi3.so" in content and "ncops/py.typed" in content
    page = {str(path.relative_to(source)) for path in source.glob("ncops/report/page/*.*")}
    assert "ncops/report/page/base.html" in page and page <= content
    assert {name.split("/")[0] for name in content} <= {"ncops", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    python = environment(tmp_path / "venv")
    install(wheel, python, tmp_path)
    seen = probe(python, tmp_path)
    assert seen["backend"] == "cpu" and seen["sums"] == [[4.0, 0.0], [0.0, 2.0]]
    assert str(tmp_path) in seen["file"]
    assert seen["heavy"] == [] and seen["seconds"] < 1.0


def test_isolated_wheel_is_pure_and_runs_on_the_reference(source, tmp_path):
    wheel = wheel_of(source, tmp_path)
    assert wheel.name.endswith("py3-none-any.whl")
    assert not any(name.endswith((".so", ".cpp", ".h")) for name in names(wheel))
    python = environment(tmp_path / "venv")
    install(wheel, python, tmp_path)
    seen = probe(python, tmp_path)
    assert seen["backend"] == "reference" and seen["sums"] == [[4.0, 0.0], [0.0, 2.0]]


def test_editable_install(source, tmp_path, quick_build):
    python = environment(tmp_path / "venv")
    pip(
        "--python", python, "install", "--no-deps", "--no-build-isolation", "--editable", source,
        cwd=tmp_path, **quick_build,
    )  # fmt: skip
    seen = probe(python, tmp_path)
    assert seen["backend"] == "cpu" and str(source) in seen["file"]


def test_sdist_is_complete(source, tmp_path):
    import tarfile

    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    inside = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames() if "/" in name}
    for path in [*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.h"), *ROOT.glob("ncops/**/*.py"), ROOT / "LICENSE"]:
        assert str(path.relative_to(ROOT)) in inside
    assert not any(name.endswith(".so") for name in inside)


def test_a_broken_extension_is_one_line_and_the_reference(source, tmp_path):
    package = tmp_path / "site" / "ncops"
    shutil.copytree(source / "ncops", package, ignore=shutil.ignore_patterns("*.so"))
    (package / "_C.abi3.so").write_bytes(b"not a library")
    code = "import ncops; print(ncops.backends.why_not('cpu', 'class_moments', 'cpu'))"
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert "_C.abi3.so did not load" in out and len(out.splitlines()) == 1


def test_extension_sees_torch_only_through_the_stable_abi():
    from ncops.backends import native

    library = native.find()
    if library is None:
        pytest.skip("the native extension is not built")
    symbols = run("nm", "-D", "--undefined-only", "-C", library, cwd=ROOT)
    foreign = [line for line in symbols.splitlines() if "at::" in line or "c10::" in line]
    assert foreign == []
