"""Runs pytest under a sanitizer: the same tests, with modules built for it and its library preloaded into Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import simt_modules

# A process reports all it finds and goes on; the reports land in files, which conftest.py reads after every test.
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


def library(name: str) -> str:
    """The path of a sanitizer's library; just its name where g++ has none."""
    compiler = os.environ.get("CXX", "g++")
    return subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def environment(mode: str, log: Path) -> dict[str, str]:
    options = {name: text.format(log=log) for name, text in OPTIONS[mode].items()}
    preloaded = [library(name) for name in LIBRARIES[mode]]
    if mode == "tsan":
        preloaded.insert(0, str(simt_modules.tsan_hook()))
    return {
        **os.environ,
        **options,
        "LD_PRELOAD": " ".join(preloaded),
        "NCOPS_SIMT_MODE": mode,
        "NCOPS_SIMT_LOG": str(log),
        "OMP_NUM_THREADS": "1",
    }


def start_pytest(mode: str, log: Path, arguments: list[str], **kwargs) -> subprocess.Popen:
    simt_modules.build_all([mode])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.Popen(command, env=environment(mode, log), cwd=simt_modules.ROOT, **kwargs)


if __name__ == "__main__":
    import tempfile

    if len(sys.argv) < 2 or sys.argv[1] not in OPTIONS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(OPTIONS)}}} [pytest arguments]")
    with tempfile.TemporaryDirectory() as folder:
        arguments = sys.argv[2:] or ["-q", str(simt_modules.HERE)]
        sys.exit(start_pytest(sys.argv[1], Path(folder) / "report", arguments).wait())
