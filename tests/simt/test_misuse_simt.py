"""Misuse is an error that names file and line; afterwards the harness works as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

OP = "selftest"
SOURCE = Path(__file__).with_name("selftest_misuse.cuh")
TEXT = SOURCE.read_text()
NAMES = TEXT[TEXT.index("enum class Misuse") :].split("{", 1)[1].split("}", 1)[0].replace(",", " ").split()
MESSAGES = {
    "barrier_in_branch": r"deadlock \(of 64 threads 0 have exited, 40 wait in __syncthreads at .*, 24 wait in a warp ",
    "different_barriers": "threads of a block wait at different __syncthreads",
    "exited_lane": "exited",
    "caller_not_in_mask": r"the calling lane \d+ is not in the mask 0x0000ffff",
    "source_not_in_mask": "shuffle from lane 20, which is not in the mask 0x0000ffff",
    "different_collectives": "lanes of a warp wait in different collectives",
    "shuffle_width": "shuffle width 12 is not a power of two",
    "copy_under_way_at_exit": "cp.async still under way when the thread exits",
    "copy_misaligned": "cp.async from a global address not aligned to 16 bytes",
    "copy_to_global": "cp.async to an address that is not in shared memory",
    "ldmatrix_misaligned": "ldmatrix from a row not aligned to 16 bytes",
    "ldmatrix_from_global": "ldmatrix from an address that is not in shared memory",
}


def line_of(name: str) -> int:
    (line,) = (i for i, text in enumerate(TEXT.splitlines(), 1) if text.endswith(f"// line: {name}"))
    return line


def run_correctly(kernels):
    x, sums = torch.randn(3, 100), torch.zeros(3)
    kernels.row_sums(x, sums)
    torch.testing.assert_close(sums, x.sum(1))


def test_every_misuse_has_a_message():
    assert set(NAMES) == set(MESSAGES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_misuse(kernels, name, seed):
    kernels.schedule(seed)
    with pytest.raises(RuntimeError, match=f"SIMT error: .*{MESSAGES[name]}") as caught:
        kernels.misuse(NAMES.index(name), torch.zeros(512))
    assert f"tests/simt/{SOURCE.name}:{line_of(name)}" in str(caught.value)
    assert "misuse_kernel" in str(caught.value) and "block (" in str(caught.value)
    run_correctly(kernels)


@pytest.mark.parametrize(
    "blocks, threads, shared_bytes, message",
    [
        (0, 32, 0, "invalid grid"),
        (1, 0, 0, "invalid block"),
        (1, 1025, 0, "invalid block"),
        (1, 32, 163 * 1024 + 1, "bytes of dynamic shared memory, over the 166912 of sm_80"),
    ],
)
def test_launches_that_a_gpu_refuses(kernels, blocks, threads, shared_bytes, message):
    with pytest.raises(RuntimeError, match=f"{message}.*{SOURCE.name}:{line_of('launch')}"):
        kernels.launch_nothing(blocks, threads, shared_bytes)
    kernels.launch_nothing(2, 1024, 163 * 1024)
    run_correctly(kernels)
