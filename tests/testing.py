"""What the op tests share: dtypes, memory layouts, error bounds relative to plain torch, determinism."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ncops.backends.dtypes import compute_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
IGNORE = -100

# Same values, another memory layout; "expanded" repeats the first row with stride 0.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.t().contiguous().t(),
    "row_stride": lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
    "column_stride": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every_other_row": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "expanded": lambda x: x[:1].expand(x.shape),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def randn(*size: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return (torch.randn(*size, dtype=torch.float64) * scale + shift).to(dtype)


def random_labels(n: int, classes: int, ignored: float = 0.2) -> Tensor:
    """Labels below ``classes``, some of them ignored."""
    labels = torch.randint(0, max(1, classes), (n,))
    return labels.masked_fill(torch.rand(n) < ignored if classes else torch.ones(n, dtype=torch.bool), IGNORE)


def plain(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors in the dtype that plain torch computes in: the error that ours is held against."""
    return [t if t is None or not t.is_floating_point() else t.to(compute_dtype(t.dtype)) for t in tensors]


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None or not t.is_floating_point() else t.double() for t in tensors]


def assert_accurate(
    ours: Tensor, torchs: Tensor, truth: Tensor, *, what: str = "", scale: float | None = None, eps: float = 8
) -> None:
    """Our error against float64 is at most twice plain torch's, plus ``eps`` roundings of ``scale``.

    ``scale`` is the size of the numbers that were added up; None takes the largest result. Non-finite values agree.
    """
    assert ours.shape == truth.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    truth, mine, theirs = truth.detach(), ours.detach().double(), torchs.detach().double()
    finite = truth.isfinite()
    torch.testing.assert_close(mine[~finite], truth[~finite], equal_nan=True, msg=lambda m: f"{what}: {m}")
    assert mine[finite].isfinite().all(), f"{what}: not finite where float64 is"
    if not finite.any():
        return
    error = (mine - truth)[finite].abs().max().item()
    reference = (theirs - truth)[finite].nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    scale = truth[finite].abs().max().item() if scale is None else scale
    if ours.dtype == torch.float64:  # then the truth is rounded as we are, and plain torch's error shows as zero
        eps *= 4
    bound = 2 * reference + eps * torch.finfo(ours.dtype).eps * scale
    assert error <= bound, f"{what}: error {error:.3g}, plain torch {reference:.3g}, bound {bound:.3g}"


def bits(outputs) -> list[Tensor]:
    """Results as integers, so that equality means the same bits, NaN included."""
    views = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [t.detach().contiguous().view(views[t.element_size()]) for t in outputs if isinstance(t, Tensor)]


@contextmanager
def held(put: Callable[[Any], None], before: Any, value: Any) -> Iterator[None]:
    """A setting of torch at ``value``, and then as it was ``before``."""
    put(value)
    try:
        yield
    finally:
        put(before)


def threads(count: int) -> AbstractContextManager:
    return held(torch.set_num_threads, torch.get_num_threads(), count)


def assert_deterministic(run: Callable[[], object], backend: str) -> None:
    """The same bits twice, and for the native kernels also under another number of threads."""
    counts = (2, 2, 1) if backend == "cpu" else (1, 1)  # torch's own products may depend on the number of threads
    results = []
    for count in counts:
        with threads(count):
            results.append(bits(run()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def assert_compiles(run: Callable, *args, backend: str = "aot_eager") -> None:
    """``fullgraph=True`` gives the eager result, gradients of floating arguments included."""

    def values(function):
        inputs = [a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        outputs = function(*inputs)
        outputs = [o for o in ([outputs] if isinstance(outputs, Tensor) else outputs) if isinstance(o, Tensor)]
        loss = [o.double().sum() for o in outputs if o.requires_grad]
        wanted = [i for i in inputs if isinstance(i, Tensor) and i.requires_grad]
        return outputs, torch.autograd.grad(sum(loss), wanted, allow_unused=True) if loss else ()

    torch._dynamo.reset()
    compiled = values(torch.compile(run, fullgraph=True, backend=backend))
    torch.testing.assert_close(compiled, values(run), equal_nan=True)


def interpreter_blocks(kernels: dict[str, dict[str, int]]):
    """An autouse fixture: these blocks instead of 16 under Triton's interpreter, where a program costs milliseconds."""

    @pytest.fixture(autouse=True)
    def blocks(request):
        with ExitStack() as stack:
            if "backend" in request.fixturenames and request.getfixturevalue("backend") == "triton":
                from ncops.triton_kernels import _launch

                for kernel, sizes in kernels.items() if _launch.interpreted() else ():
                    stack.enter_context(_launch.override(kernel, **sizes))
            yield

    return blocks


def block_rows(monkeypatch: pytest.MonkeyPatch, size: int = 512) -> None:
    """Makes the reference's row blocks so small that every test of it crosses block borders."""
    from ncops.reference import _blocks

    monkeypatch.setattr(_blocks, "BLOCK_BYTES", size)


def nan_in_fresh_memory() -> AbstractContextManager:
    """Results that a kernel never writes are NaN, and not what happened to lie there."""
    return held(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), True)


def before_an_unreadable_page(values: Tensor) -> Tensor:
    """A copy that ends where memory does: what reads past its end is stopped by the machine."""
    size = values.numel() * values.element_size()
    if size == 0:
        return values
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + room
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=room - size)
    return copy.view(values.shape).copy_(values)


class Adapted(torch.nn.Linear):
    """A layer that is more than the product with its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x.flip(-1) @ self.weight.T
