"""Fills Triton's cache for a GPU that is not here: runs the cases through a driver that compiles and launches nothing.

``python -m tools.gpu_day.warm --cache FOLDER --jobs 2``, by the Python and the Triton of the machine that the cache is
for: both are part of its keys. Inputs are zeros on the CPU, and so is what kernels would have written.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import triton

from . import stand_in, tree

Call = tuple[str, bool, Callable[[], object]]


def smoke(only: str, reduced: bool) -> Iterator[Call]:
    """The smoke cases but those of gigabytes, which take the same kernels."""
    from . import cases

    data = cases.Data("cpu", reduced)
    for op, backend, exact in ((op, backend, not tf32) for op, backend, tf32 in cases.jobs(only)):
        for case in cases.cases(op, data, not exact) if backend == "triton" else ():
            if not case.huge:
                yield f"{op} {case.name} {case.dtype}", not exact, lambda case=case: case.run(*case.make())


def bench(only: str, reduced: bool) -> Iterator[Call]:
    from .bench import GROUPS, contestants

    for name, group in GROUPS.items():
        for one in group if name.startswith(only) else ():
            one = one.at_most(dict.fromkeys(one.sizes, 256)) if reduced else one
            for who, contestant in contestants(one).items():
                if who.startswith("triton"):
                    yield one.name, "tf32" in who, lambda c=contestant, one=one: _inside(*c, one.inputs("cpu"))


def _inside(function: Callable, context: AbstractContextManager, arguments: tuple) -> None:
    with context:
        function(*arguments)


def tests(only: str, reduced: bool) -> Iterator[Call]:
    """What tests/gpu shares with the other tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from op_cases import CASES, fresh
    from testing import DTYPES

    for case in CASES:
        for dtype in DTYPES if case.op.startswith(only) else ():
            yield f"{case.title} {dtype}", False, lambda c=case, t=dtype: c.run(**fresh(c.make(t)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--part", type=int, help="which of the jobs this process has")
    parser.add_argument("--only", default="", metavar="OP", help="ops whose name begins so")
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--steps", default="smoke,bench,tests")
    parser.add_argument("--rows", action="store_true", help="print the rows of the launch table in use, no more")
    options = parser.parse_args()
    if options.part is None and options.jobs > 1:
        again = [sys.executable, "-m", f"{__package__}.warm", *sys.argv[1:], "--part"]
        return max(job.wait() for job in [subprocess.Popen([*again, str(part)]) for part in range(options.jobs)])
    os.environ.update(tree.TRITON, TRITON_STORE_BINARY_ONLY="1")
    if options.cache:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    tree.link_package()
    torch.set_num_threads(1)
    logging.getLogger("triton.runtime.build").setLevel(logging.ERROR)  # that launchers do not load without a driver
    if options.rows:
        triton.knobs.runtime.jit_cache_hook = lambda **_: True  # compiles nothing
    else:
        stand_in.utilities(Path(triton.knobs.cache.dir).parent / "stub")
    stand_in.install()
    import ncops

    calls = [call for step in options.steps.split(",") for call in globals()[step](options.only, options.reduced)]
    failed, used = 0, set()
    for name, rounded, run in calls[options.part or 0 :: options.jobs]:
        begin = time.monotonic()
        stand_in.tf32(rounded)
        try:
            with ncops.use_backend("triton"), stand_in.rows_noted(lambda *row: used.add(row)):
                run()
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        if not options.rows:
            print(f"{time.monotonic() - begin:6.1f} s  {name}{' tf32' * rounded}", flush=True)
    for row in sorted(used) if options.rows else ():
        print(*row)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
