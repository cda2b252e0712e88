"""Builds ncops: a pure-Python wheel where torch or a compiler is missing, else with the native extension ``ncops._C``.

NCOPS_REQUIRE_EXT=1 turns a failed or skipped native build into an error; NCOPS_REQUIRE_EXT=0 asks for the pure wheel.
NCOPS_CUDA=1 demands the CUDA kernels, NCOPS_CUDA=0 leaves them out; else they are built where nvcc is found, if there
is a GPU or NCOPS_CUDA_ARCHS is set: the compute capabilities ("80;90;100"); later GPUs use the last one's PTX.
NCOPS_SANITIZE ("address,undefined" or "thread") builds the native kernels for tests/sanitizers.py. NCOPS_ISAS ("avx2")
are the instruction sets of the CPU kernels, best first, for a quicker build than of all.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
WANTED = os.environ.get("NCOPS_REQUIRE_EXT", "")
SANITIZE = os.environ.get("NCOPS_SANITIZE", "")
TORCH_ABI = "0x020a000000000000"  # torch 2.10, the oldest release this library runs on
PYTHON_ABI = "0x030A0000"  # CPython 3.10
X86, ARM = "avx512,avx2,generic", "neon,generic"
EVERY_ISA = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}.get(platform.machine().lower(), "generic")
ISAS = (os.environ.get("NCOPS_ISAS") or EVERY_ISA).split(",")
GCC = sys.platform != "darwin"


def version() -> str:
    for line in (ROOT / "ncops" / "_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("ncops/_version.py has no __version__")


def write(path: Path, text: str) -> None:
    """A generated source; one that stays as it is is not compiled again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def units() -> list[str]:
    """What is compiled: a translation unit per instruction set and family of kernels (linear_*, pair_*), the largest
    first, and one of everything else. A unit per file takes twice as long in all: each parses the same headers (0.7 s
    of intrinsics, 1.1 s of torch) and forms the same templates.
    """
    folder = ROOT / "build" / "isa"
    each = " ".join(f"DO({isa}, name, Args)" for isa in ISAS)
    write(folder / "isas.h", f"#define NCOPS_EACH_ISA(DO, name, Args) {each}\n")
    families: dict[str, list[Path]] = {}
    for kernel in sorted((ROOT / "csrc" / "cpu").glob("*_cpu.cpp")):
        families.setdefault(kernel.name.split("_")[0], []).append(kernel)
    kernels = [kernel for family in families.values() for kernel in family]
    host = [path for path in sorted((ROOT / "csrc").rglob("*.cpp")) if path not in kernels]
    found = {folder / "host.cpp": (host, "")}
    for family, members in sorted(families.items(), key=lambda item: -len(item[1])):
        found |= {folder / f"{family}_{isa}.cpp": (members, f"#define NCOPS_ISA {isa}\n") for isa in ISAS}
    for unit, (members, first) in found.items():
        write(unit, first + "".join(f'#include "{path.relative_to(ROOT / "csrc")}"\n' for path in members))
    return [str(unit.relative_to(ROOT)) for unit in found]


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside = Path(home) / "bin" / "nvcc" if home else None
    return str(inside) if inside and inside.exists() else shutil.which("nvcc")


