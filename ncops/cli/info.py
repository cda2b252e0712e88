"""What this installation can do: the build, the backend of every op and why others are off, torch's environment."""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch

from .. import backends
from .._version import __version__
from ..backends import native
from ..ops.op import DEFINED

OPS = tuple(op for op in DEFINED if not op.endswith(backends.FORMS))
EXTRAS = {
    "cli": ("typer", "rich", "tqdm", "matplotlib"),
    "lm": ("transformers", "accelerate", "gguf"),
    "peft": ("peft",),
    "metrics": ("torchmetrics",),
    "lightning": ("lightning",),
    "triton": ("triton",),
    "data": ("pyarrow", "zstandard"),
}


def _build() -> dict[str, Any]:
    reason = native.load()
    build: dict[str, Any] = {"loaded": reason is None, "reason": reason, "path": native.find()}
    if reason is None:
        try:
            build["build_info"] = str(torch.ops.ncops_C.build_info())
        except (AttributeError, RuntimeError, TypeError):
            build["build_info"] = None
        build["instruction_set"] = str(torch.ops.ncops_C.cpu_isa())
    return build


def _op(op: str, device: str) -> dict[str, Any]:
    """The backend that runs ``op`` on tensors of this device, and for every other backend the reason why not."""
    try:
        chosen, problem = backends.choose(op, device), None
    except RuntimeError as error:
        chosen, problem = None, str(error)
    others = [backend for backend in backends.BACKENDS if backend != chosen]
    why_not = {backend: reason for backend in others if (reason := backends.why_not(backend, op, device))}
    return {"runs": chosen, "problem": problem, "why_not": why_not}


def collect(torch_env: bool = True) -> dict[str, Any]:
    """All facts as a dictionary. ``torch_env=False`` leaves out torch's report, which takes seconds."""
    facts: dict[str, Any] = {
        "ncops": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "native": _build(),
        "forced_backend": backends.forced(),
        "ops": {op: {device: _op(op, device) for device in ("cpu", "cuda")} for op in OPS},
        "extras": {e: {m: importlib.util.find_spec(m) is not None for m in ms} for e, ms in EXTRAS.items()},
    }
    if torch_env:
        from torch.utils.collect_env import get_pretty_env_info

        facts["torch_env"] = get_pretty_env_info()
    return facts


def show(facts: dict[str, Any]) -> None:
    """Prints the facts for a person."""
    from ..report.console import emit, show_table

    native = facts["native"]
    emit(f"ncops {facts['ncops']} · torch {facts['torch']} · Python {facts['python']} · {facts['threads']} threads")
    emit(
        "native extension: "
        + (native.get("build_info") or str(native["path"]) if native["loaded"] else f"off: {native['reason']}")
    )
    if native.get("instruction_set"):
        emit(f"CPU instruction set: {native['instruction_set']}")
    if facts["forced_backend"]:
        emit(f"backend forced: {facts['forced_backend']}")
    emit()
    rows, off = [], {}
    for op, devices in facts["ops"].items():
        for entry in devices.values():
            for backend, reason in entry["why_not"].items():
                if not reason.startswith("tensors are on"):
                    off.setdefault((backend, reason), {})[op] = None  # a set that keeps its order
        rows.append((op, *(entry["runs"] or entry["problem"] for entry in devices.values())))
    show_table("Backends", ("op", "on cpu tensors", "on cuda tensors"), rows, left=(0, 1, 2))
    for (backend, reason), ops in off.items():
        emit(f"{backend} is off for {'every op' if len(ops) == len(rows) else ', '.join(ops)}: {reason}")
    if facts["gpu"] is None:
        emit("(torch sees no GPU here)")
    emit()
    rows = [
        (f"[{e}]", m, "yes" if there else f"no (pip install 'ncops[{e}]')")
        for e, ms in facts["extras"].items()
        for m, there in ms.items()
    ]
    show_table("Extras", ("extra", "package", "installed"), rows, left=(0, 1, 2))
    if "torch_env" in facts:
        emit(f"\n{facts['torch_env']}")
