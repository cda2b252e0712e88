"""What the smoke cases are made of: inputs on a device, tolerances, and a run's named results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncops.backends.dtypes import compute_dtype
from ncops.backends.planes import DIVERGENCES, FLOATS, INDICES

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = (F32, BF16, F16, F64)
COEFFICIENTS = (1, 0.5, 0.3, 0.2, 0.7, 1, 0.4, 0.1, 0.01, 0.6)  # of FLOATS in a loss
TAIL = 300  # rows that are compared where the others only push these beyond 2^31 elements
IGNORE = -100
# The relative error allowed to results in the dtype of the sums, and to gradients in the dtype of the features.
SUMS = {F32: 2e-5, BF16: 2e-5, F16: 2e-5, F64: 1e-11}
GRADIENTS = SUMS | {BF16: 1e-2, F16: 2e-3}
TF32 = 5e-3
TF32_GRADIENTS = 0.1  # of maxima too: rounded scores may take another pair or class for the largest

Outputs = dict[str, Tensor]


class Case(NamedTuple):
    """``run(*make())`` gives named results; those of ``truth(args)`` in float64 are what they should be."""

    name: str
    dtype: torch.dtype
    make: Callable[[], list[Any]]
    run: Callable[..., Outputs]
    tolerance: float
    truth: Callable[[list[Any]], list[Any]] = list
    huge: bool = False  # takes gigabytes: alone, and never on a CPU


def last_rows(args: list[Any], tensors: int = 1, labels: int | None = None) -> list[Any]:
    """Arguments whose first ``tensors``, and the labels at a place, are cut to the last TAIL rows."""
    return [a[-TAIL:] if place < tensors or place == labels else a for place, a in enumerate(args)]


class Data:
    """Inputs on a device, the same in every run. ``reduced`` sizes keep their remainder of 16 and the launcher's choice
    by the number of rows and classes (up to 64, more), so that a CPU gets through them in seconds."""

    def __init__(self, device: str = "cuda", reduced: bool = False):
        self.device, self.reduced = device, reduced

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        return tuple(map(self._size, sizes))

    def _size(self, size: int) -> int:
        if not self.reduced or size <= 72:
            return size
        less = 80 + (size - 72) // 40
        return less - less % 16 + size % 16

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def randn(self, *size: int, dtype: torch.dtype = F32, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        x = torch.empty(size, device=self.device, dtype=dtype)
        return x.normal_(shift, scale, generator=self.generator(sum(size)))

    def labels(self, rows: int, classes: int) -> Tensor:
        """Every 17th is ignored."""
        labels = torch.randint(0, classes, (rows,), device=self.device, generator=self.generator(1))
        labels[::17] = IGNORE
        return labels

    def wide(self, dtype: torch.dtype, *size: int) -> Tensor:
        """Centres and means: in the dtype that the sums have."""
        return self.randn(*size, dtype=compute_dtype(dtype))

    def tailed(self, features: int, dtype: torch.dtype = BF16) -> Tensor:
        """Zeros, and TAIL random rows beyond 2^31 elements."""
        x = torch.zeros((2**31 // features + TAIL + 8, features), device=self.device, dtype=dtype)
        x[-TAIL:] = self.randn(TAIL, features, dtype=dtype)
        return x

    def grid(
        self, shapes: Iterable[tuple[int, ...]], make: Callable[..., list[Any]], run: Callable[..., Outputs],
        tolerances: Mapping[torch.dtype, float], name: str = "",
    ) -> Iterator[Case]:  # fmt: skip
        """A case per shape and dtype, with the inputs ``make(self, *shape, dtype)``."""
        for shape in shapes:
            sizes = self.sizes(*shape)
            for dtype in DTYPES:
                inputs = partial(make, self, *sizes, dtype)
                yield Case(f"{name} {sizes}".strip(), dtype, inputs, run, tolerances[dtype])

    def beyond(
        self, features: int, run: Callable[..., Outputs], tolerance: float,
        rest: Callable[[int], list[Any]] = lambda rows: [], truth: Callable[[list[Any]], list[Any]] = last_rows,
    ) -> Case:  # fmt: skip
        """A case of bfloat16 rows beyond 2^31 elements, with what ``rest`` makes for so many; the truth is that of the
        last ones."""

        def make():
            x = self.tailed(features)
            return [x, *rest(len(x))]

        return Case("rows beyond 2^31", BF16, make, run, tolerance, truth, huge=True)


def columns(stats) -> Outputs:
    return {name: getattr(stats, name) for name in (*FLOATS, *INDICES, "valid")}


def objective(stats) -> Tensor:
    return sum(k * getattr(stats, name).double().sum() for k, name in zip(COEFFICIENTS, FLOATS, strict=True))


def divergences(found) -> Outputs:
    return {name: getattr(found, name) for name in DIVERGENCES}


def divergence(found) -> Tensor:
    """Without the overlap: where p and q agree to all digits of a logit, its gradient is either's."""
    columns = [value.double().sum() for name, value in divergences(found).items() if name != "overlap"]
    return sum(k * column for k, column in zip(COEFFICIENTS[: len(columns)], columns, strict=True))


def gradients(loss: Callable[..., Tensor], which: tuple[int, ...], *args) -> Outputs:
    """The gradients of ``loss(*args)`` by the arguments at these places."""
    args = [a.detach().requires_grad_() if place in which else a for place, a in enumerate(args)]
    found = torch.autograd.grad(loss(*args), [args[place] for place in which])
    return {f"g_{place}": g for place, g in zip(which, found, strict=True)}


def tail(run: Callable[..., Outputs]) -> Callable[..., Outputs]:
    return lambda *args: {name: value[-TAIL:] for name, value in run(*args).items()}
