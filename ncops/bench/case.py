"""What a benchmark is made of: an op with its contestants (Bench), and one set of sizes with its goals (Case)."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Sizes = Mapping[str, int]
OURS, EAGER, COMPILE = "ncops", "eager", "compile"
# Contestants that need a package, or one kind of device.
PACKAGES = {"neural_collapse": "neural_collapse", "liger": "liger_kernel", "cut_cross_entropy": "cut_cross_entropy"}
ON_CPU, ON_CUDA = ("numpy", "one thread", "neural_collapse"), ("liger", "cut_cross_entropy")


class Goal(NamedTuple):
    """The least that is promised, as ratios within one run on two threads; None promises nothing."""

    limit: float | None = None  # share of the time that the machine's limits leave no way around
    eager: float | None = None  # times faster than the eager expression
    compile: float | None = None  # than the same under torch.compile
    other: float | None = None  # than the contestant in the column "other"
    megabytes: float | None = None  # the most memory beyond inputs and results


@dataclasses.dataclass(frozen=True)
class Bench:
    """An op in one mode: data, contestants, and the work that no implementation can avoid."""

    op: str
    mode: str  # "forward", or "full" for forward and backward
    make: Callable[[Sizes, torch.dtype, str, torch.Generator], tuple]
    contestants: Mapping[str, Callable[..., Any] | None]  # each takes what ``make`` returns
    other: str  # the contestant of the column "other"
    flops: Callable[[Sizes], float]
    bytes: Callable[[Sizes, int], float]  # of sizes and bytes per element: inputs read once
    base: Sizes  # where the sweeps start
    axes: Mapping[str, Sequence[int]]  # what they sweep
    accuracy: Sizes = dataclasses.field(default_factory=dict)  # the most that the float64 comparison needs
    averages: Mapping[int, int] = dataclasses.field(default_factory=dict)  # column of a mean -> of its variance
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    data: Sequence[str] = ("uniform",)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement of a bench."""

    bench: Bench
    name: str
    sizes: Sizes
    dtype: torch.dtype = torch.float32
    data: str = "uniform"
    goal: Goal = Goal()
    other: str | None = None  # default: the bench's
    measures: Sequence[str] = ("speed", "accuracy")  # also "memory"
    contestants: Sequence[str] | None = None  # default: what the run asks for
    threads: int | None = None  # default: those of the run
    device: str = "cpu"
    axis: str | None = None  # a point of this sweep

    @property
    def title(self) -> str:
        return f"{self.bench.op} {self.name}"

    @property
    def versus(self) -> str:
        return self.other or self.bench.other

    @property
    def flops(self) -> float:
        return self.bench.flops(self.sizes)

    @property
    def bytes(self) -> float:
        return self.bench.bytes(self.sizes, self.dtype.itemsize)

    def with_sizes(self, **sizes: int) -> Case:
        return dataclasses.replace(self, sizes={**self.sizes, **sizes})

    def at_most(self, limits: Sizes) -> Case:
        return self.with_sizes(**{k: min(v, limits[k]) for k, v in self.sizes.items() if k in limits})

    def inputs(self, seed: int = 0) -> tuple:
        """The same values in every process and on every device."""
        made = self.bench.make(self.sizes, self.dtype, self.data, torch.Generator().manual_seed(seed))
        return tuple(self._moved(value) for value in made)

    def _moved(self, value):
        if not isinstance(value, Tensor) or self.device == "cpu":
            return value
        return value.detach().to(self.device).requires_grad_(value.requires_grad)

    def names(self, everything: bool) -> list[str]:
        """Its contestants: those that the goals name, or all that can run here."""
        wanted = self.contestants
        if wanted is None:
            wanted = self.bench.contestants if everything else (OURS, EAGER, COMPILE, self.versus)
        return [n for n in dict.fromkeys(wanted) if self._runs_here(n)]

    def _runs_here(self, name: str) -> bool:
        if name in ON_CPU and self.device != "cpu" or name in ON_CUDA and self.device == "cpu":
            return False
        package = PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            return False
        return self.bench.contestants.get(name) is not None


def compiled(function: Callable) -> Callable:
    """``function`` under torch.compile, for the shapes at hand: nothing is dearer than at its best."""

    @functools.cache
    def build():
        return torch.compile(function, dynamic=False)

    return lambda *inputs: build()(*inputs)


def gradients(loss: Callable[..., Tensor]) -> Callable:
    """Forward and backward: the gradients of every input that requires one."""

    def run(*inputs):
        return torch.autograd.grad(loss(*inputs), [t for t in inputs if isinstance(t, Tensor) and t.requires_grad])

    return run


def requiring(make: Callable[..., tuple], *places: int) -> Callable[..., tuple]:
    """``make``, with the inputs at these places requiring a gradient."""

    def run(*how):
        return tuple(value.requires_grad_() if i in places else value for i, value in enumerate(make(*how)))

    return run


def full(forward: Bench, loss: Callable[[tuple], Tensor], *places: int, **changes: Any) -> Bench:
    """The bench of forward and backward: a loss of the outputs, and the gradients of the inputs at these places."""

    def of(name: str) -> Callable[..., Tensor]:
        return lambda *inputs: loss(forward.contestants[name](*inputs))

    contestants = {OURS: of(OURS), EAGER: of(EAGER), COMPILE: compiled(of(EAGER))}
    return dataclasses.replace(
        forward, mode="full", make=requiring(forward.make, *places), other=EAGER, averages={}, data=("uniform",),
        contestants={name: gradients(run) for name, run in contestants.items()}, **changes,
    )  # fmt: skip


def single_thread(function: Callable) -> Callable:
    """``function`` on one thread."""

    def run(*inputs):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*inputs)
        finally:
            torch.set_num_threads(before)

    return run


def numpy(function: Callable) -> Callable:
    """``function`` on NumPy views of the inputs; bfloat16, which NumPy lacks, as float32."""

    def view(t):
        if not isinstance(t, Tensor):
            return t
        return (t.float() if t.dtype == torch.bfloat16 else t).numpy()

    return lambda *inputs: function(*map(view, inputs))


def randn(generator: torch.Generator, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    wide = dtype if dtype == torch.float64 else torch.float32
    return torch.randn(*size, generator=generator, dtype=wide).to(dtype)


def labels(generator: torch.Generator, rows: int, classes: int, data: str) -> Tensor:
    """Uniform classes, or with ``data="zipf"`` a share falling as one over the rank, as tokens of a text do."""
    if data != "zipf":
        return torch.randint(0, classes, (rows,), generator=generator)
    share = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal().cumsum(0)
    where = torch.rand(rows, generator=generator, dtype=torch.float64) * share[-1]
    return torch.searchsorted(share, where).clamp_(max=classes - 1)
