"""Defects planted in kernels, each found by the builds that should find it: what shows that the harness can fail.

A defect shows as wrong values (reads of NaN included), as an error of the harness, or as a report of a sanitizer. No
single build finds them all: see the table in docs/cuda-without-a-gpu.md.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
RACE = "data race"
ASAN = "use-after-poison"
DIVERGED = "lanes of a warp wait in different collectives"


@dataclass(frozen=True)
class Defect:
    """A defect of an op: what each build finds, as a pattern ("" for wrong values), and the line that it must name.

    None: the build cannot find it, or finds nothing but the wrong values of the plain build.
    """

    op: str
    name: str
    plain: str | None = None
    asan: str | None = None
    tsan: str | None = None
    line: str | None = None  # the comment "line: ..." at the line

    def expected(self, mode: str) -> str | None:
        return getattr(self, mode)


DEFECTS = [
    Defect("selftest", "no_barrier_before_read", plain="", tsan=RACE, line="partial sums"),
    Defect("selftest", "no_barrier_after_tile", plain="", tsan=RACE),
    Defect("selftest", "no_barrier_before_refill", plain="", tsan=RACE),
    Defect("selftest", "no_syncwarp", plain="", tsan=RACE),
    Defect("selftest", "shared_not_atomic", tsan=RACE, line="shared update"),
    Defect("selftest", "blocks_race", tsan=RACE, line="global update"),
    Defect("selftest", "divergent_shuffle", "deadlock", "deadlock", "deadlock", line="divergent shuffle"),
    Defect("selftest", "shared_overrun", plain="", asan=ASAN, line="partial sums"),
    Defect("selftest", "shared_overrun_write", "written 0 bytes past the end of the dynamic", ASAN, "written 0 bytes"),
    Defect("selftest", "global_overrun", plain="", asan=ASAN),
    Defect("selftest", "global_overrun_write", "written 0 bytes past the end of int32 array", ASAN, "written 0 bytes"),
    Defect("selftest", "weak_async_wait", plain=""),
    Defect("selftest", "fragment_order", plain=""),
    Defect("selftest", "accumulator_index", plain=""),
    Defect("class_moments", "moments_one_slot", plain=""),
    Defect("class_moments", "moments_squares_without_barrier", plain="", tsan=RACE),
    Defect("class_scatter", "scatter_row_overrun", asan=ASAN),
    Defect("class_scatter", "scatter_no_barrier_between_stages", plain="", tsan=RACE),
    Defect("class_scatter", "scatter_wait_too_weak", plain="", tsan=RACE),
    Defect("linear_stats", "linear_weak_wait", plain="", tsan=RACE),
    Defect("linear_stats", "linear_missing_sync", plain="", tsan=RACE),
    Defect("linear_stats", "linear_wrong_fragment", plain=""),
    Defect("linear_stats", "linear_divergent_shuffle", DIVERGED),
    Defect("linear_stats", "linear_missing_part_sync", plain="", tsan=RACE),
    Defect("logit_stats", "logit_divergent_shuffle", DIVERGED),
    Defect("logit_stats", "logit_missing_sync", plain="", tsan=RACE),
]


def check_selftest(kernels, seed: int) -> None:
    """One run of every kernel of selftest_kernels.cuh, values compared."""
    torch.manual_seed(seed)
    kernels.schedule(seed)
    x, sums = torch.randn(3, 70), torch.zeros(3)
    kernels.row_sums(x, sums)
    labels, counts = torch.randint(5, (300,)), torch.zeros(5, dtype=torch.int32)
    kernels.histogram(labels, counts)
    a, b, c = torch.randn(32, 96), torch.randn(16, 96), torch.zeros(32, 16)
    kernels.tiled_product(a, b, c)
    half_a, half_b, tensor_c = a.half(), b.half(), torch.zeros(32, 16)
    kernels.tensor_product(half_a, half_b, tensor_c)
    values = torch.arange(128, dtype=torch.int32)
    reversed_values = torch.zeros_like(values)
    kernels.reverse_warps(values, reversed_values)
    torch.testing.assert_close(sums, x.sum(1))
    torch.testing.assert_close(c, a @ b.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(tensor_c, half_a.float() @ half_b.float().T, rtol=1e-5, atol=1e-4)
    assert counts.tolist() == labels.bincount(minlength=5).tolist()
    assert reversed_values.tolist() == values.view(4, 32).flip(1).flatten().tolist()


def seeds(mode: str) -> range:
    return range(3 if mode == "plain" else 1)


def check(op: str, kernels, seed: int) -> None:
    if op == "selftest":
        check_selftest(kernels, seed)
    else:
        importlib.import_module(f"test_{op}_simt").check(kernels, seed)


def lines_marked(comment: str) -> list[str]:
    """Every "file:line" of a kernel that ends with this comment."""
    sources = [*HERE.glob("*.cuh"), *(HERE.parents[1] / "csrc" / "cuda").glob("*.cuh")]
    return [
        f"{source.name}:{number}"
        for source in sources
        for number, text in enumerate(source.read_text().splitlines(), 1)
        if text.endswith(f"// line: {comment}")
    ]


@pytest.mark.parametrize("op", sorted({defect.op for defect in DEFECTS}))
def test_without_defects_nothing_is_found(load_kernels, simt_mode, op):
    for seed in seeds(simt_mode):
        check(op, load_kernels(op), seed)


def test_defects_that_exist_are_in_the_table():
    sources = [*HERE.glob("*.cuh"), *(HERE.parents[1] / "csrc" / "cuda").glob("*.cuh")]
    planted = {name for source in sources for name in re.findall(r"NCOPS_DEFECT\((\w+)\)", source.read_text())}
    assert planted - {"name"} == {defect.name for defect in DEFECTS}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.op}-{d.name}")
def test_defect(load_kernels, sanitizer_log, simt_mode, defect):
    expected = defect.expected(simt_mode)
    if expected is None:
        pytest.skip(f"not for the {simt_mode} build")
    kernels = load_kernels(defect.op)
    for seed in seeds(simt_mode):
        kernels.plant(defect.name)
        wrong, error = False, ""
        try:
            check(defect.op, kernels, seed)
        except AssertionError:
            wrong = True
        except RuntimeError as caught:
            error = str(caught)
        finally:
            kernels.plant("")
        found = sanitizer_log.take() + error
        assert wrong or found, f"{defect.name} is not found with seed {seed}"
        if expected:
            assert re.search(expected, found), f"seed {seed}: expected {expected!r}, got {found or 'wrong values'}"
        if expected and defect.line:
            assert any(place in found for place in lines_marked(defect.line)), found
