"""What makes a bare copy of the repository run: its packages on the path, the carried library and Triton's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "gpu-day-pack" / "pack.tar.xz"
OPEN = PACK.parent / "open"
SITE, CACHE, LIBRARY, SOURCES = "site", "triton", "_C.abi3.so", "sources.txt"  # inside of the pack
GROUP = "__grp__"
# Part of the key of Triton's cache, so that the pack is made with the same; without it cubins are a third as large.
TRITON = {"TRITON_DISABLE_LINE_INFO": "1"}


def environment() -> dict[str, str]:
    """Of every process of the day."""
    path = [str(ROOT), str(OPEN / SITE), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
    return os.environ | TRITON | {"TRITON_CACHE_DIR": str(OPEN / CACHE)} | own


def sources_digest(root: Path = ROOT) -> str:
    """Of everything that the library is compiled from."""
    digest = hashlib.sha256()
    for path in sorted((root / "csrc").rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def prepare(root: Path = ROOT, pack: Path = PACK) -> list[str]:
    """Unpacks and links what is missing; returns what is wrong with the pack, in words."""
    wrong, opened = [], pack.parent / OPEN.name
    if not pack.exists():
        wrong.append("no pack was carried (make gpu-day-pack): kernels are compiled where they are met")
    else:
        unpack(pack, opened)
        carried = opened / SOURCES
        if carried.exists() and carried.read_text() != sources_digest(root):
            wrong.append("the carried library was built from other sources than this tree's csrc")
    library = root / "ncops" / LIBRARY
    if library.is_symlink():
        library.unlink()  # perhaps of a pack that is gone
    if not list(library.parent.glob("_C*.so")) and (opened / LIBRARY).exists():
        library.symlink_to(os.path.relpath(opened / LIBRARY, library.parent))
    link_package(root)
    return wrong


def link_package(root: Path = ROOT) -> None:
    """Makes ncops.triton_kernels importable where nothing is installed: setup.py's package_dir knows where it lies."""
    if importlib.util.find_spec("ncops.triton_kernels") is None:
        (root / "ncops" / "triton_kernels").symlink_to("../triton_kernels")
        importlib.invalidate_caches()


def unpack(pack: Path, target: Path) -> None:
    """Files of Triton's cache name their neighbours by absolute paths, which are this machine's only now."""
    with tarfile.open(pack) as archive:
        archive.extractall(target, filter="data")
    for group in (target / CACHE).glob(f"*/{GROUP}*"):
        names = json.loads(group.read_text())["child_paths"]
        here = {name: str(group.parent / name) for name in names if (group.parent / name).exists()}
        group.write_text(json.dumps({"child_paths": here}))
