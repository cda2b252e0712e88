from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import __doc__ as description
from . import table, tree
from .steps import STEPS, Day


def main() -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS), help="some of: %(default)s")
    parser.add_argument("--only", default="", metavar="OP", help="ops whose name begins so")
    parser.add_argument("--total", type=float, default=535, help="seconds for everything (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-day-out")))
    options = parser.parse_args()
    steps = options.steps.split(",")
    unknown = set(steps) - STEPS.keys()
    if unknown:
        parser.error(f"no step named {', '.join(sorted(unknown))}")
    day = Day(options.out.resolve(), options.total, options.only)
    for wrong in tree.prepare():
        day.fail(wrong)
    for name in steps:
        day.step(name, *STEPS[name])
    if "bench" in steps:
        day.say(table.bench(table.read(day.out / "bench.jsonl")))
    day.say("\n".join(["", f"{len(day.failures)} failures", *day.failures]))
    return 1 if day.failures else 0


if __name__ == "__main__":
    sys.exit(main())
