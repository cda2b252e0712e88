"""A copy of the project in which defects are planted, built and tested."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .plants import ROOT, Plant, Source

PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--disable-warnings", "--tb=no")
LIST_FILES = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")


class Tree:
    """Raises RuntimeError where the project does not build, or its tests do not pass, without a defect."""

    def __init__(self, folder: Path, native: bool, isa: str):
        """``native``: whether defects of the extension will be planted, which then is built for one instruction set."""
        self.folder, self.native, self.isa = folder, native, isa
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a defect may come within the resolution of a file's time
            "NCOPS_CUDA": "0",
            "NCOPS_REQUIRE_EXT": "1",
            "MAX_JOBS": "1",
        }
        listed = subprocess.run(LIST_FILES, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
        for name in listed.split("\0"):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / "ncops" / "triton_kernels").symlink_to("../triton_kernels")
        if not native:
            shutil.copy2(ROOT / "ncops" / "_C.abi3.so", folder / "ncops")

    def seconds(self, source: Source) -> float:
        """How long the tests of a file take without a defect."""
        if self.native:  # the last defect may have been in the extension, whatever this source is
            self._build(source.isa)
        begin = time.monotonic()
        passed, line = self._test(source, None)
        if not passed:
            raise RuntimeError(f"without a defect, pytest {source.tests} says {line}")
        return time.monotonic() - begin

    def judge(self, source: Source, plant: Plant, limit: float) -> tuple[bool, str]:
        """Whether the tests pass with a defect, and what they say at the end."""
        target = self.folder / source.path
        whole = target.read_text()
        try:
            target.write_text(source.planted(plant))
            if source.native:
                self._build(source.isa)
            return self._test(source, limit)
        finally:
            target.write_text(whole)

    def _build(self, isa: str) -> None:
        command = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
        environment = {**self.environment, "NCOPS_ISAS": (isa or self.isa).split("_")[0]}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the native kernels do not build:\n{(done.stdout + done.stderr)[-3000:]}")

    def _test(self, source: Source, limit: float | None) -> tuple[bool, str]:
        run = subprocess.Popen(
            (sys.executable, *PYTEST, *source.arguments()), cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = run.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # with the ranks that it started
            run.communicate()
            return False, "ran too long"
        lines = said.splitlines() or ["nothing"]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return run.returncode == 0, (failed or lines)[-1]
