"""The same tests again under AddressSanitizer with UBSan, or under ThreadSanitizer: each in a Python of its own.

Which of them is said by ``--triton-part``: the first by 0, the second by 2; ``--triton-all`` asks for both.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import sanitized
import sanitizers
import simt_modules

pytestmark = pytest.mark.slow


def available(mode: str) -> bool:
    """Whether g++ has the libraries, and a Python with them preloaded starts."""
    libraries = [sanitizers.library(name) for name in sanitizers.LIBRARIES[mode]]
    if not all(map(os.path.isabs, libraries)):
        return False
    preload = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    started = subprocess.run(
        [sys.executable, "-c", "print(1)"], env={**os.environ, **preload}, capture_output=True, text=True
    )
    return started.returncode == 0 and started.stdout.split() == ["1"]


@pytest.fixture(scope="module")
def runs(simt_mode, tmp_path_factory, pytestconfig):
    """All children at once: each has one thread."""
    started = {}
    if simt_mode == "plain":
        modes = list(sanitizers.OPTIONS)
        if not pytestconfig.getoption("--triton-all"):
            modes = {0: modes[:1], 2: modes[1:]}.get(pytestconfig.getoption("--triton-part"), [])
        modes = [mode for mode in modes if available(mode)]
        simt_modules.build_all(modes)
        for mode in modes:
            folder = tmp_path_factory.mktemp(mode)
            output = open(folder / "output", "w+")
            arguments = ["-q", "-x", "--durations=5", str(simt_modules.HERE)]
            child = sanitized.start_pytest(mode, folder / "report", arguments, stdout=output, stderr=subprocess.STDOUT)
            started[mode] = child, output
    yield started
    for child, output in started.values():
        child.kill()
        child.wait()
        output.close()


@pytest.mark.parametrize("mode", sanitizers.OPTIONS)
def test_everything_under(mode, simt_mode, runs):
    if simt_mode != "plain":
        pytest.skip(f"this is the {simt_mode} run")
    if mode not in runs:
        pytest.skip(f"another part runs {mode}, or its libraries are not installed, or do not run here")
    child, output = runs[mode]
    status = child.wait()
    output.seek(0)
    text = output.read()
    assert status == 0, text[-20_000:]
    assert " passed" in text