def output(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def compile_cuda(compiler: str, archs: list[str]) -> list[str]:
    """One object per launcher file, compiled side by side; those newer than everything they include are kept."""
    folder = ROOT / "build" / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all"]
    flags += ["-I", str(ROOT / "csrc"), *codes]
    stamp = folder / "flags.txt"
    changed = not stamp.exists() or stamp.read_text() != " ".join(flags)
    headers = [*(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "csrc").rglob("*.h")]

    def build(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        newest = max(path.stat().st_mtime for path in (source, *headers))
        if changed or not target.exists() or target.stat().st_mtime < newest:
            try:
                said = output(compiler, *flags, "-c", str(source), "-o", str(target))
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"nvcc failed on {source.name}:\n{error.output}") from None
            target.with_suffix(".log").write_text(said)
        return str(target.relative_to(ROOT))

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = list(pool.map(build, sorted((ROOT / "csrc" / "cuda").glob("*_cuda.cu"))))
    stamp.write_text(" ".join(flags))
    return objects


def state_cuda(*defines: str) -> None:
    """Writes what the host code sees of CUDA; a header, so that the CPU kernels are not compiled again for it."""
    write(ROOT / "build" / "cuda" / "cuda_build.h", "".join(f"#define {line}\n" for line in defines))


def add_cuda(extension) -> None:
    """Gives the extension its CUDA kernels where they are asked for, or nvcc and a GPU are there."""
    state_cuda()
    compiler = nvcc()
    wanted, architectures = os.environ.get("NCOPS_CUDA", ""), os.environ.get("NCOPS_CUDA_ARCHS", "")
    if wanted == "0" or (compiler is None and wanted != "1"):
        return
    if compiler is None:
        raise RuntimeError("NCOPS_CUDA=1, but there is no nvcc on PATH or in CUDA_HOME")
    if not (wanted or architectures or shutil.which("nvidia-smi")):
        print("ncops: without CUDA kernels, as there is no GPU here: NCOPS_CUDA=1 builds them", file=sys.stderr)
        return
    try:
        known = output(compiler, "--list-gpu-code")
        asked = (architectures or "80;90;100").replace(",", ";").split(";")
        archs = [a for a in asked if re.search(rf"\bsm_{a}\b", known)]
        if not archs:
            raise RuntimeError(f"{compiler} compiles for none of {asked}")
        objects = compile_cuda(compiler, archs)
        libraries = re.findall(r'"?-L([^"\s]+)"?', output(compiler, "--dryrun", "-x", "cu", os.devnull))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        if wanted == "1":
            raise
        print(f"ncops: building without CUDA kernels: {error}", file=sys.stderr)
        return
    extension.extra_objects += objects
    extension.library_dirs += [folder for folder in libraries if not folder.endswith("stubs")]
    extension.libraries += ["cudart_static", "rt", "dl", "pthread"]
    release = re.search(r"release ([\d.]+)", output(compiler, "--version"))
    built = f"{release[1] if release else 0}:" + "+".join(f"sm_{a}" for a in archs)
    state_cuda("NCOPS_WITH_CUDA", f"NCOPS_CUDA_BUILT {built}")
    print(f"ncops: with CUDA kernels, {built}", file=sys.stderr)


def native() -> dict:
    """The arguments of ``setup`` for the native extension; raises ImportError where torch is not installed."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ImportError("the limited API does not exist on free-threaded Python")
    sanitized = ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"] if SANITIZE else []
    extension = CppExtension(
        "ncops._C",
        units(),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "build" / "cuda"), str(ROOT / "build" / "isa")],
        py_limited_api=True,
        extra_compile_args=[
            "-O2",  # with what of -O3 our loops need; all of it takes 2 to 6 times as long to compile, for nothing
            *(["-fvect-cost-model=dynamic"] if GCC else []),
            # x86's default. AArch64's scheduling before register allocation puts 5 of a product's 28 sums on the stack.
            *(["-fno-schedule-insns"] if GCC else []),
            "-g0",
            "-std=c++17",
            "-fvisibility=hidden",
            "-Wall",
            "-Wno-psabi",
            *(["-Wno-maybe-uninitialized"] if GCC else []),  # GCC 12 warns inside its own AVX-512 intrinsics
            "-Wno-unknown-pragmas",
            "-fno-math-errno",
            "-fno-trapping-math",
            f"-DTORCH_TARGET_VERSION={TORCH_ABI}",
            f"-DPy_LIMITED_API={PYTHON_ABI}",
            f"-DNCOPS_VERSION={version()}",
            f"-DNCOPS_BUILT_WITH_TORCH={torch.__version__}",
            *sanitized,
        ],
        extra_link_args=sanitized,
    )

    class Build(BuildExtension):
        def run(self):
            try:
                for target in self.extensions:
                    add_cuda(target)
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
setup(
    version=version(),
    packages=[*find_packages(include=["ncops", "ncops.*"]), "ncops.triton_kernels"],
    package_dir={"ncops.triton_kernels": "triton_kernels"},
    **extras,
)
