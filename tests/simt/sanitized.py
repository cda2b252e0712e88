"""Runs pytest under a sanitizer: the same tests, with modules built for it and its library preloaded into Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import simt_modules

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sanitizers  # noqa: E402


def environment(mode: str, log: Path) -> dict[str, str]:
    preloaded = [str(simt_modules.tsan_hook())] if mode == "tsan" else []
    own = {"NCOPS_SIMT_MODE": mode, "NCOPS_SIMT_LOG": str(log), "OMP_NUM_THREADS": "1"}
    return sanitizers.environment(mode, log, *preloaded) | own


def start_pytest(mode: str, log: Path, arguments: list[str], **kwargs) -> subprocess.Popen:
    simt_modules.build_all([mode])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.Popen(command, env=environment(mode, log), cwd=simt_modules.ROOT, **kwargs)


if __name__ == "__main__":
    import tempfile

    if len(sys.argv) < 2 or sys.argv[1] not in sanitizers.OPTIONS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(sanitizers.OPTIONS)}}} [pytest arguments]")
    with tempfile.TemporaryDirectory() as folder:
        arguments = sys.argv[2:] or ["-q", str(simt_modules.HERE)]
        sys.exit(start_pytest(sys.argv[1], Path(folder) / "report", arguments).wait())
