"""Tests of the native CPU kernels under a sanitizer: ``python tests/sanitizers.py {asan,tsan} [pytest arguments]``.

Builds the extension with AddressSanitizer and UBSan, or with ThreadSanitizer, beside the installed one (build/asan,
build/tsan), and runs pytest on it with the sanitizer's library preloaded into Python. A report fails the run. Without
arguments the build has the one instruction set that runs, a third of what there is to compile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# A process reports all it finds and goes on; the reports land in files.
COMMON = "halt_on_error=0:exitcode=0:log_path={log}"
OPTIONS = {
    "asan": {
        "ASAN_OPTIONS": COMMON + ":detect_leaks=0:suppress_equal_pcs=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": COMMON + ":print_stacktrace=1",
    },
    # Python and torch are not instrumented: what they do with their own locks is not a finding.
    "tsan": {
        "TSAN_OPTIONS": COMMON + ":ignore_noninstrumented_modules=1:suppress_equal_stacks=0:suppress_equal_addresses=0"
        ":report_thread_leaks=0:report_signal_unsafe=0:history_size=4"
    },
}
LIBRARIES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}
SANITIZE = {"asan": "address,undefined", "tsan": "thread"}
# Every op, forward and backward, where its work is cut, and sizes of nothing.
FILES = ["tests/test_parity.py", "tests/test_across_parts.py", "tests/test_across_native_parts.py"]
REDUCED = {
    "asan": [*FILES, "-k", "cpu- or -cpu or cpu]"],
    "tsan": [*FILES, "-k", "cpu- and float32 or cpu] and not poison"],
}


def library(name: str) -> str:
    """The path of a sanitizer's library; just its name where g++ has none."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def environment(mode: str, log: Path, *preloaded: str) -> dict[str, str]:
    """For a process with the sanitizer in it; what ``preloaded`` names comes before its libraries."""
    options = {name: text.format(log=log) for name, text in OPTIONS[mode].items()}
    libraries = [*preloaded, *map(library, LIBRARIES[mode])]
    return {**os.environ, **options, "LD_PRELOAD": " ".join(libraries)}


def instruction_set() -> str:
    """What the installed extension runs here; empty where there is none to ask."""
    program = "import torch; from ncops.backends import native; native.load(); print(torch.ops.ncops_C.cpu_isa())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT).stdout
    return found.strip().partition("_")[0]


def build(mode: str, isa: str) -> Path:
    """The folder with the package and its sanitized extension, of ``isa`` or of every set; made of what is newer."""
    folder = ROOT / "build" / mode
    options = {"NCOPS_SANITIZE": SANITIZE[mode], "NCOPS_ISAS": isa, "NCOPS_REQUIRE_EXT": "1", "NCOPS_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", folder, "--build-temp", f"{folder}-temp"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **options}, stdout=subprocess.DEVNULL)
    return folder


def run(mode: str, arguments: list[str]) -> int:
    folder = build(mode, "" if arguments else instruction_set())
    with tempfile.TemporaryDirectory() as logs:
        pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={folder}"]
        child = environment(mode, Path(logs) / "report")
        status = subprocess.run([*pytest, *(arguments or REDUCED[mode])], cwd=ROOT, env=child).returncode
        reports = [path.read_text(errors="replace") for path in sorted(Path(logs).iterdir())]
    print("\n".join(reports), f"{mode}: {len(reports)} process(es) with reports", sep="\n")
    return status or bool(reports)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in OPTIONS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(OPTIONS)}}} [pytest arguments]")
    sys.exit(run(sys.argv[1], sys.argv[2:]))
