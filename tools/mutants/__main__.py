from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import SOURCES
from . import __doc__ as description
from .plants import Source
from .tree import Tree

GOAL = 0.95
SLOWER, STARTUP = 10, 60  # a defect may take ten times as long, and a minute for what pytest itself takes


def best_isa() -> str:
    import torch

    from ncops.backends import native

    native.load()
    return torch.ops.ncops_C.cpu_isa()


def run(tree: Tree, source: Source) -> list[tuple[bool, str]]:
    """Whether each defect that is not equivalent was killed, and a line on it."""
    plants = [plant for plant in source if not plant.equivalent]
    limit = SLOWER * tree.seconds(source) + STARTUP if plants else 0
    found = []
    for plant in plants:
        passed, line = tree.judge(source, plant, limit)
        found.append((not passed, f"{source.path}: {plant.old!r} -> {plant.new!r}: {line}"))
        print("SURVIVED" if passed else "killed  ", found[-1][1], flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="how the paths of files begin")
    parser.add_argument("--list", action="store_true", help="count and leave")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree at work (%(default)s)")
    options = parser.parse_args()
    chosen = [s for s in SOURCES if not options.paths or s.path.startswith(tuple(options.paths))]
    for source in chosen if options.list else ():
        print(f"{len(source.plants):4} {sum(bool(plant.equivalent) for plant in source):4} equivalent  {source.path}")
    if options.list:
        print(f"{sum(len(source.plants) for source in chosen):4} in all")
        return 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        isa = best_isa()
        chosen = [source for source in chosen if source.runs_on(isa)]
        native = any(source.native for source in chosen)
        free = list(pool.map(lambda i: Tree(Path(scratch, str(i)), native, isa), range(options.jobs)))

        def work(source: Source) -> list[tuple[bool, str]]:
            tree = free.pop()
            try:
                return run(tree, source)
            finally:
                free.append(tree)

        found = [row for rows in pool.map(work, chosen) for row in rows]
    killed = sum(dead for dead, _ in found)
    print("", *(line for dead, line in found if not dead), f"{killed} of {len(found)} killed", sep="\n")
    return 0 if killed >= GOAL * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
