"""Memory of this process and of the machine, where the system tells it (Linux)."""

from __future__ import annotations

import time
from typing import Any


def _status(field: str, path: str = "/proc/self/status") -> int | None:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def resident() -> int | None:
    """Bytes resident now, or None."""
    return _status("VmRSS:")


def reset_peak() -> bool:
    """Restarts the kernel's record of peak resident memory at the present value."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return True
    except OSError:
        return False


def peak() -> int | None:
    """The most bytes resident since `reset_peak` (or the start), or None."""
    return _status("VmHWM:")


def available() -> int | None:
    """Bytes that can still be had without swapping, or None."""
    return _status("MemAvailable:", "/proc/meminfo")


class Cost:
    """Seconds and memory from here on."""

    def __init__(self) -> None:
        reset_peak()
        self._started, self._before = time.perf_counter(), resident()

    def facts(self) -> dict[str, Any]:
        """As a report has them: seconds, and the megabytes that came on top of what was there, a model."""
        most = peak()
        known = most is not None and self._before is not None
        return {
            "seconds": round(time.perf_counter() - self._started, 2),
            "peak_mb_above_model": round((most - self._before) / 2**20, 1) if known else None,
        }
