"""Backward of linear_stats: the logits' gradient in bounded chunks, each multiplied into both results at once.

Per logit the backward has three products of D: recomputed logits, g_x and g_weight. Owning rows (or classes) and
keeping a (128, D) gradient on chip does not work for D in the thousands, so a kernel that recomputes tiles must either
repeat the first product for every slice of D (D/256 times) or add its tile into memory (at 128 classes per tile 32
flops per byte, where a GPU needs 150 to 300). Written once, in chunks of 64 MB, the logits' gradient costs 6 bytes of
traffic for 6 D flops, and what is left are dense products of a chunk: with 8192 rows by 4096 classes the running sums
of g_x and g_weight move 1 byte per 1000 flops.

- float32 and float64: the products are ``torch.addmm`` into the result. Exact products run on plain FMA units, where
  cuBLAS reaches what the card has; nothing that Triton compiles does.
- bfloat16 and float16: a kernel of ours, since torch would round the running sum to half precision chunk by chunk. It
  adds in float32, writes the result once, and visits only tiles that hold a gradient that counts: a list of them is
  made from flags that the first kernel leaves. The gradient of bfloat16 logits is kept in bfloat16, that of float16
  logits in float32 and multiplied as tf32, because p / N of a mean loss is below float16's smallest number.

No atomics: every sum has one owner and a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import compute_dtype
from ._launch import capability, device_of, input_precision, launch, split_count
from ._live_products import live_product, live_tiles, product
from ._logit_columns import TRITON
from ._logit_gradient import fold_signature, logit_gradient, row_coefficients
from ._logits_tile import logits_tile, scaled

WORKSPACE_BYTES = 64 << 20
LEAST_TILES = 8  # of a part, when few programs own many tiles: below, writing the parts costs more than they save
LEAST_CLASSES = 4096  # of a chunk, where there are so many


@triton.jit(do_not_specialize=["num_rows", "num_classes", "all_rows", "first_row", "row_blocks"])
def _chunk_gradient(
    x, weight, bias, coefficients, indices, chunk, live, bias_sums,
    num_rows, num_classes, num_features, all_rows, first_row, row_blocks, scale: "fp64",  # noqa: F821
    stride_xn, stride_xd, stride_wv, stride_wd, stride_b, stride_chunk, stride_live, first_class,
    HAS_BIAS: tl.constexpr, NEED_CHUNK: tl.constexpr, NEED_LIVE: tl.constexpr, NEED_BIAS: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk: the logits' gradient times scale into ``chunk``, its sums over rows into ``bias_sums``.

    ``x``, ``weight`` and ``bias`` begin at the chunk's rows and classes, of which there are ``num_rows`` and
    ``num_classes``; the last tiles are filled up with zeros. A tile whose gradients are all negligible is not written.
    """
    block_n = tl.program_id(0) % row_blocks
    block_v = tl.program_id(0) // row_blocks
    row = tl.cast(block_n, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    here = (row < num_rows)[:, None] & (column < num_classes)[None, :]
    read = tl.minimum(row, num_rows - 1)
    z = logits_tile(
        x, weight, bias, read, tl.minimum(column, num_classes - 1), num_features, scale,
        stride_xn, stride_xd, stride_wv, stride_wd, stride_b,
        HAS_BIAS, EVEN_D, PRECISION, DTYPE, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    gradient = logit_gradient(z, first_class + column, first_row + read, coefficients, indices, all_rows)
    gradient = tl.where(here, gradient, 0)
    if NEED_BIAS:
        tl.store(bias_sums + tl.cast(block_n, tl.int64) * stride_chunk + column, tl.sum(gradient, 0))
    if NEED_CHUNK:
        out = chunk + row[:, None] * stride_chunk + column[None, :]
        if NEED_LIVE:
            least = tl.load(coefficients + tl.cast(all_rows, tl.int64) * 10 + first_row + read)
            counts = (tl.abs(gradient) <= least[:, None]) == 0  # a NaN counts
            counts = tl.max(tl.max(counts.to(tl.int32), 1), 0)
            tl.store(live + block_n * stride_live + block_v, counts)
            if counts > 0:
                tl.store(out, scaled(gradient, scale).to(chunk.dtype.element_ty))
        else:
            tl.store(out, scaled(gradient, scale))


def chunk_shape(rows: int, classes: int, itemsize: int) -> tuple[int, int]:
    """Rows and classes of a chunk: all rows first, as then g_weight needs no running sum, down to 4096 classes."""
    elements = WORKSPACE_BYTES // itemsize
    wide = min(classes, max(elements // rows, min(LEAST_CLASSES, elements // 16)))
    if wide < classes:
        wide = max(16, wide // 128 * 128 or wide // 16 * 16)
    return min(rows, max(1, elements // wide)), wide


def linear_stats_backward(
    g_lse: Tensor, g_gap: Tensor, g_max: Tensor, g_second: Tensor, g_target_logit: Tensor, g_nll: Tensor,
    g_entropy: Tensor, g_mean: Tensor, g_var: Tensor,
    gap: Tensor, max: Tensor, entropy: Tensor, mean: Tensor, argmax: Tensor, second_index: Tensor,
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, scale: float, ignore_index: int,
    allow_tf32: bool, need_x: bool, need_weight: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias`` from recomputed logits; size 0 where not needed.

    Workspace: a chunk of 64 MB; for half precision also float32 sums of one chunk of g_weight, and of g_x where the
    vocabulary takes more than one chunk.
    """
    v = weight.shape[0]
    g_x = x.new_empty(x.shape if need_x else 0)
    g_weight = weight.new_empty(weight.shape if need_weight else 0)
    g_bias = (x if bias is None else bias).new_empty(v if need_bias else 0)
    if x.shape[0] == 0:
        return g_x, g_weight.zero_(), g_bias.zero_()
    grads = (g_lse, g_gap, g_max, g_second, g_target_logit, g_nll, g_entropy, g_mean, g_var)
    saved = (gap, max, entropy, mean, argmax, second_index)
    with device_of(x):
        coefficients, indices = row_coefficients(grads, saved, target, v, ignore_index, x.dtype)
        run = _Chunks(x, weight, bias, coefficients, indices, scale, allow_tf32)
        run(g_x, g_weight, g_bias)
    return g_x, g_weight, g_bias


class _Chunks:
    """Walks the chunks: classes outside, rows inside, so that the rows of g_weight are finished one chunk after another
    and only g_x (N x D, where g_weight is V x D) keeps a running sum."""

    def __init__(self, x, weight, bias, coefficients, indices, scale, allow_tf32):
        self.x, self.weight, self.bias, self.scale, self.allow_tf32 = x, weight, bias, scale, allow_tf32
        self.coefficients, self.indices = coefficients, indices
        self.dtype = compute_dtype(x.dtype)
        self.half = x.dtype != self.dtype
        self.there = capability(x.device)
        self.config = launch("linear_stats_backward", x.dtype, self.there, allow_tf32)
        self.block_n, self.block_v = self.config["BLOCK_N"], self.config["BLOCK_V"]
        self.chunk_dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else self.dtype

    def __call__(self, g_x: Tensor, g_weight: Tensor, g_bias: Tensor) -> None:
        (n, d), v = self.x.shape, self.weight.shape[0]
        rows, classes = chunk_shape(n, v, self.chunk_dtype.itemsize)
        row_blocks, class_blocks = triton.cdiv(rows, self.block_n), triton.cdiv(classes, self.block_v)
        width = class_blocks * self.block_v
        if self.half:
            self.for_x = launch("linear_stats_g_x", self.x.dtype, self.there)
            self.for_weight = launch("linear_stats_g_weight", self.x.dtype, self.there)
            programs = row_blocks * triton.cdiv(d, self.for_x["BLOCK_D"])
            self.x_splits = split_count(self.there, programs, class_blocks, 1, LEAST_TILES)
            programs = class_blocks * triton.cdiv(d, self.for_weight["BLOCK_D"])
            self.weight_splits = split_count(self.there, programs, row_blocks, 1, LEAST_TILES)
        needed = g_x.numel() > 0 or g_weight.numel() > 0
        chunk = self.x.new_empty((row_blocks * self.block_n if needed else 0, width), dtype=self.chunk_dtype)
        live = self.x.new_empty((row_blocks, class_blocks), dtype=torch.int32)
        starts = range(0, n, rows)
        all_blocks = sum(triton.cdiv(min(rows, n - start), self.block_n) for start in starts)
        bias_sums = self.x.new_empty((all_blocks if g_bias.numel() else 0, width), dtype=self.dtype)
        x_sums = weight_sums = None
        for first_class in range(0, v, classes):
            these = slice(first_class, min(v, first_class + classes))
            block = 0
            for start in starts:
                here = slice(start, min(n, start + rows))
                self.chunk_gradient(here, these, chunk, live, bias_sums[block:])
                block += triton.cdiv(here.stop - here.start, self.block_n)
                x_ends = first_class == 0, these.stop == v
                weight_ends = start == 0, here.stop == n
                if self.half:
                    if g_x.numel():
                        x_sums = self.add_x(g_x, x_sums, chunk, live, here, these, *x_ends)
                    if g_weight.numel():
                        weight_sums = self.add_weight(g_weight, weight_sums, chunk, live, here, these, *weight_ends)
                elif needed:
                    part = chunk[: here.stop - here.start, : these.stop - these.start]
                    if g_x.numel():
                        g_x[here].addmm_(part, self.weight[these], beta=0 if x_ends[0] else 1)
                    if g_weight.numel():  # a NaN in a row without gradient must not reach the weight: 0 * NaN is NaN
                        active = (self.indices[3, here] != 0)[:, None]
                        rows_of_x = torch.where(active, self.x[here], 0)
                        g_weight[these].addmm_(part.t(), rows_of_x, beta=0 if weight_ends[0] else 1)
            if g_bias.numel():
                g_bias[these] = bias_sums[:, : these.stop - these.start].sum(0, dtype=torch.float64)

    def chunk_gradient(self, here: slice, these: slice, chunk: Tensor, live: Tensor, bias_sums: Tensor) -> None:
        """Fills ``chunk``, ``live`` and ``bias_sums`` for rows ``here`` and classes ``these``."""
        n, v, d = here.stop - here.start, these.stop - these.start, self.x.shape[1]
        x, weight = self.x[here], self.weight[these]
        bias = None if self.bias is None else self.bias[these]
        row_blocks = triton.cdiv(n, self.block_n)
        _chunk_gradient[(row_blocks * triton.cdiv(v, self.block_v),)](
            x, weight, bias, self.coefficients, self.indices, chunk, live, bias_sums,
            n, v, d, self.x.shape[0], here.start, row_blocks, self.scale,
            *x.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), chunk.stride(0), live.stride(0),
            these.start, HAS_BIAS=bias is not None, NEED_CHUNK=chunk.numel() > 0, NEED_LIVE=self.half,
            NEED_BIAS=bias_sums.numel() > 0, EVEN_D=d % self.config["BLOCK_D"] == 0,
            PRECISION=input_precision(self.allow_tf32), DTYPE=TRITON[self.dtype], **self.config.options,
        )  # fmt: skip

    def add_x(self, g_x, sums, chunk, live, here, these, first, last):
        """g_x of these rows += chunk @ weight of these classes."""
        n, v = here.stop - here.start, these.stop - these.start
        tiles = live_tiles(live, n, v, self.block_n, self.block_v)
        if sums is None and not (first and last and self.x_splits == 1):
            sums = g_x.new_empty((self.x_splits, *g_x.shape), dtype=self.dtype)
        product(
            self.for_x, tiles, chunk, self.weight[these], None, None if sums is None else sums[:, here], g_x[here],
            first, last, self.block_n, self.block_v,
        )  # fmt: skip
        return sums

    def add_weight(self, g_weight, sums, chunk, live, here, these, first, last):
        """g_weight of these classes += chunk.T @ x of these rows, of which those without gradient count as zero."""
        n, v = here.stop - here.start, these.stop - these.start
        tiles = live_tiles(live.t(), v, n, self.block_v, self.block_n)
        if sums is None and not (first and last and self.weight_splits == 1):
            sums = g_weight.new_empty((self.weight_splits, v, g_weight.shape[1]), dtype=self.dtype)
        part = None if sums is None else sums[:, :v]
        product(
            self.for_weight, tiles, chunk.t(), self.x[here], self.indices[3, here], part, g_weight[these],
            first, last, self.block_v, self.block_n,
        )  # fmt: skip
        return sums


def ahead_of_time(there: int):
    """Every kernel with its launch parameters: ``(name, function, signature, constexprs, options)``."""
    for dtype, name, tf32 in (
        (torch.float32, "fp32", False), (torch.float32, "tf32", True), (torch.bfloat16, "bf16", False),
        (torch.float16, "fp16", False), (torch.float64, "fp64", False),
    ):  # fmt: skip
        config = launch("linear_stats_backward", dtype, there, tf32)
        pointer = f"*{'fp32' if tf32 else name}"
        state = "*fp64" if dtype == torch.float64 else "*fp32"
        chunk = "*bf16" if dtype == torch.bfloat16 else state
        integers = ("num_rows", "num_classes", "num_features", "all_rows", "first_row", "row_blocks", "first_class")
        strides = ("stride_xn", "stride_wv", "stride_chunk", "stride_live")
        signature = {
            "x": pointer, "weight": pointer, "bias": pointer, "coefficients": state, "indices": "*i32",
            "chunk": chunk, "live": "*i32", "bias_sums": state, **dict.fromkeys(integers + strides, "i32"),
            "scale": "fp64",
        }  # fmt: skip
        constexprs = {
            "stride_xd": 1, "stride_wd": 1, "stride_b": 1, "HAS_BIAS": True, "NEED_CHUNK": True, "NEED_BIAS": True,
            "NEED_LIVE": dtype.itemsize == 2, "EVEN_D": True, "PRECISION": input_precision(tf32),
            "DTYPE": TRITON[compute_dtype(dtype)], **config.blocks,
        }  # fmt: skip
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "divisible": ["num_features"]}
        if dtype.itemsize == 2 or tf32:
            options["tensor_cores"] = "HMMA"
        yield f"linear_stats_backward[{name}]", _chunk_gradient, signature, constexprs, options
    for name, kind, chunk in (("bf16", torch.bfloat16, "*bf16"), ("fp16", torch.float16, "*fp32")):
        tile = launch("linear_stats_backward", kind, there)
        for result in ("g_x", "g_weight"):
            of_x, config = result == "g_x", launch(f"linear_stats_{result}", kind, there)
            integers = ("num_owned", "num_inner", "num_features", "blocks", "splits")
            strides = ("stride_inner" if not of_x else "stride_owned", "stride_other", "stride_split", "stride_sum")
            signature = {
                "chunk": chunk, "other": f"*{name}", "active": "*i32", "sums": "*fp32", "out": f"*{name}",
                "tiles": "*i32", "counts": "*i32", **dict.fromkeys((*integers, *strides, "stride_out"), "i32"),
            }  # fmt: skip
            if of_x:
                del signature["active"]
            constexprs = {
                "stride_inner" if of_x else "stride_owned": 1, "stride_feature": 1, "HAS_ACTIVE": not of_x,
                "ADD": True, "FINISH": True, "PRECISION": "ieee" if name == "bf16" else "tf32",
                "BLOCK_M": tile["BLOCK_N"] if of_x else tile["BLOCK_V"],
                "BLOCK_I": tile["BLOCK_V"] if of_x else tile["BLOCK_N"], **config.blocks,
            }  # fmt: skip
            if of_x:
                constexprs["active"] = None
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "divisible": ["num_features"]}
            yield f"linear_stats_{result}[{name}]", live_product, signature, constexprs, options
    yield from fold_signature()
