"""Every Triton kernel as its launcher launches it at production sizes, recorded on tensors without memory and no GPU.

tools/budgets.py compiles them. Of the launches that have the same name the first counts.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from ncops import triton_kernels
from ncops.backends.planes import DIVERGENCE_PLANES, FLOATS, INDICES
from ncops.triton_kernels import (
    class_moments,
    class_scatter,
    linear_divergence,
    linear_stats,
    linear_topk,
    logit_divergence,
    logit_stats,
    nearest_class_mean,
    nearest_neighbors,
    pair_stats,
    projected_sqnorms,
)
from ncops.triton_kernels._candidates import candidate
from ncops.triton_kernels._pair_values import NAMES as PAIR_KERNELS
from tools.gpu_day import stand_in

IGNORE = -100
KINDS = {
    "fp32": (torch.float32, False), "tf32": (torch.float32, True), "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False), "fp64": (torch.float64, False),
}  # fmt: skip
# Names by module and function: {row} is the row of the launch table that was asked for last, {kind} one of KINDS and
# {sums} that of the sums, {variant} the problem's own; WORDS are for the kernel's constexprs.
NAMES = {
    "linear_stats._splits": "{row}[{kind}{variant}]",
    "linear_stats._target_logits": "{row}_target[{kind}{variant}]",
    "linear_stats._one_tile": "{row}_only[{kind}]",
    "_descriptor_splits._descriptor_splits": "{row}[{kind}{variant}]",
    "linear_stats_backward._chunk_gradient": "{row}[{kind}{variant}]",
    "linear_topk._logits": "linear_topk.logits[{sums}{GROUP}{variant}]",
    "linear_topk._sums": "linear_topk.sums[{sums}]",
    "linear_topk._largest": "linear_topk.{WHOLE}[{sums}{GROUP}]",
    "logit_stats._splits": "{row}[{kind}{variant}]",
    "logit_stats._gradient": "{row}[{kind}{variant}]",
    "_divergence_passes._shares": "{row}.shares[{kind}{variant}]",
    "_divergence_passes._merge_shares": "{row}.merge{SHARE}[{sums}]",
    "_divergence_passes._sums": "{row}.sums[{kind}{variant}]",
    "_divergence_passes._finish": "{row}.finish{SHARE}[{sums}]",
    "_divergence_gradient._gradients": "{row}[{kind}{variant}]",
    "_logit_state.merge_kernel": "logit_{FINISH}[{sums}]",
    "_logit_gradient.fold": "logit_gradient_fold[{sums}]",
    "class_moments._segments": "class_moments.{MODE}[{kind}]",
    "class_moments._merge": "class_moments.merge.{MODE}[{sums}]",
    "class_moments._finish": "class_moments.finish.{MODE}",
    "class_moments._gradient": "class_moments_backward[{kind}]",
    "class_scatter._scatter": "class_scatter[{kind}{variant}]",
    "class_scatter._merge": "class_scatter.merge[{sums}]",
    "_split_halves._column_squares": "split_halves.squares[{kind}{variant}]",
    "_split_halves._halves": "split_halves[{kind}{variant}]",
    "_split_halves._finish": "split_halves.finish",
    "projected_sqnorms._sqnorms": "projected_sqnorms[{kind}]",
    "projected_sqnorms._basis_gradient": "projected_sqnorms.basis[{kind}]",
    "nearest_class_mean._nearest": "nearest[{kind}]",
    "nearest_class_mean._distance": "nearest_distance[{sums}]",
    "nearest_neighbors._distances": "neighbor_distances[{sums}]",
    "pair_stats._pairs": "pairs[{kind}{variant}]",
    "pair_stats._merge_moments": "merge_moments[{sums}]",
    "pair_stats._merge_partners": "merge_partners[{sums}]",
    "_pair_backward._factors": "pair_factors[{kind},{KERNEL}{variant}]",
    "_pair_backward._apply": "pair_gradient[{kind}{variant}]",
    "_pair_backward._class_sums": "pair_class_sums[{sums}]",
    "_pair_backward._partners": "pair_partners[{sums}{variant}]",
    "_pair_backward._finish": "pair_finish[{sums}]",
    "_row_products._row_products": "row_products[{kind}{variant}]",
    "_rows._column_sums": "column_sums[{sums}]",
    "_rows._centred_rows": "centred_rows[{sums}]",
    "_rows._row_norms": "row_norms[{sums}]",
    "_sorted_rows._label_keys": "label_keys",
    "_sorted_rows._class_starts": "class_starts",
}
WORDS = {
    "FINISH": {True: "columns", False: "share"},
    "MODE": {0: "fresh", 1: "state", 2: "anchor"},
    "SHARE": {False: "", True: "_share"},
    "GROUP": {1: "", 4: ",4", 16: ",16", 64: ",64"},
    "KERNEL": dict(enumerate(PAIR_KERNELS)),
    "WHOLE": {True: "largest", False: "largest_of_many"},
}


class Launch(NamedTuple):
    module: str
    function: str
    specialization: str  # what JITFunction.preload takes


class Problem(NamedTuple):
    """Makes tensors of its dtype, of which nothing but shapes, strides and dtypes is known."""

    kind: str

    @property
    def tf32(self) -> bool:
        return KINDS[self.kind][1]

    @property
    def sums(self) -> str:
        return "fp64" if self.kind == "fp64" else "fp32"

    def x(self, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(size, dtype=dtype or KINDS[self.kind][0], device="meta")

    def wide(self, *size: int) -> torch.Tensor:
        return self.x(*size, dtype=KINDS[self.sums][0])

    def index(self, *size: int) -> torch.Tensor:
        return self.x(*size, dtype=torch.int64)

    def planes(self, n: int) -> tuple[torch.Tensor, ...]:
        """A gradient by the columns of n rows, the float columns and the indices."""
        return self.wide(len(FLOATS), n), self.wide(len(FLOATS), n), self.index(len(INDICES), n)


def launch_all(start: Callable[..., Problem]) -> None:
    """``start`` is told each problem's kind and variant. Widths are multiples of 16, numbers of rows are not."""
    for kind in KINDS:
        _linear(start(kind))
    for kind in ("fp32", "bf16"):
        _capped(start(kind, ",softcap"))
    with candidate("descriptors"):
        for kind, softcap, variant in (("bf16", 0.0, ""), ("fp16", 0.0, ""), ("bf16", 30.0, ",softcap")):
            p = start(kind, variant)
            x, weight, z = p.x(4097, 4096), p.x(50257, 4096), p.wide(4097)
            linear_stats.linear_stats_share(x, weight, None, z, 1.0, softcap, False)
    for kind in ("fp32", "bf16", "fp64"):
        _stored(start(kind))
        _moments(start(kind))
        _topk(start(kind))
    for kind in ("fp32", "bf16"):
        _heads(start(kind, ",one head"), 1)
        _heads(start(kind, ",two heads"), 2)
    for kind in ("fp32", "tf32", "bf16", "fp64"):
        _deviations(kind, start)
    for kind in ("bf16", "fp16"):
        p = start(kind, ",uncentred")
        class_scatter.class_scatter(p.x(50001, 512), None, None, IGNORE, False)
    with candidate("split_halves"):
        for kind in ("fp32", "bf16", "fp16"):
            p = start(kind)
            class_scatter.class_scatter(p.x(50001, 512), p.index(50001), p.wide(1001, 512), IGNORE, False)
        class_scatter.class_scatter(start("fp32", ",uncentred").x(50001, 512), None, None, IGNORE, False)
    for kernel, power, kinds in (
        ("dot", 1, ("fp32", "tf32", "bf16", "fp16")), ("cosine", 1, ("fp64",)), ("distance", 1, ("fp32", "tf32")),
        ("log_distance", 1, ("bf16",)), ("cdnv", 1, ("fp32",)), ("cdnv", 1.3, ("fp32",)), ("riesz", 1.3, ("fp32",)),
        ("gaussian", 1, ("fp64",)), ("angle", 1, ("fp32", "bf16", "fp64")),
    ):  # fmt: skip
        for kind in kinds:
            p = start(kind, f",{kernel}" + ",any power" * (power != 1))
            pair_stats.pair_stats(*_pairs(p, kernel, power))
    for kernel, power, kinds in (
        ("cosine", 1, ("fp32",)), ("cdnv", 1, ("fp32", "tf32", "bf16", "fp64")), ("cdnv", 1.3, ("fp32",)),
    ):  # fmt: skip
        for kind in kinds:
            p = start(kind, ",any power" * (power != 1))
            pairs = _pairs(p, kernel, power)
            k = len(pairs[0])
            pair_stats.pair_stats_backward(p.wide(), p.wide(k), p.index(), p.index(k), *pairs)
    for kernel, kind in (("dot", "bf16"), ("distance", "fp32"), ("angle", "fp32")):
        pair_stats.pair_stats(*_pairs(start(kind, f",{kernel},labels"), kernel, 1, labelled=True))
    for kernel, variant in (("angle", ",unit rows"), ("cosine", ",labels"), ("cdnv", ",labels")):
        p, labelled = start("fp32", variant), variant == ",labels"
        pairs = _pairs(p, kernel, 1, labelled)
        k, sides = len(pairs[0]), (2,) if labelled else ()
        pair_stats.pair_stats_backward(
            p.wide(*sides), p.wide(*sides, k), p.index(*sides), p.index(*sides, k), *pairs
        )
    for kind in KINDS:
        p = start(kind)
        means, valid = p.x(1001, 1024, dtype=torch.float64), p.x(1001, dtype=torch.bool)
        nearest_class_mean.nearest_class_mean(p.x(5001, 1024), means, valid, p.tf32)
        nearest_neighbors.nearest_neighbors(p.x(5001, 1024), p.x(20001, 1024), 20, p.x(20001, dtype=torch.bool), p.tf32)


