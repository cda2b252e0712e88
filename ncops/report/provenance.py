"""Where a report comes from: what measured it, when, and on what; written into report.json and shown on the pages."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import backends
from .._version import __version__
from ..backends import native

SCHEMA = 1
"""Version of the form of report.json and comparison.json: one more where a reader of an earlier one would misread it.
Files from before it was written have none, and are read as they are."""

OPS = ("class_moments", "linear_stats")
"""The ops whose backends are named: those that a report's rows went through."""


def provenance(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Versions, date, command line, and what ops on tensors of this device and dtype run on.

    The date is that of ``SOURCE_DATE_EPOCH`` where that is set, so that a report can be made again to the byte.
    """
    device = torch.device(device)
    used = list(dict.fromkeys(_backend(op, device, dtype) for op in OPS))
    isa = native.op("cpu_isa") if "cpu" in used else None
    stamp = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(stamp), timezone.utc) if stamp.isdigit() else datetime.now(timezone.utc)
    return {
        "ncops": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "date": when.isoformat(timespec="seconds"),
        "command": _command(),
        "backend": ", ".join(used),
        "instruction_set": None if isa is None else str(isa()),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def _backend(op: str, device: torch.device, dtype: torch.dtype | None) -> str:
    try:
        return backends.choose(op, device, dtype)
    except (RuntimeError, ValueError):  # forced to one that cannot run here: what was measured came from elsewhere
        return "unknown"


def _command() -> str:
    """The command line; a module that Python runs goes by its package's name."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    return shlex.join([path.parent.name if path.name == "__main__.py" else path.name, *arguments])
