"""Backward of linear_stats: the logits' gradient in bounded chunks, each multiplied into both results at once.

Per logit the backward has three products of D: recomputed logits, g_x and g_weight. Owning rows (or classes) and
keeping a (128, D) gradient on chip does not work for D in the thousands, so a kernel that recomputes tiles must either
repeat the first product for every slice of D (D/256 times) or add its tile into memory (at 128 classes per tile 32
flops per byte, where a GPU needs 150 to 300). Written once, in chunks of 64 MB, the logits' gradient costs 6 bytes of
traffic for 6 D flops, and what is left are dense products of a chunk: with 8192 rows by 4096 classes the running sums
of g_x and g_weight move 1 byte per 1000 flops. Those are torch's: on an H200 it multiplies such chunks at 700 TFLOP/s.

Sums are float32 (float64 for float64), also those of half precision, over all chunks. The gradient of bfloat16 logits
is kept in bfloat16. That of float16 logits is kept as two bfloat16 numbers, since p / N of a mean loss is below
float16's smallest, and multiplied with the two that a float16 number is: three products, the last digits' own left out.
No atomics: every sum has one owner and a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._launch import capability, device_of, input_precision, launch, row_for_classes
from ._logit_columns import TRITON
from ._logit_gradient import KIND, logit_gradient, row_coefficients
from ._logit_state import halves
from ._logits_tile import Classifier, logits_tile, scaled

WORKSPACE_BYTES = 64 << 20
LEAST_CLASSES = 4096  # of a chunk, where there are so many
ROW_BLOCKS_TOGETHER = 8  # with 16 blocks of classes in flight 24 MB at D = 4096 in bfloat16, which an L2 cache keeps


@triton.jit(do_not_specialize=["num_rows", "num_classes", "all_rows", "first_row", "row_blocks", "class_blocks"])
def _chunk_gradient(
    x, weight, bias, coefficients, indices, chunk, bias_sums,
    num_rows, num_classes, num_features, all_rows, first_row, row_blocks, class_blocks, scale: "fp64",  # noqa: F821
    stride_xn, stride_xd, stride_wv, stride_wd, stride_b, stride_part, stride_chunk, first_class,
    NEED_CHUNK: tl.constexpr, NEED_BIAS: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr, TOGETHER: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of a chunk: the logits' gradient times scale into ``chunk``, with ``SPLIT`` what is lost of it into the
    next part of ``chunk``; its sums over rows into ``bias_sums``.

    ``x``, ``weight`` and ``bias`` begin at the chunk's rows and classes, of which there are ``num_rows`` and
    ``num_classes``; the last tiles are filled up with zeros.
    """
    in_group = tl.program_id(0) % (TOGETHER * class_blocks)
    first_block = tl.program_id(0) // (TOGETHER * class_blocks) * TOGETHER
    together = tl.minimum(row_blocks - first_block, TOGETHER)
    block_n, block_v = first_block + in_group % together, in_group // together
    row = tl.cast(block_n, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    read = tl.minimum(row, num_rows - 1)
    of = Classifier(x, weight, bias, num_features, scale, stride_xn, stride_xd, stride_wv, stride_wd, stride_b)
    z = logits_tile(of, read, tl.minimum(column, num_classes - 1), EVEN_D, PRECISION, DTYPE, BLOCK_D)
    bias_sums += tl.cast(block_n, tl.int64) * stride_chunk
    if SOFTCAP is None:
        _store_gradient(
            z, row, column, coefficients, indices, chunk, bias_sums, num_rows, num_classes, all_rows, first_row, scale,
            stride_part, stride_chunk, first_class, NEED_CHUNK, NEED_BIAS, SPLIT, DTYPE, SOFTCAP,
        )  # fmt: skip
    else:  # half the temporaries at a time: on Hopper 128 x 128 logits spill without
        left, right = halves(z)
        column = block_v * BLOCK_V + tl.arange(0, BLOCK_V // 2)
        _store_gradient(
            left, row, column, coefficients, indices, chunk, bias_sums, num_rows, num_classes, all_rows, first_row,
            scale, stride_part, stride_chunk, first_class, NEED_CHUNK, NEED_BIAS, SPLIT, DTYPE, SOFTCAP,
        )  # fmt: skip
        _store_gradient(
            right, row, column + BLOCK_V // 2, coefficients, indices, chunk, bias_sums, num_rows, num_classes, all_rows,
            first_row, scale, stride_part, stride_chunk, first_class, NEED_CHUNK, NEED_BIAS, SPLIT, DTYPE, SOFTCAP,
        )  # fmt: skip


@triton.jit
def _store_gradient(
    z, row, column, coefficients, indices, chunk, bias_sums, num_rows, num_classes, all_rows, first_row, scale,
    stride_part, stride_chunk, first_class,
    NEED_CHUNK: tl.constexpr, NEED_BIAS: tl.constexpr, SPLIT: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    here = (row < num_rows)[:, None] & (column < num_classes)[None, :]
    read = first_row + tl.minimum(row, num_rows - 1)
    gradient = logit_gradient(z, first_class + column, read, coefficients, indices, all_rows, SOFTCAP)
    gradient = tl.where(here, gradient, 0)
    if NEED_BIAS:
        tl.store(bias_sums + column, tl.sum(gradient, 0))
    if NEED_CHUNK:
        gradient = scaled(gradient, scale)
        out = chunk + row[:, None] * stride_chunk + column[None, :]
        rounded = gradient.to(chunk.dtype.element_ty)
        tl.store(out, rounded)
        if SPLIT:
            tl.store(out + stride_part, (gradient - rounded.to(DTYPE)).to(chunk.dtype.element_ty))


def chunk_shape(rows: int, classes: int, itemsize: int, block_v: int) -> tuple[int, int]:
    """Rows and classes of a chunk: all rows first, as then g_weight needs no running sum, down to 4096 classes.

    Classes are stored in whole blocks of ``block_v``.
    """
    elements = WORKSPACE_BYTES // itemsize
    wide = min(classes, max(elements // rows, min(LEAST_CLASSES, elements // 16)))
    if wide < classes:
        wide = max(block_v, wide // block_v * block_v)
    return min(rows, max(1, elements // (triton.cdiv(wide, block_v) * block_v))), wide


def linear_stats_backward(
    grad: Tensor, floats: Tensor, indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    target: Tensor | None, scale: float, softcap: float, ignore_index: int, allow_tf32: bool,
    need_x: bool, need_weight: bool, need_bias: bool, wide: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, ``weight`` and ``bias`` from recomputed logits, ``wide``: in the compute dtype; size 0 where
    not needed.

    Workspace: a chunk of 64 MB (two for float16); for g_weight a copy of the chunk's rows of x; for half precision
    float32 sums of one chunk of g_weight, and of g_x, of all of it where the vocabulary takes more than one chunk. A
    float16 x and a chunk of the weight are copied as two bfloat16.
    """
    v = weight.shape[0]
    dtype = compute_dtype(x.dtype) if wide else x.dtype
    g_x = x.new_empty(x.shape if need_x else 0, dtype=dtype)
    g_weight = x.new_empty(weight.shape if need_weight else 0, dtype=dtype)
    g_bias = x.new_empty(v if need_bias else 0, dtype=dtype)
    if x.shape[0] == 0:
        return g_x, g_weight.zero_(), g_bias.zero_()
    columns = floats.contiguous(), indices.contiguous()
    with device_of(x):
        rows = row_coefficients(grad, columns, target, v, ignore_index)
        run = _Chunks(x, weight, bias, *rows, scale, softcap, allow_tf32)
        run(g_x, g_weight, g_bias)
    return g_x, g_weight, g_bias


def add_product(out: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``out = a @ b`` if ``first``, else ``out += a @ b``, summed in the dtype of ``out``."""
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=0 if first else 1)
    elif not a.is_cuda or torch.version.hip is not None:  # products of half precision give half precision there
        add_product(out, a.to(out.dtype), b.to(out.dtype), first)
    elif first:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def parts_of(x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """``x`` in ``dtype``, its own if None; for float16 the two bfloat16 whose sum it is."""
    dtype = dtype or x.dtype
    if dtype != torch.float16:
        return (x.to(dtype),)
    upper = x.bfloat16()
    return upper, (x.float() - upper.float()).nan_to_num(0, 0, 0).bfloat16()  # an infinity is in the upper one


def add_parts(out: Tensor, a: tuple[Tensor, ...], b: tuple[Tensor, ...], first: bool) -> None:
    """``add_product`` of numbers in parts, without the product of the last ones."""
    add_product(out, a[0], b[0], first)
    if len(a) > 1:
        add_product(out, a[0], b[1], False)
        add_product(out, a[1], b[0], False)


class _Sums:
    """Where rows of a result are summed: in itself, or in wider memory for all of them or ``rows`` at a time."""

    def __init__(self, result: Tensor, dtype: torch.dtype, rows: int):
        self.result = result
        self.memory = result if result.dtype == dtype else result.new_empty((rows, result.shape[1]), dtype=dtype)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.memory[rows if len(self.memory) == len(self.result) else slice(rows.stop - rows.start)]

    def finish(self, rows: slice) -> None:
        if self.memory is not self.result:
            self.result[rows] = self[rows]


class _Chunks:
    """Walks the chunks: classes outside, rows inside, so that the rows of g_weight are finished one chunk after another
    and only g_x (N x D, where g_weight is V x D) keeps a running sum."""

    def __init__(self, x, weight, bias, coefficients, indices, scale, softcap, allow_tf32):
        self.x, self.weight, self.bias = x, weight, bias
        self.scale, self.softcap, self.allow_tf32 = scale, softcap or None, allow_tf32
        self.coefficients, self.indices = coefficients, indices
        self.dtype = compute_dtype(x.dtype)
        row = row_for_classes("linear_stats_backward", weight.shape[0])
        self.config = launch(row, x.dtype, capability(x.device), allow_tf32)
        self.block_n, self.block_v = self.config["BLOCK_N"], self.config["BLOCK_V"]
        self.parts = 2 if x.dtype == torch.float16 else 1
        self.chunk_dtype = torch.bfloat16 if x.dtype == torch.float16 else x.dtype

    def __call__(self, g_x: Tensor, g_weight: Tensor, g_bias: Tensor) -> None:
        n, v = self.x.shape[0], self.weight.shape[0]
        rows, classes = chunk_shape(n, v, self.x.element_size(), self.block_v)
        x_sums = _Sums(g_x, self.dtype, rows if classes == v else n) if g_x.numel() else None
        weight_sums = _Sums(g_weight, self.dtype, classes) if g_weight.numel() else None
        width = triton.cdiv(classes, self.block_v) * self.block_v
        height = triton.cdiv(rows, self.block_n) * self.block_n if x_sums or weight_sums else 0
        chunk = self.x.new_empty((self.parts, height, width), dtype=self.chunk_dtype)
        starts = range(0, n, rows)
        all_blocks = sum(triton.cdiv(min(rows, n - start), self.block_n) for start in starts)
        bias_sums = self.x.new_empty((all_blocks if g_bias.numel() else 0, width), dtype=self.dtype)
        counted = self.counted(slice(0, n)) if weight_sums and len(starts) == 1 else None
        for first_class in range(0, v, classes):
            these = slice(first_class, min(v, first_class + classes))
            weight = parts_of(self.weight[these]) if x_sums else ()
            block = 0
            for start in starts:
                here = slice(start, min(n, start + rows))
                self.chunk_gradient(here, these, chunk, bias_sums[block:])
                block += triton.cdiv(here.stop - here.start, self.block_n)
                part = chunk[:, : here.stop - here.start, : these.stop - these.start]
                if x_sums:
                    add_parts(x_sums[here], part.unbind(), weight, first_class == 0)
                    if these.stop == v:
                        x_sums.finish(here)
                if weight_sums:
                    own = self.counted(here) if counted is None else counted
                    add_parts(weight_sums[these], part.mT.unbind(), own, start == 0)
            if weight_sums:
                weight_sums.finish(these)
            if g_bias.numel():
                g_bias[these] = bias_sums[:, : these.stop - these.start].sum(0, dtype=torch.float64)

    def counted(self, here: slice) -> tuple[Tensor, ...]:
        """These rows of x; a NaN in one without gradient must not reach the weight: 0 * NaN is NaN."""
        return parts_of(torch.where((self.indices[KIND.value, here] != 0)[:, None], self.x[here], 0))

    def chunk_gradient(self, here: slice, these: slice, chunk: Tensor, bias_sums: Tensor) -> None:
        """Fills ``chunk`` and ``bias_sums`` for rows ``here`` and classes ``these``."""
        n, v, d = here.stop - here.start, these.stop - these.start, self.x.shape[1]
        x, weight = self.x[here], self.weight[these]
        bias = None if self.bias is None else self.bias[these]
        row_blocks, class_blocks = triton.cdiv(n, self.block_n), triton.cdiv(v, self.block_v)
        _chunk_gradient[(row_blocks * class_blocks,)](
            x, weight, bias, self.coefficients, self.indices, chunk, bias_sums,
            n, v, d, self.x.shape[0], here.start, row_blocks, class_blocks, self.scale,
            *x.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), *chunk.stride()[:2], these.start,
            NEED_CHUNK=chunk.numel() > 0, NEED_BIAS=bias_sums.numel() > 0, SPLIT=self.parts == 2,
            EVEN_D=d % self.config["BLOCK_D"] == 0, PRECISION=input_precision(self.allow_tf32),
            DTYPE=TRITON[self.dtype], SOFTCAP=self.softcap, TOGETHER=ROW_BLOCKS_TOGETHER,
            **self.config.options,
        )  # fmt: skip