def _linear(p: Problem) -> None:
    for v in (50257, 100, 64, 16):
        for n in (4097, 64, 32, 16):
            x, weight, bias = p.x(n, 4096), p.x(v, 4096), p.x(v)
            rest = (x, weight, bias, p.index(n), 1.0, 0.0, IGNORE, p.tf32)
            linear_stats.linear_stats(*rest)
            linear_stats.linear_stats_backward(*p.planes(n), *rest, True, True, True)
    n, v = 4097, 50257
    linear_stats.linear_stats_share(p.x(n, 4096), p.x(v, 4096), p.x(v), p.wide(n), 1.0, 0.0, p.tf32)


def _capped(p: Problem) -> None:
    n, v, softcap = 4097, 50257, 30.0
    rest = (p.x(n, 4096), p.x(v, 4096), p.x(v), p.index(n), 1.0, softcap, IGNORE, p.tf32)
    linear_stats.linear_stats(*rest)
    linear_stats.linear_stats_backward(*p.planes(n), *rest, True, True, True)
    _stored(p, softcap)
    _topk(p, softcap)


def _topk(p: Problem, softcap: float = 0.0) -> None:
    for v, k in ((128256, 64), (50257, 1000), (50257, 50257)):
        linear_topk.linear_topk(p.x(4097, 4096), p.x(v, 4096), p.x(v), k, 1.0, softcap, p.tf32)


