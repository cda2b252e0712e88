"""What the headers of csrc/cpu/isa give, set by set, against NumPy; AArch64's in an emulator on other machines."""

from __future__ import annotations

import platform
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TRIPLES, HALVES = 4096, 1 << 16
FLAGS = {  # in /proc/cpuinfo, of a machine that runs the set; AArch64 has neon
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
}
WIDTHS = {"avx2": 32, "avx512": 64}
# ARMv8.0, which nothing newer may be emitted for unasked, and a machine that multiplies bfloat16.
RUNS = ["generic", "avx2", "avx512", "neon on cortex-a53", "neon on max"]

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the sources")


def commands(isa: str, cpu: str) -> tuple[list[str], list[str]]:
    """How to compile for the set, and what goes before the program; skips where it cannot run here."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    if isa == "neon" and not arm:
        emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        cross = shutil.which("aarch64-linux-gnu-g++")
        if emulator is None or cross is None:
            pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user-static")
        return [cross, "-static"], [emulator, "-cpu", cpu]
    info = Path("/proc/cpuinfo")
    if isa in FLAGS and not (info.exists() and FLAGS[isa] <= set(info.read_text().split())):
        pytest.skip(f"this machine does not run {isa}")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return ["g++"], []


def triples() -> np.ndarray:
    """(3, TRIPLES) float32: of many sizes, between two halves, NaN, infinities, zeros of both signs, equal pairs."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.integers(-8, 6, (3, TRIPLES))
    out = (rng.standard_normal((3, TRIPLES)) * scales).astype(np.float32)
    out[0, :1024] = (rng.integers(0, HALVES, 1024).astype(np.uint32) << 16 | 0x8000).view(np.float32)
    below = rng.integers(0, 0x7BFF, 1024).astype(np.uint16)
    out[0, 1024:2048] = sum(h.view(np.float16).astype(np.float64) / 2 for h in (below, below + np.uint16(1)))
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 65519.0, 65520.0, 1e-8, 3e38, 1e-40], np.float32)
    out[:2, 2048:2148] = np.stack(np.meshgrid(special, special)).reshape(2, -1)
    out[1, 2200:2300] = out[0, 2200:2300]
    with np.errstate(all="ignore"):
        out[2] = -(out[0].astype(np.float64) * out[1]).astype(np.float32)
    return out


