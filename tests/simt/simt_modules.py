"""Compiles ``<op>_simt.cpp`` with g++ and loads it; what is built is kept in build/simt until a source changes."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "simt"

# Undefined shifts, overflows, misaligned accesses; -fsanitize-recover lets one process report them all. What the checks
# of addresses find too is left out, and these are calls: together half the time to compile.
ASAN = (
    "-O1 -fsanitize=address,undefined -fno-sanitize=vptr,null,object-size,pointer-overflow "
    "-fsanitize-recover=address,undefined --param asan-instrumentation-with-call-threshold=0"
)
MODES = {
    "plain": "-O2",
    "asan": ASAN,
    "tsan": "-O1 -fsanitize=thread",
    "ucontext": "-O1 -DSIMT_UCONTEXT",  # fibers as on machines that are not x86-64
}
# Hidden and not unique: each module keeps the harness's state to itself, although several are loaded into one process.
# Kernels read floats as float4 and halves as uint4: nvcc allows it.
FLAGS = "-std=c++20 -g1 -fPIC -fno-omit-frame-pointer -fno-strict-aliasing -fvisibility=hidden -fno-gnu-unique"
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas"


class CompileError(Exception):
    """What g++ said."""


def _machine_flags() -> str:
    """Fused multiply-add and half conversions in hardware where this machine has them: the library ones are slow."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return " ".join(f"-m{isa}" for isa in ("fma", "f16c") if isa in words)


def _compiler(*flags: str) -> list[str]:
    # Errors and reports name files from the root of the project.
    paths = [f"-ffile-prefix-map={ROOT}/=", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    return [os.environ.get("CXX", "g++"), *shlex.split(" ".join([FLAGS, WARNINGS, *flags])), *paths]


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "missing"


def _is_current(stamp: Path, target: Path, command: list[str]) -> bool:
    if not (stamp.exists() and target.exists()):
        return False
    built = json.loads(stamp.read_text())
    return built["command"] == command and all(_digest(path) == digest for path, digest in built["sources"].items())


def _compile(command: list[str], target: Path, *more_sources: Path) -> Path:
    """Runs the command with ``-o target`` unless the command and all sources are as they were."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp, depfile, fresh = (target.with_name(target.name + suffix) for suffix in (".json", ".d", ".new"))
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another pytest may be building the same
        if _is_current(stamp, target, command):
            return target
        full = [*command, "-MMD", "-MF", str(depfile), "-o", str(fresh)]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(full, capture_output=True, text=True, cwd=ROOT, env=environment)
        if done.returncode:
            raise CompileError(f"{shlex.join(full)}\n{done.stderr}")
        words = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        sources = {path: _digest(path) for path in (*words, *map(str, more_sources)) if not path.startswith("/usr/")}
        os.replace(fresh, target)
        stamp.write_text(json.dumps({"command": command, "sources": sources}))
    return target


def _python_side() -> Path:
    headers = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    system = [word for path in headers for word in ("-isystem", path)]
    return _compile([*_compiler("-O1 -c"), *system, str(HERE / "python.cpp")], BUILD / "python.o")


def tsan_hook() -> Path:
    """Preloaded before libtsan."""
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", str(HERE / "tsan_hook.cpp")]
    return _compile(command, BUILD / "tsan_hook.so")


def build(op: str, mode: str = "plain") -> Path:
    """The shared library of an op, compiled if any file that it includes, or the command, has changed."""
    glue = _python_side()
    command = [*_compiler("-shared", MODES[mode], _machine_flags()), str(HERE / f"{op}_simt.cpp"), str(glue)]
    return _compile(command, BUILD / mode / f"{op}.so", glue)


def build_all(modes: list[str]) -> None:
    """Every op in the given modes, two at a time. What does not compile is left to the tests of its op to say."""

    def attempt(job: tuple[str, str]) -> None:
        try:
            build(*job)
        except CompileError:
            pass

    _python_side()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attempt, [(op, mode) for mode in modes for op in ops()]))


def load(op: str, mode: str = "plain") -> ModuleType:
    """The module of an op. Sanitized modes load only where the sanitizer's library is preloaded (sanitized.py)."""
    # The last part names the init function of python.cpp; pybind11 keeps one module per whole name.
    spec = importlib.util.spec_from_file_location(f"{op}.simt_kernels", build(op, mode))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ops() -> list[str]:
    """Every op that has a binding file."""
    return sorted(path.name.removesuffix("_simt.cpp") for path in HERE.glob("*_simt.cpp"))
