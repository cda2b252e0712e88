"""The micro-kernels keep their sums in registers: no multiply-add of theirs touches the stack."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ncops.backends import native

KERNELS = ("multiply_group", "multiply_features", "weight_columns")


ARM = Path(__file__).resolve().parents[1] / "build" / "arm" / "tree" / "ncops" / "_C.abi3.so"


def disassembled(library: str, objdump: str) -> dict[str, list[str]]:
    """Instructions by demangled function name."""
    text = subprocess.run([objdump, "-dC", "--no-show-raw-insn", library], capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        start = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if start:
            body = found.setdefault(start[1], [])
        elif "\t" in line:
            body.append(line.split("\t", 1)[1])
    return found


@pytest.fixture(scope="module")
def functions() -> dict[str, list[str]]:
    library = native.find()
    if library is None or shutil.which("objdump") is None:
        pytest.skip("needs the native extension and objdump")
    found = disassembled(library, "objdump")
    if not any("ncops::avx512" in name for name in found):
        pytest.skip("the extension has no symbols or no x86-64 kernels")
    return found


@pytest.fixture(scope="module")
def arm_functions() -> dict[str, list[str]]:
    objdump = "aarch64-linux-gnu-objdump"
    if not ARM.exists() or shutil.which(objdump) is None:
        pytest.skip(f"needs {objdump} and what `make test-arm` builds")
    return disassembled(str(ARM), objdump)


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_multiply_add_on_the_stack(functions, isa, kernel):
    bodies = {name: body for name, body in functions.items() if f"ncops::{isa}::" in name and f"{kernel}<" in name}
    assert bodies, f"no {kernel} for {isa} in the library"
    for name, body in bodies.items():
        products = [line for line in body if re.match(r"vfmadd|vdpbf16", line)]
        assert len(products) >= 4, name  # a last group of 4 rows by one vector
        assert not [line for line in products if "%rsp" in line or "%rbp" in line], name


# AArch64 has no multiply-add of memory: a sum on the stack is loaded and stored in the loop of the multiply-adds.
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_sum_on_the_stack_of_aarch64(arm_functions, kernel):
    bodies = {name: body for name, body in arm_functions.items() if "ncops::neon::" in name and f"{kernel}<" in name}
    assert bodies, f"no {kernel} in the library"
    for name, body in bodies.items():
        places = [i for i, line in enumerate(body) if re.match(r"fmla|bfdot", line)]
        assert len(places) >= 6, name
        among = body[places[0] : places[-1]]
        assert not [line for line in among if "[sp" in line], name


def test_wide_vectors_stay_in_their_own_kernels(functions):
    """A function that the linker shares between instruction sets must run on the oldest machine."""
    for name, body in functions.items():
        if "avx512" not in name:
            assert not [line for line in body if "%zmm" in line], name
            if "avx2" not in name:
                assert not [line for line in body if "%ymm" in line], name
