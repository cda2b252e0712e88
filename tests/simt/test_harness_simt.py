"""The harness against models of CUDA in Python: warp functions, votes, conversions, fragments, device memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simt_modules
import torch

OP = "selftest"


def shuffles(x: list[int], width: int, amount: int) -> dict[str, list[int]]:
    """What lane i reads, by CUDA's manual: within segments of ``width`` lanes, its own value where there is none."""
    lanes = range(32)
    start = [i - i % width for i in lanes]
    up = [i - amount if i % width >= amount else i for i in lanes]
    down = [i + amount if i % width + amount < width else i for i in lanes]
    xor = [i ^ amount if (i ^ amount) < start[i] + width else i for i in lanes]
    return {
        "idx": [x[start[i] + amount % width] for i in lanes],
        "xor": [x[j] for j in xor],
        "up": [x[j] for j in up],
        "down": [x[j] for j in down],
    }


def bits(predicates) -> int:
    return sum(1 << i for i, p in enumerate(predicates) if p)


@pytest.mark.parametrize("width, amount", [(32, 1), (32, 16), (16, 5), (8, 3), (8, 9), (4, 2), (1, 0)])
def test_warp_functions(kernels, width, amount):
    x = torch.randint(-5, 6, (32,), dtype=torch.int32)
    out = torch.zeros(12, 32, dtype=torch.int32)
    kernels.warp_functions(x, out, width, amount)
    values = x.tolist()
    expected = list(shuffles(values, width, amount).values())
    remainders = [int(np.fmod(v, 3)) for v in values]  # of C: the sign of the dividend
    expected += [[bits(v > 0 for v in values)] * 32, [0] * 32, [1] * 32]
    expected += [[bits(r == mine for r in remainders) for mine in remainders], [sum(values)] * 32]
    expected += [[values[i ^ 2] for i in range(32)]]
    expected += [[bits(v > 0 and j % 2 == i % 2 for j, v in enumerate(values)) for i in range(32)]]
    expected += [[values[31]] * 32]
    got = (out.numpy().astype(np.int64) & 0xFFFFFFFF).tolist()
    assert got == [[v & 0xFFFFFFFF for v in row] for row in expected]


@pytest.mark.parametrize("threads, leave", [(1, 0), (33, 0), (64, 40), (1024, 5)])
def test_block_votes_among_the_threads_that_have_not_exited(kernels, simt_mode, threads, leave):
    if simt_mode == "tsan" and threads > 256:
        pytest.skip("7 s, most of it for making the 2048 threads that ThreadSanitizer is to see")
    x = (torch.rand(3, threads) < torch.tensor([[0.5], [0.0], [1.1]])).int()
    out = torch.zeros(3, 4, dtype=torch.int32)
    kernels.block_votes(x, out, leave)
    voters = x[:, leave:]
    assert out[:, 0].tolist() == voters.all(1).int().tolist()
    assert out[:, 1].tolist() == voters.any(1).int().tolist()
    assert out[:, 2].tolist() == voters.sum(1).tolist()
    assert out[:, 3].tolist() == [3] * 3


def test_the_last_block_sees_what_the_others_wrote_before_their_fence(kernels):
    x = torch.randint(100, (9,), dtype=torch.int32)
    for seed in range(4):
        kernels.schedule(seed)
        partial, total = torch.zeros(9, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        kernels.last_block(x, partial, total)
        assert total.item() == x.sum().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_round_to_nearest_even(kernels, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    ties = (every[1:].double() + every[:-1].double()).div(2).float()  # exact: one more bit than the half types have
    largest = torch.tensor([torch.finfo(dtype).max]) * torch.tensor([1.0, 1.0009, 1.002, 1.01, 2.0])
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38])
    step = 61 if dtype is torch.float16 else 67  # every pattern would take ten times longer than the other tests
    around = torch.cat([ties[::step], ties[::step].nextafter(every[1::step]), ties[::step].nextafter(every[:-1:step])])
    x = torch.cat([every[::step], around, largest, -largest, special, torch.randn(500), torch.randn(500) * 1e-6])
    y, back = torch.zeros_like(x, dtype=dtype), torch.zeros_like(x)
    kernels.convert(x, y, back)
    expected = x.to(dtype)
    same = y.view(torch.int16) == expected.view(torch.int16)
    assert same[~x.isnan()].all(), x[~same & ~x.isnan()]
    assert (y.view(torch.int16)[x.isnan()] == 0x7FFF).all()  # CUDA's NaN
    assert torch.equal(back.nan_to_num(7), y.float().nan_to_num(7))


def test_scalar_functions(kernels):
    a = torch.tensor([1.5, -2.0, float("nan"), 3.0, -1 - 2**-12, 0.0])
    b = torch.tensor([0.5, float("nan"), 1.0, 4.0, 1 + 2**-12, -0.0])
    out = torch.zeros(8, len(a))
    kernels.scalar_functions(a, b, out)
    assert torch.equal(out[0], torch.fmin(a, b)) and torch.equal(out[1], torch.fmax(a, b))
    fused, rounded = (a.double() * b.double() + 1).float(), a * b + 1
    assert torch.equal(out[2].nan_to_num(7), fused.nan_to_num(7))
    assert torch.equal(out[3].nan_to_num(7), rounded.nan_to_num(7)) and out[2, 4] != out[3, 4]
    words = a.view(torch.int32).tolist()
    assert out[4].tolist() == [32 - (w & 0xFFFFFFFF).bit_length() for w in words]
    assert out[5].tolist() == [(w & 0xFFFFFFFF).bit_count() for w in words]
    torch.testing.assert_close(out[6], a.exp(), equal_nan=True)
    torch.testing.assert_close(out[7], a.abs().log1p(), equal_nan=True)


