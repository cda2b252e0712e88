"""What a compiled kernel takes of a multiprocessor: registers, shared memory, spills, instructions, occupancy.

Read with cuobjdump from the cubin, so no GPU is needed; Triton's wheel ships one.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

# Per multiprocessor: shared memory in bytes (of it 1 KB is taken by each block) and resident threads.
SHARED = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
THREADS = 2048
BLOCKS = 32
REGISTERS = 65536  # allocated to warps in units of 256
RESERVED = 1024
# The most a block may have: 99 KB also fits the 86, 89 and 120 that use the rows of 80.
SHARED_PER_BLOCK = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass
class Resources:
    """One kernel for one capability; shared memory in bytes a block, the static and the dynamic together."""

    threads: int
    registers: int
    shared: int
    stack: int
    spills: int  # instructions that move registers to local memory and back
    tensor_cores: int
    async_copies: int

    def occupancy(self, capability: int) -> float:
        """Share of a multiprocessor's warps that can be resident."""
        warps = -(-self.threads // 32)
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = REGISTERS // per_warp // warps
        by_shared = SHARED[capability] // (-(-(self.shared + RESERVED) // 128) * 128)
        return min(by_registers, by_shared, THREADS // (32 * warps), BLOCKS) * warps / (THREADS // 32)

    def record(self) -> dict[str, int]:
        return asdict(self)


def cuobjdump(*arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout


def demangle(name: str) -> str:
    """Name and template arguments without the project's namespaces; as it is where c++filt is missing."""
    try:
        text = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return name
    text = re.sub(r"\(anonymous namespace\)::|\bncops::|\bcuda::", "", text).removeprefix("void ")
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:place]
            break
    return text.replace("__nv_bfloat16", "bf16").replace("__half", "fp16")


def functions(binary: Path, capability: int) -> dict[str, Resources]:
    """Every kernel for ``capability`` in a cubin or object, by its mangled name; dynamic shared memory is not in there.

    ``threads`` is the bound that was compiled in, 1024 without one.
    """
    arch = ("--gpu-architecture", f"sm_{capability}", str(binary))
    found = {}
    usage = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    for name, registers, stack, shared in usage.findall(cuobjdump("--dump-resource-usage", *arch)):
        # From 90 on the kilobyte that every block gives to the system is part of the figure.
        static = max(0, int(shared) - (RESERVED if capability >= 90 else 0))
        found[name] = Resources(1024, int(registers), static, int(stack), 0, 0, 0)
    for part in re.split(r"\n\s*Function : ", cuobjdump("-sass", *arch))[1:]:
        name = part.split(None, 1)[0]
        if name in found:
            heads = re.findall(r"\*/\s+(?:@!?U?P[T\d]+ +)?([A-Z][A-Z0-9_]+)", part)
            found[name].spills = sum(head in ("LDL", "STL") for head in heads)
            found[name].tensor_cores = sum(bool(re.fullmatch(r"[A-Z]*MMA", head)) for head in heads)
            found[name].async_copies = sum(head in ("LDGSTS", "UBLKCP", "UTMALDG") for head in heads)
    for part in re.split(r"\n\.nv\.info\.", cuobjdump("-elf", *arch))[1:]:
        name, bound = part.split(None, 1)[0], re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+(\w+)", part)
        if name in found and bound:
            found[name].threads = int(bound[1], 16)
    return found
