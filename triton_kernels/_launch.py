"""Launch parameters: one table of block sizes by kernel, dtype and compute capability, and what launchers share.

Nothing here synchronises and nothing happens at import. Split counts follow from shapes and this table alone, never
from the device that happens to be there, so that results keep their bits between calls and between cards of a kind;
the dense products that torch does in the backward of linear_stats, between those with the same cuBLAS.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """``blocks`` by the names of the kernel's constexpr arguments, and Triton's own two parameters."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch. Fusing is asked for by name: Triton 3.9 warns of a change of its default."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def __getitem__(self, block: str) -> int:
        return self.blocks[block]


# TABLE[kernel][dtype class, capability]. Dtype classes are "half" (bfloat16, float16), "float32", "tf32" (float32 with
# allow_tf32; without a row of its own it takes "float32"), "float64"; "any" serves those without a row. The row of the
# highest capability that is not above the device's counts. Rows of capability 80 must fit the 99 KB of shared memory
# that 86, 89 and 120 have, since these and ROCm use them too; rows of 90 and 100 may use 227 KB.
TABLE: dict[str, dict[tuple[str, int], Launch]] = {
    # A tile of logits in float32 registers: 64 per thread, since its statistics need as many again.
    "linear_stats": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 64, "HALVES": 0}, 8, 3),
        ("half", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64, "HALVES": 1}, 8, 4),
        ("half", 100): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64, "HALVES": 0}, 8, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 8, 3),
        ("float32", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 32, "HALVES": 1}, 8, 3),
        ("float32", 100): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 8, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 32, "BLOCK_D": 16, "HALVES": 0}, 4, 2),
    },
    # Two programs share a multiprocessor, and LANES threads a row. Not measured.
    "linear_stats_descriptors": {
        ("half", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64, "LANES": 4}, 8, 3),
    },
    # A wider tile would multiply padding; one that holds all classes needs no pass for the targets.
    "linear_stats_64_classes": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 64, "HALVES": 0}, 8, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 8, 3),
        ("float32", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 1}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 64, "BLOCK_D": 16, "HALVES": 0}, 4, 2),
    },
    "linear_stats_16_classes": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 16, "BLOCK_D": 64, "HALVES": 0}, 4, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 16, "BLOCK_D": 32, "HALVES": 0}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 16, "BLOCK_D": 16, "HALVES": 0}, 4, 2),
    },
    # Half a tile's worth of registers per thread is a whole row's 4096 logits per 256 threads.
    "logit_stats": {("any", 80): Launch({"BLOCK_N": 1, "BLOCK_V": 4096}, 8, 3)},
    "logit_stats_backward": {("any", 80): Launch({"BLOCK_N": 1, "BLOCK_V": 4096}, 8, 2)},
    # Of 2048 by 256 threads ptxas holds the first pass to 64 registers at 90 and spills up to 6. Not measured.
    "logit_divergence": {
        ("any", 80): Launch({"BLOCK_N": 1, "BLOCK_V": 1024}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 1, "BLOCK_V": 1024}, 8, 3),
    },
    "logit_divergence_backward": {("any", 80): Launch({"BLOCK_N": 1, "BLOCK_V": 1024}, 4, 2)},
    # Of one row, or as many short ones: counting costs a few instructions per number.
    "linear_topk": {("any", 80): Launch({"BLOCK_V": 4096}, 8, 2)},
    "linear_topk.largest": {("any", 80): Launch({"BLOCK_V": 4096}, 16, 2)},
    "linear_stats_backward": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 64}, 8, 3),
        ("half", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 64}, 8, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3),
        ("float32", 90): Launch({"BLOCK_N": 128, "BLOCK_V": 128, "BLOCK_D": 32}, 8, 3),
        ("float32", 100): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 32, "BLOCK_D": 16}, 4, 2),
    },
    "linear_stats_backward_64_classes": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 64}, 8, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 64, "BLOCK_D": 32}, 8, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 32, "BLOCK_D": 16}, 4, 2),
    },
    "linear_stats_backward_16_classes": {
        ("half", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 16, "BLOCK_D": 64}, 4, 3),
        ("float32", 80): Launch({"BLOCK_N": 128, "BLOCK_V": 16, "BLOCK_D": 32}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 16, "BLOCK_D": 16}, 4, 2),
    },
    "linear_stats_64": {
        ("half", 80): Launch({"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 64, "HALVES": 0}, 8, 3),
        ("half", 90): Launch({"BLOCK_N": 64, "BLOCK_V": 128, "BLOCK_D": 64, "HALVES": 0}, 4, 4),
        ("float32", 80): Launch({"BLOCK_N": 64, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 32, "BLOCK_D": 16, "HALVES": 0}, 4, 2),
    },
    "linear_stats_32": {
        ("half", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 64, "BLOCK_D": 128, "HALVES": 0}, 4, 3),
        ("half", 90): Launch({"BLOCK_N": 32, "BLOCK_V": 128, "BLOCK_D": 128, "HALVES": 0}, 4, 3),
        ("float32", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_V": 32, "BLOCK_D": 16, "HALVES": 0}, 4, 2),
    },
    "linear_stats_16": {
        ("half", 80): Launch({"BLOCK_N": 16, "BLOCK_V": 128, "BLOCK_D": 128, "HALVES": 0}, 4, 2),
        ("half", 90): Launch({"BLOCK_N": 16, "BLOCK_V": 128, "BLOCK_D": 128, "HALVES": 0}, 4, 4),
        ("float32", 80): Launch({"BLOCK_N": 16, "BLOCK_V": 64, "BLOCK_D": 32, "HALVES": 0}, 4, 3),
        # 32 deep ptxas holds it to 96 registers at 90 and spills 2.
        ("tf32", 80): Launch({"BLOCK_N": 16, "BLOCK_V": 64, "BLOCK_D": 64, "HALVES": 0}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 16, "BLOCK_V": 32, "BLOCK_D": 32, "HALVES": 0}, 4, 2),
    },
    # A program takes 16 bytes per thread of each row; narrower features take fewer warps.
    "class_moments": {
        ("half", 80): Launch({"CHUNK": 256, "ROWS": 2, "BLOCK_D": 1024}, 4, 2),
        ("half", 90): Launch({"CHUNK": 256, "ROWS": 4, "BLOCK_D": 1024}, 4, 2),
        ("float32", 80): Launch({"CHUNK": 256, "ROWS": 4, "BLOCK_D": 512}, 4, 2),
        ("float64", 80): Launch({"CHUNK": 256, "ROWS": 4, "BLOCK_D": 256}, 4, 2),
        # ptxas spills one register for a seventh block: at 90 with four rows, at 80 with two.
        ("float64", 90): Launch({"CHUNK": 256, "ROWS": 2, "BLOCK_D": 256}, 4, 2),
        ("float64", 100): Launch({"CHUNK": 256, "ROWS": 4, "BLOCK_D": 256}, 4, 2),
    },
    "class_moments.merge": {("any", 80): Launch({"PARTS": 32, "BLOCK_D": 64}, 4, 2)},
    "class_moments.finish": {("any", 80): Launch({"CLASSES": 16, "BLOCK_D": 128}, 4, 2)},
    "class_scatter": {
        ("half", 80): Launch({"BLOCK_D": 128, "BLOCK_N": 32, "FOLD": 2048}, 8, 4),
        ("float32", 80): Launch({"BLOCK_D": 64, "BLOCK_N": 16, "FOLD": 256}, 4, 2),
        ("float32", 90): Launch({"BLOCK_D": 64, "BLOCK_N": 32, "FOLD": 256}, 4, 3),
        ("tf32", 80): Launch({"BLOCK_D": 64, "BLOCK_N": 16, "FOLD": 1024}, 4, 2),
        ("float64", 80): Launch({"BLOCK_D": 32, "BLOCK_N": 16, "FOLD": 1024}, 4, 2),
    },
    # A pass over rows that moves 4 to 12 bytes per number, and one over D x D. Not measured.
    "split_halves": {("any", 80): Launch({"BLOCK_N": 16, "BLOCK_D": 128}, 4, 2)},
    "split_halves.finish": {("any", 80): Launch({"BLOCK_D": 64}, 8, 2)},
    "row_products": {
        ("any", 80): Launch({"BLOCK_N": 64, "BLOCK_J": 64, "BLOCK_D": 32}, 4, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_J": 32, "BLOCK_D": 16}, 4, 2),
    },
    "projected_sqnorms": {
        ("any", 80): Launch({"BLOCK_N": 64, "BLOCK_J": 64, "BLOCK_D": 32}, 4, 3),
        ("any", 90): Launch({"BLOCK_N": 128, "BLOCK_J": 128, "BLOCK_D": 32}, 8, 3),
        ("float64", 80): Launch({"BLOCK_N": 32, "BLOCK_J": 32, "BLOCK_D": 16}, 4, 2),
    },
    "projected_sqnorms.basis": {
        ("any", 80): Launch({"BLOCK_R": 64, "BLOCK_D": 64, "BLOCK_N": 16, "FOLD": 256}, 8, 3),
        ("tf32", 80): Launch({"BLOCK_R": 64, "BLOCK_D": 64, "BLOCK_N": 16, "FOLD": 1024}, 8, 2),
        ("float64", 80): Launch({"BLOCK_R": 32, "BLOCK_D": 32, "BLOCK_N": 16, "FOLD": 1024}, 4, 2),
    },
    "class_moments_backward": {("any", 80): Launch({"BLOCK_N": 4, "BLOCK_D": 512}, 4, 1)},
    "row_means": {("any", 80): Launch({"BLOCK_R": 32, "BLOCK_D": 64}, 4, 2)},
    "row_norms": {("any", 80): Launch({"BLOCK_R": 8, "BLOCK_D": 128}, 4, 2)},
    "nearest_distance": {("any", 80): Launch({"BLOCK_R": 8, "BLOCK_D": 128}, 4, 2)},
    # Blocks are 16 deep or more: Triton 3.7 multiplies nothing less.
    "nearest_class_mean": {
        ("any", 80): Launch({"BLOCK_N": 128, "BLOCK_C": 64, "BLOCK_D": 32}, 8, 3),
        ("any", 90): Launch({"BLOCK_N": 128, "BLOCK_C": 128, "BLOCK_D": 32}, 8, 3),
        ("float64", 80): Launch({"BLOCK_N": 64, "BLOCK_C": 64, "BLOCK_D": 16}, 8, 3),
    },
    # At 90 tiles of 128 x 128 spill outside the loop over features, and take 0.8 of the time of 64 x 64 (H200).
    "pair_products": {
        ("half", 80): Launch({"BLOCK": 64, "BLOCK_D": 64}, 8, 3),
        ("half", 90): Launch({"BLOCK": 128, "BLOCK_D": 64}, 8, 3),
        ("half", 100): Launch({"BLOCK": 64, "BLOCK_D": 64}, 8, 3),
        ("float32", 80): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("float32", 90): Launch({"BLOCK": 128, "BLOCK_D": 32}, 8, 3),
        ("float32", 100): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("float64", 80): Launch({"BLOCK": 32, "BLOCK_D": 16}, 4, 3),
    },
    # The backward's tile, whose factors the next kernel multiplies: of 128 x 128 neither fits its registers.
    "pair_factors": {
        ("any", 80): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("any", 90): Launch({"BLOCK": 64, "BLOCK_D": 32}, 4, 3),
        ("any", 100): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("float64", 80): Launch({"BLOCK": 32, "BLOCK_D": 16}, 4, 3),
    },
    "pair_distances": {
        ("any", 80): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("any", 90): Launch({"BLOCK": 128, "BLOCK_D": 32}, 8, 3),
        ("any", 100): Launch({"BLOCK": 64, "BLOCK_D": 16}, 4, 3),
        ("float64", 80): Launch({"BLOCK": 32, "BLOCK_D": 16}, 4, 3),
    },
    # By class, with its masks: on four warps ptxas spills up to 477 with Triton 3.6. Not measured.
    "pair_distances_labels": {
        ("any", 80): Launch({"BLOCK": 64, "BLOCK_D": 16}, 8, 3),
        ("any", 90): Launch({"BLOCK": 64, "BLOCK_D": 32}, 8, 3),
        ("any", 100): Launch({"BLOCK": 64, "BLOCK_D": 16}, 8, 3),
        ("float64", 80): Launch({"BLOCK": 32, "BLOCK_D": 16}, 4, 3),
    },
    # A power of any exponent is a float64 logarithm and exponential per pair: 64 x 64 by 256 threads spills 32 times.
    # With two stages ptxas holds it to 128 registers at 90 and spills 8.
    "pair_distances_power": {("any", 80): Launch({"BLOCK": 32, "BLOCK_D": 16}, 4, 3)},
    # (BLOCK x BLOCK) factors times (BLOCK x BLOCK_D) rows.
    "pair_gradient": {
        ("float32", 80): Launch({"BLOCK_D": 32, "FOLD": 256}, 8, 2),
        ("half", 80): Launch({"BLOCK_D": 32, "FOLD": 256}, 8, 2),
        ("float64", 80): Launch({"BLOCK_D": 32, "FOLD": 256}, 4, 2),
    },
    "pair_partners": {("any", 80): Launch({"BLOCK_R": 32, "BLOCK_D": 64}, 4, 2)},
}

# Under the interpreter no block is larger than this: tests with tiny shapes cross block borders.
INTERPRETED_BLOCK = 16
_overrides: list[tuple[str, dict[str, int]]] = []

# Streaming multiprocessors of the card that a row of the table is written for.
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
INTERPRETED_MULTIPROCESSORS = 4


def interpreted() -> bool:
    """Kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when Triton was imported), so on CPU tensors too."""
    return triton.knobs.runtime.interpret


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    rows_of_ampere = torch.version.hip is not None or (major, minor) in ((8, 6), (8, 7), (8, 9)) or major >= 12
    return 80 if rows_of_ampere else 10 * major + minor


def capability(device: torch.device) -> int | None:
    """The capability whose rows ``device`` uses, e.g. 90; None under the interpreter. Never synchronises."""
    if interpreted():
        return None
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def device_of(tensor: Tensor):
    """Context in which launches go to the device of ``tensor``."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dtype_class(dtype: torch.dtype, tf32: bool = False) -> str:
    if dtype == torch.float32:
        return "tf32" if tf32 else "float32"
    return "float64" if dtype == torch.float64 else "half"


def input_precision(tf32: bool, across: bool = False) -> str:
    """``tl.dot``'s argument for float32 products: tf32 where the user allowed it, else exact.

    Exact are three tf32 products of upper and lower halves. What is left out is below 2^-21 of a term, and
    Triton gives each block of features a sum of its own, so that late ones keep their digits. On an H200 they take
    a fourth to an eighth of the time of Triton's plain float32 and are no less exact. ``across``: the sum runs over the
    rows of both operands. Tensor cores do not take tf32 that way; turned by way of shared memory it takes twice as long
    as plain products.
    """
    if tf32:
        return "tf32"
    return "ieee" if across or torch.version.hip is not None else "tf32x3"


CLASS_TILES = (16, 64)  # tiles so wide hold all classes where there are no more


def row_for_classes(kernel: str, num_classes: int) -> str:
    """The name of the launch parameters of ``kernel`` for so many classes: wider tiles would multiply padding."""
    return next((f"{kernel}_{most}_classes" for most in CLASS_TILES if num_classes <= most), kernel)


def launch(kernel: str, dtype: torch.dtype, capability: int | None, tf32: bool = False) -> Launch:
    """The parameters of ``kernel`` for inputs of ``dtype``; ``capability`` None gives the interpreter's."""
    rows, wanted = TABLE[kernel], dtype_class(dtype, tf32)
    for name in (wanted, "float32", "any") if wanted == "tf32" else (wanted, "any"):
        written = sorted(least for kind, least in rows if kind == name)
        if written:
            break
    else:
        raise KeyError(f"{kernel}: no launch parameters for {wanted}")
    config = rows[name, max((least for least in written if least <= (capability or 80)), default=written[0])]
    if capability is not None:
        return config
    blocks = {name: min(size, INTERPRETED_BLOCK) for name, size in config.blocks.items()}
    for name, changed in _overrides:
        if name == kernel:
            blocks |= changed
    return replace(config, blocks=blocks)


@contextmanager
def override(kernel: str, **blocks: int) -> Iterator[None]:
    """Other block sizes for ``kernel`` under the interpreter: for tests."""
    unknown = blocks.keys() - next(iter(TABLE[kernel].values())).blocks.keys()
    if unknown:
        raise ValueError(f"{kernel}: no blocks named {', '.join(sorted(unknown))}")
    _overrides.append((kernel, blocks))
    try:
        yield
    finally:
        _overrides.pop()


def split_count(capability: int | None, programs: int, tiles: int, waves: int = 2, least: int = 1) -> int:
    """Into how many parts to cut the ``tiles`` of each of ``programs`` programs so that they fill ``waves`` waves.

    No part is empty, and each has at least ``least`` tiles where there are so many. A function of its arguments alone.
    """
    known = max((c for c in MULTIPROCESSORS if c <= (capability or 80)), default=80)
    size = INTERPRETED_MULTIPROCESSORS if capability is None else MULTIPROCESSORS[known]
    wanted = max(1, -(-waves * size // max(1, programs)))
    per_split = max(least, -(-tiles // wanted), 1)
    return max(1, -(-tiles // per_split))


# ---- Autotuning: opt-in with NCOPS_AUTOTUNE=1, remembered for the life of the process.

_tuned: dict[tuple, Launch] = {}
# What parameters may ask for and a device, or the assembler for it, not have.
UNFIT = (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError)


def autotuning(tensor: Tensor) -> bool:
    """Whether parameters are tuned for ``tensor``: where asked for, except under the interpreter."""
    return os.environ.get("NCOPS_AUTOTUNE", "") == "1" and tensor.is_cuda and not interpreted()


def alternatives(config: Launch) -> list[Launch]:
    """The table's parameters, and neighbours: twice and half the warps, one stage more and less, half of each block."""
    found = [config]
    for warps in (config.num_warps // 2, config.num_warps * 2):
        if 1 <= warps <= 16:
            found.append(replace(config, num_warps=warps))
    for stages in (config.num_stages - 1, config.num_stages + 1):
        if stages >= 1:
            found.append(replace(config, num_stages=stages))
    for name, size in config.blocks.items():
        if name.startswith("BLOCK") and size >= 32:
            found.append(replace(config, blocks={**config.blocks, name: size // 2}))
    return found


def tuned(kernel: str, tensor: Tensor, shape: tuple[int, ...], run: Callable[[Launch], Any], tf32: bool = False) -> Any:
    """``run(config)`` with the parameters of ``kernel`` for ``tensor``, on its device.

    With ``NCOPS_AUTOTUNE=1`` the first call of each (kernel, dtype, device, shape class) times the alternatives, which
    synchronises; ``run`` must then give the same when it is repeated. A shape class holds the sizes with equally many
    binary digits. While a CUDA graph is captured nothing is timed: it takes what an earlier call found, or the table's.
    """
    with device_of(tensor):
        config = launch(kernel, tensor.dtype, capability(tensor.device), tf32)
        if autotuning(tensor):
            key = (kernel, dtype_class(tensor.dtype, tf32), tensor.device, *(size.bit_length() for size in shape))
            if key not in _tuned and not capturing():
                _tuned[key] = min(alternatives(config), key=lambda candidate: milliseconds(run, candidate))
            config = _tuned.get(key, config)
        return run(config)


def capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def milliseconds(run: Callable[[Launch], Any], config: Launch, repeats: int = 5) -> float:
    """The least time of a few runs; infinite where the device cannot run it."""
    try:
        run(config)  # compiles
        return min(elapsed(lambda: run(config)) for _ in range(repeats))
    except UNFIT:
        return float("inf")


def elapsed(call: Callable[[], Any]) -> float:
    """Milliseconds of the current stream that ``call`` takes."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)