def test_ldmatrix_by_the_manual(kernels):
    tile = np.arange(256, dtype=np.uint16).reshape(32, 8)
    out = np.zeros((13, 32), np.uint32)
    kernels.ldmatrix(tile, out)
    matrices = tile.reshape(4, 8, 8)

    def fragment(matrix):
        return [int(matrix[i // 4, i % 4 * 2]) | int(matrix[i // 4, i % 4 * 2 + 1]) << 16 for i in range(32)]

    straight = [fragment(m) for m in matrices]
    transposed = [fragment(m.T) for m in matrices]
    assert out.tolist() == straight[:1] + straight[:2] + straight + transposed[:2] + transposed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m, n, depth", [(32, 16, 16), (33, 32, 48), (7, 16, 80)])
def test_tensor_product(kernels, dtype, m, n, depth):
    a, b = torch.randn(m, depth).to(dtype), torch.randn(n, depth).to(dtype)
    for seed in range(2):
        kernels.schedule(seed)
        c = torch.full((m, n), float("nan"))
        kernels.tensor_product(a, b, c)
        torch.testing.assert_close(c.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)


def test_schedules_do_not_change_results(kernels):
    x, results = torch.randn(5, 333), []
    for seed in range(5):
        kernels.schedule(seed)
        sums = torch.zeros(5)
        kernels.row_sums(x, sums)
        results.append(sums)
    assert all(torch.equal(results[0], r) for r in results[1:])
    torch.testing.assert_close(results[0], x.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_arrays_keep_their_alignment_and_layout(kernels, offset):
    source = torch.randn(offset + 6 * 40)[offset:].view(6, 40)
    sums = torch.zeros(6)
    kernels.row_sums(source, sums)
    torch.testing.assert_close(sums, source.sum(1))
    strided = torch.zeros(12)[::2]  # its span goes up, and comes back: what lies between is unchanged
    before = strided.clone()
    kernels.row_sums(source, strided.as_strided((6,), (1,)))
    assert torch.equal(strided.as_strided((6,), (1,)), sums) and before.eq(0).all()


def test_numpy_arrays_and_bad_arguments(kernels):
    counts = np.zeros(4, np.int32)
    kernels.histogram(np.array([0, 1, 1, 3]), counts)
    assert counts.tolist() == [1, 2, 0, 1]
    with pytest.raises(ValueError, match="expected a int64 array, got int32"):
        kernels.histogram(counts, counts)
    with pytest.raises(ValueError, match="negative strides"):
        kernels.histogram(np.array([0, 1])[::-1], counts)
    with pytest.raises(ValueError, match="expected a tensor"):
        kernels.histogram(None, counts)
    with pytest.raises(TypeError, match="expected 2 arguments, got 1"):
        kernels.histogram(counts)
    with pytest.raises(ValueError, match="no kernel for float32"):
        kernels.tensor_product(torch.zeros(16, 16), torch.zeros(16, 16), torch.zeros(16, 16))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_these_kernels_are_cuda(simt_mode, tmp_path):
    """What the harness accepts here, nvcc accepts too."""
    if simt_mode != "plain":
        pytest.skip("once is enough")
    here = Path(__file__).parent
    source = tmp_path / "selftest.cu"
    includes = "".join(f'#include "{path.name}"\n' for path in sorted(here.glob("selftest_*.cuh")))
    instances = "".join(
        f"template cudaError_t selftest::tensor_product(const {t}*, const {t}*, float*, int, int, int, cudaStream_t);\n"
        f"template cudaError_t selftest::convert(const float*, {t}*, float*, int64_t);\n"
        for t in ("__half", "__nv_bfloat16")
    )
    source.write_text(includes + instances)
    command = ["nvcc", "-std=c++17", "-arch=sm_80", "-Werror", "all-warnings", "-Xptxas", "-warn-spills"]
    paths = [f"-I{here}", f"-I{simt_modules.ROOT / 'csrc'}", "-cubin", "-o", str(tmp_path / "selftest.cubin")]
    done = subprocess.run([*command, *paths, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fibers_of_other_machines(simt_mode):
    if simt_mode != "plain":
        pytest.skip("they know no sanitizer")
    kernels = simt_modules.load("selftest", "ucontext")
    x = torch.randn(4, 100)
    for seed in range(3):
        kernels.schedule(seed)
        sums = torch.zeros(4)
        kernels.row_sums(x, sums)
        torch.testing.assert_close(sums, x.sum(1))
    with pytest.raises(RuntimeError, match="deadlock"):
        kernels.misuse(0, torch.zeros(512))
    kernels.row_sums(x, sums)
    torch.testing.assert_close(sums, x.sum(1))