def _stored(p: Problem, softcap: float = 0.0) -> None:
    n = 4097
    rest = (p.x(n, 50304), p.index(n), 1.0, softcap, IGNORE)
    logit_stats.logit_stats(*rest)
    logit_stats.logit_stats_backward(*p.planes(n), *rest)
    rest = (p.x(n, 50304), p.x(n, 50304), 1.0, softcap, 0.5)
    logit_divergence.logit_divergence(*rest)
    planes = p.wide(len(DIVERGENCE_PLANES), n)
    logit_divergence.logit_divergence_backward(planes, planes, *rest, True, True)


def _heads(p: Problem, heads: int) -> None:
    n, d, v = 4097, 1024, 50304
    other_weight, other_bias = (p.x(v, d), p.x(v)) if heads == 2 else (None, None)
    rest = (p.x(n, d), p.x(v, d), p.x(n, d), other_weight, p.x(v), other_bias, 1.0, 0.0, 0.5, p.tf32)
    linear_divergence.linear_divergence(*rest)
    linear_divergence.linear_divergence_share(*rest[:-2], p.tf32)
    whole = p.x(3, n, dtype=torch.float64)
    linear_divergence.linear_divergence_ratios(*rest[:6], whole, *rest[6:])
    planes = p.wide(len(DIVERGENCE_PLANES), n)
    linear_divergence.linear_divergence_backward(planes, planes, *rest, *[True] * 6)


