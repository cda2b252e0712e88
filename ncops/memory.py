"""Memory of this process and of the machine, where the system tells it (Linux)."""

from __future__ import annotations


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
