"""Builds ncops: a pure-Python wheel where torch or a compiler is missing, else with the native extension ``ncops._C``.

NCOPS_REQUIRE_EXT=1 turns a failed or skipped native build into an error; NCOPS_REQUIRE_EXT=0 asks for the pure wheel.
"""

import os
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
WANTED = os.environ.get("NCOPS_REQUIRE_EXT", "")
TORCH_ABI = "0x020a000000000000"  # torch 2.10, the oldest release this library runs on
PYTHON_ABI = "0x030A0000"  # CPython 3.10
ISAS = ("avx512", "avx2", "generic") if platform.machine().lower() in ("x86_64", "amd64") else ("generic",)


def version() -> str:
    for line in (ROOT / "ncops" / "_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("ncops/_version.py has no __version__")


def isa_sources() -> list[str]:
    """One translation unit per kernel and instruction set: a wrapper that names the set and includes the kernel."""
    folder = ROOT / "build" / "isa"
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for kernel in sorted((ROOT / "csrc" / "cpu").glob("*_cpu.cpp")):
        for isa in ISAS:
            wrapper = folder / f"{kernel.stem}_{isa}.cpp"
            text = f'#define NCOPS_ISA {isa}\n#include "cpu/{kernel.name}"\n'
            if not wrapper.exists() or wrapper.read_text() != text:
                wrapper.write_text(text)
            sources.append(str(wrapper.relative_to(ROOT)))
    return sources


def native() -> dict:
    """The arguments of ``setup`` for the native extension; raises ImportError where torch is not installed."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ImportError("the limited API does not exist on free-threaded Python")
    kernels = set((ROOT / "csrc/cpu").glob("*_cpu.cpp"))
    plain = [path for path in (ROOT / "csrc").rglob("*.cpp") if path not in kernels]
    extension = CppExtension(
        "ncops._C",
        sorted(str(p.relative_to(ROOT)) for p in plain) + isa_sources(),
        include_dirs=[str(ROOT / "csrc")],
        py_limited_api=True,
        extra_compile_args=[
            "-O3",
            "-g0",
            "-std=c++17",
            "-fvisibility=hidden",
            "-Wall",
            "-Wno-psabi",
            "-Wno-maybe-uninitialized",  # GCC 12 warns inside its own AVX-512 intrinsics
            "-Wno-unknown-pragmas",
            "-fno-math-errno",
            "-fno-trapping-math",
            f"-DTORCH_TARGET_VERSION={TORCH_ABI}",
            f"-DPy_LIMITED_API={PYTHON_ABI}",
            f"-DNCOPS_VERSION={version()}",
            f"-DNCOPS_BUILT_WITH_TORCH={torch.__version__}",
        ],
    )

    class Build(BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                if WANTED == "1":
                    raise
                print(f"ncops: the native build failed, installing the plain PyTorch backend: {error}", file=sys.stderr)
                self.extensions = []

    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


extras = {}
if WANTED != "0":
    try:
        extras = native()
        print("ncops: building with the native extension", file=sys.stderr)
    except ImportError as error:
        if WANTED == "1":
            raise
        print(f"ncops: building without the native extension ({error})", file=sys.stderr)
setup(version=version(), **extras)