def _moments(p: Problem) -> None:
    n, d, c = 600_001, 2048, 50257  # so many rows that chunks have the table's length
    x, y, center, counts = p.x(n, d), p.index(n), p.wide(c, d), p.index(c)
    sums, sqnorms = p.x(c, d, dtype=torch.float64), p.x(c, dtype=torch.float64)
    class_moments.class_moments(x, y, c, center, IGNORE)
    class_moments.accumulate_class_moments_(counts, center, sums, sqnorms, p.index(), x, y, IGNORE)
    class_moments.class_moments_backward(p.wide(c, d), sqnorms, x, y, c, center, IGNORE)


def _deviations(kind: str, start: Callable[..., Problem]) -> None:
    p = start(kind)
    n, d, c = 50001, 512, 1001
    x, y, center, basis = p.x(n, d), p.index(n), p.wide(c, d), p.wide(d, d)
    class_scatter.class_scatter(x, y, center, IGNORE, p.tf32)
    class_scatter.class_scatter_backward(basis, x, y, center, IGNORE, p.tf32, True, False)
    projected_sqnorms.projected_sqnorms(x, basis, y, center, IGNORE, p.tf32)
    start(kind, ",transposed")
    rest = (p.wide(n), x, basis, y, center, IGNORE, p.tf32)
    projected_sqnorms.projected_sqnorms_backward(*rest, True, True, False)


def _pairs(p: Problem, kernel: str, power: float, labelled: bool = False) -> tuple:
    k = 9001
    variances = p.wide(k) if kernel == "cdnv" else None
    labels = p.index(k) if labelled else None
    return p.x(k, 512), kernel, variances, power, p.x(k, dtype=torch.bool), labels, IGNORE, p.tf32


def recorded(capability: int) -> dict[str, Launch]:
    """The launches by name, for a GPU of this capability."""
    found: dict[str, Launch] = {}
    fields: dict[str, Any] = {}

    def start(kind: str, variant: str = "") -> Problem:
        problem = Problem(kind)
        fields.update(kind=kind, sums=problem.sums, variant=variant)
        return problem

    def hook(*, fn, compile, **_):
        names = fn.jit_function.arg_names
        constants = {names[at[0]]: getattr(value, "value", value) for at, value in compile["constants"].items()}
        words = {name: words[constants[name]] for name, words in WORDS.items() if name in constants}
        name = NAMES[f"{fn.module.rsplit('.', 1)[-1]}.{fn.name}"].format(**fields, **words)
        found.setdefault(name, Launch(fn.module, fn.name, compile["specialization_data"]))
        return True  # neither compiled nor launched

    stand_in.pretend(capability)
    with stand_in.rows_noted(lambda row, _: fields.update(row=row)):
        triton.knobs.runtime.jit_cache_hook = hook
        try:
            launch_all(start)
        finally:
            triton.knobs.runtime.jit_cache_hook = None
    return found


def fingerprint(launch: Launch) -> str:
    """Of all that a compiled kernel depends on, but Triton's release: its source, what it calls, how it is launched."""
    for module in pkgutil.iter_modules(triton_kernels.__path__):
        for function in vars(importlib.import_module(f"ncops.triton_kernels.{module.name}")).values():
            if isinstance(function, triton.JITFunction) and function.starting_line_number:
                function.starting_line_number, function.hash = 0, None  # where in its file it stands is no matter
    data = json.loads(launch.specialization)
    data["options"].pop("extern_libs")  # a path
    source = getattr(importlib.import_module(launch.module), launch.function).cache_key
    return hashlib.sha256(f"{source} {json.dumps(data, sort_keys=True)}".encode()).hexdigest()


def compiled(launch: Launch, capability: int):
    """What Triton makes of it."""
    stand_in.pretend(capability)
    return getattr(importlib.import_module(launch.module), launch.function).preload(launch.specialization)
