"""What a benchmark is made of: an op with its contestants (Bench), and one set of sizes with its goals (Case)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.dtypes import compute_dtype

Sizes = Mapping[str, int]
OURS, EAGER, COMPILE = "ncops", "eager", "compile"
# Contestants that need a package, or one kind of device.
PACKAGES = {
    "neural_collapse": "neural_collapse", "liger": "liger_kernel", "cut_cross_entropy": "cut_cross_entropy",
    "faiss": "faiss", "scikit-learn": "sklearn",
}  # fmt: skip
ON_CPU = ("numpy", "one thread", "neural_collapse", "faiss", "scikit-learn")
ON_CUDA = ("liger", "cut_cross_entropy")
EVERYTHING = ("speed", "memory", "accuracy")  # what a case can measure


class Goal(NamedTuple):
    """What is promised with every instruction set, held against what the machine gives in the same run."""

    limit: float | None = None  # least share of the time that the machine's limits leave no way around
    beats: Sequence[str] = ()  # contestants that are nowhere faster
    megabytes: float | None = None  # the most memory beyond inputs and results


@dataclasses.dataclass(frozen=True)
class Bench:
    """An op in one mode: data, contestants, and the work that no implementation can avoid."""

    op: str
    make: Callable[[Sizes, torch.dtype, str, torch.Generator], tuple]
    ours: Callable[..., Any]  # as ``eager`` and the peers it takes what ``make`` returns
    eager: Callable[..., Any]  # the plain expression, which is also compiled
    peers: Mapping[str, Callable[..., Any]]
    other: str  # the contestant of the column "other"
    flops: Callable[[Sizes], float]
    bytes: Callable[[Sizes, int], float]  # of sizes and bytes per element: inputs read once
    base: Sizes  # where the sweeps start
    axes: Mapping[str, Sequence[int]]  # what they sweep
    accuracy: Sizes = dataclasses.field(default_factory=dict)  # the most that the float64 comparison needs
    averages: Mapping[int, int] = dataclasses.field(default_factory=dict)  # column of a mean -> of its variance
    data: Sequence[str] = ("uniform",)
    bf16_products: bool = False  # whether the CPU multiplies bfloat16 as it is where it can; else in float32
    wrt: Sequence[int] = ()  # not empty: contestants are losses, and their gradients by these inputs are formed too

    @property
    def mode(self) -> str:
        return "full" if self.wrt else "forward"

    @functools.cached_property
    def contestants(self) -> dict[str, Callable[..., Any]]:
        runs = {OURS: self.ours, EAGER: self.eager, COMPILE: compiled(self.eager), **self.peers}
        return {name: gradients(run) for name, run in runs.items()} if self.wrt else runs


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
    measures: Sequence[str] = ("speed", "accuracy")
    contestants: Sequence[str] | None = None  # default: what the run asks for
    threads: int | None = None  # default: those of the run
    device: str = "cpu"
    axis: str | None = None  # a point of this sweep

    @property
    def title(self) -> str:
        return f"{self.bench.op} {self.name}"

    @property
    def dtype_name(self) -> str:
        return name_of(self.dtype)

    @property
    def products(self) -> torch.dtype:
        """What is multiplied, whose limit it is held against."""
        direct = self.device != "cpu" or (self.dtype == torch.bfloat16 and self.bench.bf16_products)
        return self.dtype if direct else compute_dtype(self.dtype)

    @property
    def shape(self) -> str:
        """``N=1024 D=768 V=32768``."""
        return " ".join(f"{name}={value}" for name, value in self.sizes.items())

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

    def inputs(self, made_on: str | None = None) -> tuple:
        """The same values in every process and on every device; those of another generator where they stay on the
        device ``made_on`` that they are made on."""
        with torch.device(made_on or "cpu"):
            generator = torch.Generator(made_on or "cpu").manual_seed(0)
            made = self.bench.make(self.sizes, self.dtype, self.data, generator)
        placed = [v.to(made_on or self.device) if isinstance(v, Tensor) else v for v in made]
        return tuple(v.requires_grad_() if place in self.bench.wrt else v for place, v in enumerate(placed))

    def names(self, everything: bool) -> list[str]:
        """Its contestants: those that the goals name, or all that can run here."""
        wanted = self.contestants
        if wanted is None:
            wanted = self.bench.contestants if everything else (OURS, EAGER, COMPILE, self.versus)
        return [n for n in dict.fromkeys(wanted) if n in self.bench.contestants and self._runs_here(n)]

    def _runs_here(self, name: str) -> bool:
        if name in (ON_CUDA if self.device == "cpu" else ON_CPU):
            return False
        return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def full(forward: Bench, loss: Callable[[tuple], Tensor], *places: int, **changes: Any) -> Bench:
    """The bench of forward and backward: a loss of the outputs, and the gradients of the inputs at these places."""
    return dataclasses.replace(
        forward, ours=lambda *inputs: loss(forward.ours(*inputs)), eager=lambda *inputs: loss(forward.eager(*inputs)),
        peers={}, other=EAGER, averages={}, data=("uniform",), wrt=places, **changes,
    )  # fmt: skip


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Inside, torch has so many threads; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def single_thread(function: Callable) -> Callable:
    """``function`` on one thread."""

    def run(*inputs):
        with torch_threads(1):
            return function(*inputs)

    return run


def numpy(function: Callable) -> Callable:
    """``function`` on NumPy views of the inputs; bfloat16, which NumPy lacks, as float32."""

    def view(t):
        if not isinstance(t, Tensor):
            return t
        return (t.float() if t.dtype == torch.bfloat16 else t).numpy()

    return lambda *inputs: function(*map(view, inputs))


def randn(generator: torch.Generator, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=generator, dtype=compute_dtype(dtype)).to(dtype)


def labels(generator: torch.Generator, rows: int, classes: int, data: str) -> Tensor:
    """Uniform classes, or with ``data="zipf"`` a share falling as one over the rank, as tokens of a text do."""
    if data != "zipf":
        return torch.randint(0, classes, (rows,), generator=generator)
    share = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal().cumsum(0)
    where = torch.rand(rows, generator=generator, dtype=torch.float64) * share[-1]
    return torch.searchsorted(share, where).clamp_(max=classes - 1)