def layout(isa: str) -> np.dtype:
    """What tests/isa/primitives.cpp writes."""
    lanes = WIDTHS.get(isa, 16) // 4
    stored = [("vector", "f4", HALVES), ("one", "f4", HALVES)]
    stored += [(name, "u2", TRIPLES) for name in ("stored", "one_stored", "streamed")]
    return np.dtype(
        [("bf16", stored), ("f16", stored), ("fma", "f4", TRIPLES), ("fma_wide", "f8", TRIPLES), ("max", "f4", TRIPLES)]
        + [("above", "u4", TRIPLES // lanes), ("above_wide", "u4", 2 * TRIPLES // lanes), ("counts", "i4", TRIPLES)]
        + [("broadcast", "u4", (TRIPLES // lanes, lanes)), ("streamed", "f4", TRIPLES), ("pairs", "f4", TRIPLES)]
    )


@pytest.fixture(scope="module", params=RUNS)
def ran(request, tmp_path_factory):
    """The set, what its program wrote, and whether that has products of pairs."""
    isa, _, cpu = request.param.partition(" on ")
    compiler, before = commands(isa, cpu)
    folder = tmp_path_factory.mktemp("isa")
    (folder / "isas.h").write_text(f"#define NCOPS_EACH_ISA(DO, name, Args) DO({isa}, name, Args)\n")
    flags = ["-O2", "-std=c++17", "-Wno-psabi", "-fno-trapping-math", f"-DNCOPS_ISA={isa}"]
    program, source = str(folder / "primitives"), str(ROOT / "tests/isa/primitives.cpp")
    subprocess.run([*compiler, *flags, f"-I{folder}", f"-I{ROOT}/csrc", source, "-o", program], check=True)
    pairs = cpu != "cortex-a53"
    command = [*before, program, *["pairs"] * pairs]
    output = subprocess.run(command, input=triples().tobytes(), capture_output=True, check=True).stdout
    return isa, np.frombuffer(output, layout(isa))[0], pairs


def assert_equal(ours: np.ndarray, truth: np.ndarray, what: str = "") -> None:
    np.testing.assert_array_equal(ours, truth, err_msg=what)
    np.testing.assert_array_equal(np.signbit(ours[truth == 0]), np.signbit(truth[truth == 0]), err_msg=what)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_conversions(ran, name, dtype):
    found = ran[1][name]
    wide = torch.arange(HALVES).to(torch.uint16).view(dtype).float().numpy()
    for form in ("vector", "one"):
        assert_equal(found[form], wide, form)
    truth = torch.from_numpy(triples()[0]).to(dtype).float().numpy()
    for form in ("stored", "one_stored", "streamed"):
        assert_equal(torch.from_numpy(found[form].copy()).view(dtype).float().numpy(), truth, form)


def test_products_are_fused(ran):
    if ran[0] == "generic":
        pytest.skip("fuses where the compiler does")
    a, b, c = triples()
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    exact = a[finite].astype(np.float64) * b[finite] + c[finite]  # what c has lost of the product
    assert np.count_nonzero(exact) > TRIPLES / 4
    np.testing.assert_allclose(ran[1]["fma"][finite], exact, rtol=2.0**-24, atol=1e-40)
    for i in np.flatnonzero(finite)[:500]:
        x, y = float(a[i]) / 3, float(b[i]) / 3
        assert ran[1]["fma_wide"][i] == float(Fraction(x) * Fraction(y) - Fraction(x * y)), i


def test_comparisons(ran):
    isa, found, _ = ran
    a, b, c = triples()
    above = a > b
    assert_equal(found["max"], np.where(above, a, b))  # the second where either is NaN
    for name, lanes in (("above", WIDTHS.get(isa, 16) // 4), ("above_wide", WIDTHS.get(isa, 16) // 8)):
        vectors = above.reshape(-1, lanes)
        bits = (vectors << np.arange(lanes)).sum(1)
        assert len(set(bits)) >= min(2**lanes, 64)
        np.testing.assert_array_equal(found[name], bits | vectors.any(1) << 16, name)
    np.testing.assert_array_equal(found["counts"], c.view(np.int32) + above)


def test_moves(ran):
    isa, found, _ = ran
    a, b, _ = triples()
    lanes = WIDTHS.get(isa, 16) // 4
    np.testing.assert_array_equal(found["broadcast"], np.repeat(a.view(np.uint32)[::lanes, None], lanes, 1))
    assert_equal(found["streamed"], b)


def test_products_of_pairs(ran):
    """Of bfloat16, two in each float: both products and a number, added up within two units in the last place."""
    _, found, pairs = ran
    if not pairs:
        pytest.skip("ARMv8.0 has no such products")
    a, b, c = triples()
    with np.errstate(all="ignore"):
        products = [x.astype(np.float64) * y for x, y in zip(halves_of(a), halves_of(b), strict=True)]
        size = sum(map(np.abs, products)) + np.abs(c)
        exact = sum(products) + c
    normal = [(np.abs(x) > 2.0**-100) & (np.abs(x) < 2.0**100) for x in (*halves_of(a), *halves_of(b), *products, c)]
    fine = np.all(normal, 0)
    assert fine.sum() > 200
    assert (np.abs(found["pairs"][fine] - exact[fine]) <= 2.0**-22 * size[fine]).all()


def halves_of(floats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair of bfloat16 in each float, the lower bits first."""
    bits = floats.view(np.uint32)
    return (bits << 16).view(np.float32), (bits & 0xFFFF0000).view(np.float32)
