"""Compiles every Triton kernel and reads every CUDA kernel for sm_80, sm_90 and sm_100, without a GPU, and prints what
each takes; holds that against tests/budgets.json, with the oldest Triton against tests/spills.json.

    python tools/budgets.py              the table, and what exceeds its budget (exit code 1)
    python tools/budgets.py --changed    only Triton's kernels that differ from those compiled when the budgets were
                                         written (tests/compiled.json), and a sample of the others
    python tools/budgets.py --write      takes what is now as the budget, of the oldest Triton as its spills
    python tools/budgets.py --full       float64 and the like for all three, not for sm_90 alone
    python tools/budgets.py --triton --only nearest    Triton's kernels alone; with --write too it changes no other rows

CUDA objects that `make setup` made of the same sources are read as they are. Results are kept under build/budgets by
the content of what was compiled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from resources import SHARED_PER_BLOCK, Resources, demangle, functions  # noqa: E402

CAPABILITIES = (80, 90, 100)
BUDGETS = ROOT / "tests" / "budgets.json"
SPILLS = ROOT / "tests" / "spills.json"  # {kernel: {capability: instructions}} of the oldest Triton
COMPILED = ROOT / "tests" / "compiled.json"  # {release: {kernel: fingerprint}} of what the figures of both files are of
CACHE = ROOT / "build" / "budgets"
SAMPLE = 16  # one in so many of the unchanged kernels is compiled all the same
RARE = ("fp64", "fp16", "tf32", "softcap")  # compiled for one capability unless everything is asked for
COMPILERS = {"triton": "3.9.0", "nvcc": "13.0"}  # of the figures in BUDGETS; another release has figures of its own
OLDEST_TRITON = "3.6.0"  # of the figures in SPILLS
MOST_SPILLS = 40  # outside a loop a few cost little; more, and a kernel needs other blocks
MEASURED = (("pairs[", 90),)  # may spill more: smaller tiles, which do not, take longer (docs/gpu.md)
MORE_REGISTERS = 0.1  # a compiler's next patch release may take that much more
Found = dict[str, dict[int, dict]]  # {kernel: {capability: resources}}


def triton_jobs(full: bool, only: str) -> list[tuple[str, int, Any]]:
    """(kernel, capability, launch)"""
    import launches

    return [
        (name, capability, launch)
        for capability in CAPABILITIES
        for name, launch in launches.recorded(capability).items()
        if only in name and (capability == 90 or full or not any(word in name for word in RARE))
    ]


def fingerprints(jobs: list[tuple[str, int, Any]]) -> dict[str, str]:
    """{kernel: fingerprint} over its capabilities."""
    import launches

    parts: dict[str, list[str]] = {}
    for name, capability, launch in jobs:
        parts.setdefault(name, []).append(f"{capability} {launches.fingerprint(launch)}")
    return {name: hashlib.sha256(" ".join(of).encode()).hexdigest()[:16] for name, of in parts.items()}


def known_fingerprints() -> dict[str, str]:
    """Those of the kernels that this release of Triton compiled when the budgets were written."""
    import triton

    return json.loads(COMPILED.read_text()).get(triton.__version__, {}) if COMPILED.exists() else {}


def changed(jobs: list[tuple[str, int, Any]]) -> list[tuple[str, int, Any]]:
    """Without those of unchanged kernels, but for a sample."""
    known, now = known_fingerprints(), fingerprints(jobs)
    return [job for job in jobs if known.get(job[0]) != now[job[0]] or zlib.crc32(job[0].encode()) % SAMPLE == 0]


def compile_triton(job: tuple[str, int, Any]) -> tuple[str, int, dict]:
    """Compiles one kernel for one capability, or finds what that gave before."""
    name, capability, launch = job
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
    import launches

    compiled = launches.compiled(launch, capability)
    text = compiled.asm["cubin"] + f"{capability} {compiled.metadata} {_own_hash()}".encode()
    kept = CACHE / f"{hashlib.sha256(text).hexdigest()}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            (found,) = functions(cubin, capability).values()
        found.threads, found.shared = 32 * compiled.metadata.num_warps, found.shared + compiled.metadata.shared
        _write(kept, found.record())
    return name, capability, json.loads(kept.read_text())


def _own_hash() -> str:
    return hashlib.sha256((ROOT / "tools" / "resources.py").read_bytes()).hexdigest()


def _write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(record))
    part.replace(path)


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside = Path(home) / "bin" / "nvcc" if home else None
    return str(inside) if inside and inside.exists() else shutil.which("nvcc")


def built(source: Path, headers: list[Path]) -> tuple[Path | None, tuple[int, ...]]:
    """The object that setup.py made of it, where nothing has changed since and nvcc had nothing to say, and of which
    capabilities; of all of them without one."""
    target = ROOT / "build" / "cuda" / f"{source.stem}.o"
    log, flags = target.with_suffix(".log"), target.with_name("flags.txt")
    if not all(path.exists() for path in (target, log, flags)) or log.read_text().strip():
        return None, CAPABILITIES
    newest = max(path.stat().st_mtime for path in (source, *headers))
    there = tuple(c for c in CAPABILITIES if f"code=sm_{c}" in flags.read_text())
    return (target, there) if there and target.stat().st_mtime > newest else (None, CAPABILITIES)


def compile_cuda(source: Path, partly: bool) -> Found:
    """The kernels of one launcher file, with every warning an error; ``partly``: for those of a build of fewer."""
    headers = sorted([*(ROOT / "csrc" / "cuda").glob("*.cuh"), *(ROOT / "csrc").rglob("*.h")])
    there, capabilities = built(source, headers)
    if capabilities != CAPABILITIES and not partly:
        there, capabilities = None, CAPABILITIES
    command = [nvcc(), "-std=c++17", "-O3", "-Werror", "all-warnings", "-I", str(ROOT / "csrc")]
    command += [f"-gencode=arch=compute_{c},code=sm_{c}" for c in capabilities]
    version = subprocess.run([nvcc(), "--version"], check=True, capture_output=True).stdout
    parts = [path.read_bytes() for path in (source, *headers)] + [" ".join(command).encode(), version]
    kept = CACHE / f"{hashlib.sha256(b''.join(parts) + _own_hash().encode()).hexdigest()}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            target = there or Path(folder) / "kernels.o"
            if not target.exists():
                result = subprocess.run(
                    [*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True
                )
                if result.returncode:
                    raise RuntimeError(f"nvcc failed on {source.name}:\n{result.stderr}")
            found: Found = {}
            for capability in capabilities:
                for name, use in functions(target, capability).items():
                    if name.startswith("_ZN5ncops"):  # the rest is CUB's
                        kernel = f"{source.stem.removesuffix('_cuda')}.cu: {demangle(name)}"
                        found.setdefault(kernel, {})[capability] = use.record()
        _write(kept, found)
    return {kernel: {int(c): use for c, use in uses.items()} for kernel, uses in json.loads(kept.read_text()).items()}


def measure(jobs: list[tuple[str, int, Any]], only: str = "", cuda: bool = True, partly: bool = False) -> Found:
    """{kernel: {capability: resources}} of these of Triton and of everything that nvcc can compile here; ``partly``: of
    what a build for fewer capabilities has compiled."""
    found: Found = {}
    processes = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for kernel, capability, record in pool.map(compile_triton, jobs):
            found.setdefault(kernel, {})[capability] = record
    if cuda and nvcc():
        sources = sorted((ROOT / "csrc" / "cuda").glob("*_cuda.cu"))
        with ThreadPoolExecutor(processes) as pool:
            for kernels in pool.map(lambda source: compile_cuda(source, partly), sources):
                found.update({kernel: uses for kernel, uses in kernels.items() if only in kernel})
    return found


def of_same_compilers(found: Found) -> Found:
    """The kernels that were compiled here by the releases that the budgets were written with."""
    import triton

    there = nvcc()
    version = subprocess.run([there, "--version"], capture_output=True, text=True).stdout if there else ""
    releases = (COMPILERS["triton"], OLDEST_TRITON)
    same = {"cu": f"release {COMPILERS['nvcc']}," in version, "triton": triton.__version__ in releases}
    return {name: uses for name, uses in found.items() if same["cu" if ".cu: " in name else "triton"]}


def known_spills() -> dict[str, dict[str, int]] | None:
    """What the oldest Triton is known to spill; None for every other release."""
    import triton

    return json.loads(SPILLS.read_text()) if triton.__version__ == OLDEST_TRITON and SPILLS.exists() else None


def exceeded(
    found: Found, budgets: dict[str, dict[str, dict]], spills: dict[str, dict[str, int]] | None
) -> list[str]:
    """What is over its budget, spills, or has none, one line each.

    Spills are in the budget, up to MOST_SPILLS. With ``spills`` Triton is the oldest: its kernels may spill so much,
    and its registers and stack are not compared.
    """
    lines = []
    for kernel, uses in found.items():
        old = spills is not None and ".cu: " not in kernel
        for capability, use in uses.items():
            where = f"{kernel} on sm_{capability}"
            if use["shared"] > SHARED_PER_BLOCK[capability]:
                lines.append(f"{where}: {use['shared']} bytes of shared memory do not fit")
            budget = budgets.get(kernel, {}).get(str(capability))
            if budget is None:
                lines.append(f"{where}: no budget, run tools/budgets.py --write")
                continue
            allowed = spills.get(kernel, {}).get(str(capability), 0) if old else budget["spills"]
            if not any(kernel.startswith(name) and capability == measured for name, measured in MEASURED):
                allowed = min(allowed, MOST_SPILLS)
            if use["spills"] > allowed:
                lines.append(f"{where}: {use['spills']} instructions spill registers, {allowed} may")
            for what in ("tensor_cores", "async_copies"):
                if budget[what] and not use[what]:
                    lines.append(f"{where}: {what.replace('_', ' ')} are no longer used")
            if old:
                continue
            if use["registers"] > max(budget["registers"] * (1 + MORE_REGISTERS), budget["registers"] + 8):
                lines.append(f"{where}: {use['registers']} registers, the budget is {budget['registers']}")
            for what in ("shared", "stack"):
                if use[what] > budget[what]:
                    lines.append(f"{where}: {use[what]} bytes of {what}, the budget is {budget[what]}")
    return lines


def table(found: Found) -> str:
    width = max(map(len, found), default=10)
    lines = [f"{'kernel':{width}}  {'arch':6} threads  regs  shared  stack  spills  mma  async  occupancy"]
    for kernel, uses in sorted(found.items()):
        for capability, use in uses.items():
            use = Resources(**use)
            lines.append(
                f"{kernel:{width}}  sm_{capability:<4}{use.threads:7}{use.registers:6}{use.shared:8}{use.stack:7}"
                f"{use.spills:8}{use.tensor_cores:5}{use.async_copies:7}{use.occupancy(capability):10.0%}"
            )
    return "\n".join(lines)


def write(found: Found, only: str) -> None:
    """``found`` replaces the budgets of all kernels whose name contains ``only``, of the compilers that ran."""
    kept = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    ran = {".cu: " in kernel for kernel in found}
    kept = {kernel: uses for kernel, uses in kept.items() if only not in kernel or (".cu: " in kernel) not in ran}
    kept.update({kernel: {str(c): use for c, use in uses.items()} for kernel, uses in found.items()})
    rows = [f"  {json.dumps(k)}: {{\n" + _rows(kept[k]) + "\n  }" for k in sorted(kept)]
    BUDGETS.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def write_spills(found: Found, only: str) -> None:
    kept = json.loads(SPILLS.read_text()) if SPILLS.exists() else {}
    kept = {kernel: spills for kernel, spills in kept.items() if only not in kernel}
    for kernel, uses in found.items():
        spills = {str(c): use["spills"] for c, use in uses.items() if use["spills"]}
        if spills and ".cu: " not in kernel:
            kept[kernel] = spills
    SPILLS.write_text("{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(kept[k])}" for k in sorted(kept)) + "\n}\n")


def write_fingerprints(jobs: list[tuple[str, int, Any]], only: str) -> None:
    import triton

    kept = json.loads(COMPILED.read_text()) if COMPILED.exists() else {}
    others = {name: value for name, value in kept.get(triton.__version__, {}).items() if only not in name}
    kept[triton.__version__] = dict(sorted((others | fingerprints(jobs)).items()))
    COMPILED.write_text(json.dumps({release: kept[release] for release in sorted(kept)}, indent=1) + "\n")


def _rows(uses: dict[str, dict]) -> str:
    return ",\n".join(f"    {json.dumps(c)}: {json.dumps(uses[c])}" for c in sorted(uses, key=int))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--changed", action="store_true", help="leave out most Triton kernels that did not change")
    parser.add_argument("--triton", action="store_true", help="leave out what nvcc compiles")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--json", action="store_true", help="print the figures for another program")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter's functions cannot be compiled
    jobs = triton_jobs(options.full, options.only)
    found = measure(changed(jobs) if options.changed else jobs, options.only, not options.triton, options.changed)
    if options.json:
        print(json.dumps({"found": found, "names": sorted({name for name, *_ in jobs} | found.keys())}))
        return 0
    print(table(found))
    if options.write:
        import triton

        (write_spills if triton.__version__ == OLDEST_TRITON else write)(found, options.only)
        write_fingerprints(triton_jobs(False, options.only) if options.full else jobs, options.only)
        return 0
    lines = exceeded(found, json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}, known_spills())
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
