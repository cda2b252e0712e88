"""ncops for AArch64 on another machine: ``python tests/arm.py [pytest arguments]``, as `make test-arm` does.

Cross-compiles the extension, and runs tests of it in an emulated Python with an AArch64 torch, all below build/arm:
Debian's packages for that architecture, unpacked; wheels for it; a copy of the sources. setup.py runs in the emulated
Python too, which starts the cross compiler as it is. Needs apt-get, dpkg-deb, aarch64-linux-gnu-g++ and qemu-aarch64.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FOLDER = ROOT / "build" / "arm"
TREE, SYSTEM, SITE = FOLDER / "tree", FOLDER / "system", FOLDER / "site"

DEBIAN = ("python3", "libgomp1", "libstdc++6")
TORCH = "torch==2.10.0"  # the oldest, and the last whose wheel for AArch64 brings no CUDA
WHEELS = """numpy safetensors jinja2 markupsafe setuptools pytest iniconfig pluggy packaging pygments
    filelock fsspec mpmath networkx sympy typing_extensions""".split()
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "ncops", "triton_kernels", "tests")

# What each instruction set runs on: the oldest that torch's wheel does (ARMv8.2), and one that multiplies bfloat16,
# without authenticated pointers and SVE, which are slow to emulate.
MACHINES = {"neon": "cortex-a76", "neon_bf16": "max,pauth=off,sve=off"}
FILES = ("tests/test_parity.py", "tests/test_across_native_parts.py")
NATIVE = "(cpu- or -cpu or cpu])"
REDUCED = {"neon": [*FILES, "-k", NATIVE], "neon_bf16": ["tests/test_parity.py", "-k", f"{NATIVE} and bfloat16"]}


def emulator() -> str:
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None or shutil.which("aarch64-linux-gnu-g++") is None:
        sys.exit("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu and qemu-user-static)")
    return found


def python(cpu: str = MACHINES["neon_bf16"]) -> list[str]:
    """The emulated Python's command."""
    return [emulator(), "-cpu", cpu, "-L", str(SYSTEM), str(SYSTEM / "usr" / "bin" / "python3")]


def unpack_system() -> None:
    """Debian's packages for AArch64, by a package list of their own: the machine's stays, and root is not needed."""
    if SYSTEM.exists():
        return
    apt, partial = FOLDER / "apt", SYSTEM.with_suffix(".partial")
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": os.devnull,
        "Dir::Cache": apt / "cache",
    }
    get = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*get, "update"], check=True, stdout=subprocess.DEVNULL)
    install = [*get, "install", "-y", "--no-install-recommends", "--download-only", *DEBIAN]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    for package in (apt / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, partial], check=True)
    partial.rename(SYSTEM)


def install_wheels() -> None:
    """torch and what it and the tests import, in the versions of this environment."""
    if SITE.exists():
        return
    ask = [*python(), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    release = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    tags = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 17)] + ["--platform=manylinux2014_aarch64"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    partial = SITE.with_suffix(".partial")
    options = ["--only-binary=:all:", *tags, "--python-version", release, "--target", partial]
    subprocess.run([*pip, *options, TORCH, *(f"{name}=={version(name)}" for name in WHEELS)], check=True)
    partial.rename(SITE)


def build() -> None:
    """The extension, by setup.py: what its sources have not changed is kept."""
    skip = shutil.ignore_patterns("__pycache__", "_C*.so")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, TREE / name, dirs_exist_ok=True, ignore=skip)
        else:
            TREE.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    compilers = {"CC": "aarch64-linux-gnu-gcc", "CXX": "aarch64-linux-gnu-g++"}
    options = {"NCOPS_ISAS": os.environ.get("NCOPS_ISAS", "neon"), "NCOPS_REQUIRE_EXT": "1", "NCOPS_CUDA": "0"}
    command = [*python(), "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, check=True, cwd=TREE, env=environment(**compilers, **options), stdout=subprocess.DEVNULL)


def environment(**more: str) -> dict[str, str]:
    """Of the emulated Python; ninja is this environment's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "", **more}


def run(arguments: list[str]) -> int:
    unpack_system()
    install_wheels()
    build()
    status = 0
    for isa, cpu in MACHINES.items():
        print(f"{isa} on an emulated {cpu}", flush=True)
        pytest = [*python(cpu), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or REDUCED[isa])]
        status |= subprocess.run(pytest, cwd=TREE, env=environment(NCOPS_CPU_ISA=isa)).returncode
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
