"""The same tests again under AddressSanitizer with UBSan, and under ThreadSanitizer: each in a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import sanitized
import simt_modules


def available(mode: str) -> bool:
    """Whether g++ has the libraries, and a Python with them preloaded starts."""
    libraries = [sanitized.library(name) for name in sanitized.LIBRARIES[mode]]
    if not all(map(os.path.isabs, libraries)):
        return False
    preload = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    started = subprocess.run(
        [sys.executable, "-c", "print(1)"], env={**os.environ, **preload}, capture_output=True, text=True
    )
    return started.returncode == 0 and started.stdout.split() == ["1"]


@pytest.mark.parametrize("mode", sanitized.OPTIONS)
def test_everything_under(mode, simt_mode, tmp_path):
    if simt_mode != "plain":
        pytest.skip(f"this is the {simt_mode} run")
    if not available(mode):
        pytest.skip(f"the libraries of {mode} are not installed, or do not run here")
    arguments = ["-q", "-x", "--durations=5", str(simt_modules.HERE)]
    done = sanitized.run_pytest(mode, tmp_path / "report", arguments, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    assert " passed" in done.stdout
