"""Packs what a machine with a GPU is brought: the library, Triton's cache, and peers in plain Python, in one archive.

``python -m tools.gpu_day.pack --library FILE --sources FOLDER --cache FOLDER --wheels FOLDER``,
as ``make gpu-day-pack`` calls it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

from .tree import CACHE, GROUP, LIBRARY, PACK, SITE, SOURCES, sources_digest


def cache_files(cache: Path) -> dict[str, bytes]:
    """Of Triton's cache what it loads kernels from: machine code, metadata, launchers. Texts on the way there are four
    fifths of the cache. Groups name their files relatively, until they are unpacked."""
    kept = {}
    for path in sorted(cache.glob("*/*")):
        name, content = f"{CACHE}/{path.relative_to(cache)}", path.read_bytes()
        if path.name.startswith(GROUP):
            names = [n for n in json.loads(content)["child_paths"] if n.endswith((".cubin", ".json"))]
            kept[name] = json.dumps({"child_paths": dict.fromkeys(names, "")}).encode()
        elif path.suffix in (".cubin", ".json", ".so"):
            kept[name] = content
    return kept


def wheel_files(wheels: Path) -> dict[str, bytes]:
    """The modules of every wheel of a folder, to be imported from where they are unpacked."""
    kept = {}
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            kept |= {f"{SITE}/{name}": wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
    return kept


def write(pack: Path, files: dict[str, bytes]) -> None:
    """Files of a kind side by side, as xz finds more alike then."""
    pack.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(pack, "w:xz", preset=9) as archive:
        for name in sorted(files, key=lambda name: (Path(name).suffix, Path(name).name, name)):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--sources", type=Path, required=True, help="the tree that the library was built from")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PACK)
    options = parser.parse_args()
    files = {LIBRARY: options.library.read_bytes(), SOURCES: sources_digest(options.sources).encode()}
    files |= cache_files(options.cache) | wheel_files(options.wheels)
    write(options.out, files)
    print(f"{options.out}: {len(files)} files, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
