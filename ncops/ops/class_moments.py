"""Counts, sums and squared norms per class: what class means and class variances are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tables
from ..backends.dtypes import compute_dtype
from .checks import (
    check_beside,
    check_device,
    check_dtype,
    check_integer,
    check_label_values,
    check_shape,
    flatten_labels,
    flatten_rows,
    raise_bad_label,
    refuse_forward_mode,
)
from .op import define
from .unit_rows import row_parts, squared_deviations


class ClassMoments(NamedTuple):
    """Moments of ``x - center[label]`` per class. See :func:`class_moments`."""

    counts: Tensor
    sums: Tensor
    sqnorms: Tensor
    invalid: Tensor

    def __repr__(self) -> str:
        return tables.short_repr(self, self._asdict())


def class_moments(
    x: Tensor, labels: Tensor, num_classes: int, *, center: Tensor | None = None, ignore_index: int = -100,
    normalize: bool = False, diagonal: bool = False,
) -> ClassMoments:  # fmt: skip
    """Counts, sums and squared norms of ``x - center[label]`` per class, in one pass over ``x``.

    Args:
        x: ``(..., D)`` features; float32, float64, bfloat16 or float16; any strides.
        labels: ``(...)`` integer class of each row. Rows equal to ``ignore_index`` count nowhere.
        num_classes: C.
        center: ``(C, D)`` anchor of each class, in float32 (float64 for float64 ``x``); None means the origin.
            Anchors inside the classes keep every digit of the class variance when classes are tight.
        ignore_index: the label to skip.
        normalize: the moments of ``x / |x|`` instead; a row of zeros stays zero, as in
            :func:`torch.nn.functional.normalize`. Rows are divided in blocks of 8 MB, or of C rows where those are
            more, and never all at once; for the gradient the blocks are kept.
        diagonal: ``sqnorms`` by dimension, ``(C, D)``: the sums of squares of each class in each dimension, by the same
            blocks.

    Returns:
        ``counts (C,) int64``, ``sums (C, D)`` in float32 (float64 for float64 ``x``), ``sqnorms (C,) float64``, and
        ``invalid () int64``: rows whose label is out of range (always 0 on CPU, where such a row is an error).
        The class variance ``tr Sigma_c`` is ``sqnorms / counts - |sums / counts|^2``.

    Raises:
        ValueError: shape, dtype or device mismatch; on CPU also a label outside ``[0, C)``, naming row and value.

    Gradients flow to ``x`` and ``center`` through ``sums`` and ``sqnorms``. A NaN in ``x`` touches only its class. So
    do deviations whose squares, summed in float32 (float64 for float64 ``x``), overflow, of length 1e18 and more: there
    ``sqnorms`` is inf, or right.
    """
    flat = flatten_rows(x)
    y = flatten_labels(labels, "labels", x, "x")
    num_classes = check_integer(num_classes, "num_classes", 0)
    ignore_index = check_integer(ignore_index, "ignore_index")
    if center is not None:
        check_center(center, flat, (num_classes, x.shape[-1]), "(num_classes, D)")
    refuse_forward_mode("class_moments", x, center)
    if normalize or diagonal:
        return _by_blocks(flat, y, num_classes, center, ignore_index, normalize, diagonal)
    sums, sqnorms, counts, invalid = torch.ops.ncops.class_moments(flat, y, num_classes, center, ignore_index)
    return ClassMoments(counts, sums, sqnorms, invalid)


def _by_blocks(
    x: Tensor, labels: Tensor, num_classes: int, center: Tensor | None, ignore_index: int, normalize: bool,
    diagonal: bool,
) -> ClassMoments:  # fmt: skip
    """Moments of rows that are formed a block at a time, and added up in float64."""
    if not torch.compiler.is_compiling():  # a block would number its rows from its own first
        check_label_values(labels, num_classes, ignore_index, "labels")
    total = None
    for rows, block in row_parts(x, normalize, least=num_classes):
        y = labels[rows]
        sums, sqnorms, *numbers = torch.ops.ncops.class_moments(block, y, num_classes, center, ignore_index)
        if diagonal:
            places = y.clamp(0, max(0, num_classes - 1))
            squares = squared_deviations(block, places, center if num_classes else None)
            sqnorms = torch.ops.ncops.class_moments(squares, y, num_classes, None, ignore_index)[0]
        part = (sums.double(), sqnorms.double(), *numbers)
        total = part if total is None else tuple(a + b for a, b in zip(total, part, strict=True))
    sums, sqnorms, counts, invalid = total
    return ClassMoments(counts, sums.to(compute_dtype(x.dtype)), sqnorms, invalid)


def check_center(center: Tensor, x: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Anchors are kept in the dtype that deviations are computed in."""
    check_beside(center, "center", expected, meaning, x, "x")
    check_dtype(center, "center", compute_dtype(x.dtype), f"x is {x.dtype}")


def accumulate_class_moments_(
    counts: Tensor, center: Tensor, sums: Tensor, sqnorms: Tensor, invalid: Tensor,
    x: Tensor, labels: Tensor, *, ignore_index: int = -100,
) -> None:  # fmt: skip
    """Adds the moments of a batch to a running state, in place; only rows of classes in the batch are touched.

    A class seen for the first time (``counts[c] == 0``) gets as anchor ``center[c]`` the mean of its rows in this call.

    Args:
        counts: ``(C,) int64``.
        center: ``(C, D)`` anchors, float32 (float64 for float64 ``x``).
        sums: ``(C, D) float64``, sum of ``x - center[label]``.
        sqnorms: ``(C,) float64``, sum of ``|x - center[label]|^2``.
        invalid: ``() int64``, grows by the number of out-of-range labels (never on CPU: they raise).
        x: ``(..., D)`` features. labels: ``(...)`` integer classes. ignore_index: the label to skip.

    Raises:
        ValueError: shape, dtype, layout or device mismatch, or on CPU a label outside ``[0, C)``: nothing has changed.
    """
    flat = flatten_rows(x)
    y = flatten_labels(labels, "labels", x, "x")
    ignore_index = check_integer(ignore_index, "ignore_index")
    check_shape(counts, "counts", (counts.shape[0],) if counts.ndim else (0,), "(C,)")
    check_center(center, flat, (counts.shape[0], x.shape[-1]), "(num_classes, D)")
    check_shape(sums, "sums", tuple(center.shape), "(C, D)")
    check_shape(sqnorms, "sqnorms", tuple(counts.shape), "(C,)")
    check_shape(invalid, "invalid", (), "()")
    for t, name, dtype in (
        (counts, "counts", torch.int64),
        (sums, "sums", torch.float64),
        (sqnorms, "sqnorms", torch.float64),
        (invalid, "invalid", torch.int64),
    ):
        check_dtype(t, name, dtype, "the state's dtype")
        check_device(t, name, x, "x")
    for t, name in ((counts, "counts"), (center, "center"), (sums, "sums"), (sqnorms, "sqnorms")):
        if not t.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tuple(t.stride())}")
    # Features that require a gradient must not make the state require one.
    torch.ops.ncops.accumulate_class_moments_(counts, center, sums, sqnorms, invalid, flat.detach(), y, ignore_index)


def _raise_invalid(out, x, labels, num_classes, center, ignore_index):
    if x.device.type == "cpu" and int(out[3]):
        raise_bad_label(labels, num_classes, ignore_index, "labels")
    return out


def _fake(x, labels, num_classes, *_):
    return (
        x.new_empty((num_classes, x.shape[1]), dtype=compute_dtype(x.dtype)),
        x.new_empty((num_classes,), dtype=torch.float64),
        x.new_empty((num_classes,), dtype=torch.int64),
        x.new_empty((), dtype=torch.int64),
    )


def _changed(bad, *arguments):
    """Autograd refuses a gradient that would need the state as it was before; a bad label raises, nothing changed."""
    counts, *_, x, labels, ignore_index = arguments
    torch.autograd.graph.increment_version([t for t in arguments[:5] if not t.is_inference()])
    if x.device.type == "cpu" and int(bad):
        raise_bad_label(labels, counts.shape[0], ignore_index, "labels")


def _setup(ctx, inputs, output):
    x, labels, num_classes, center, ignore_index = inputs
    sums, _, counts, invalid = output
    ctx.save_for_backward(x, labels, center, sums, counts)
    ctx.num_classes, ctx.ignore_index = num_classes, ignore_index
    ctx.mark_non_differentiable(counts, invalid)


def _backward(ctx, g_sums, g_sqnorms, g_counts, g_invalid):
    x, labels, center, sums, counts = ctx.saved_tensors
    g_x = g_center = None
    if ctx.needs_input_grad[0]:
        g_x = torch.ops.ncops.class_moments_backward(
            g_sums, g_sqnorms, x, labels, ctx.num_classes, center, ctx.ignore_index
        )
    if ctx.needs_input_grad[3]:
        g_center = -(counts[:, None] * g_sums + 2 * g_sqnorms[:, None] * sums).to(center.dtype)
    return g_x, None, None, g_center, None


define(
    "class_moments(Tensor x, Tensor labels, SymInt num_classes, Tensor? center, int ignore_index)"
    " -> (Tensor sums, Tensor sqnorms, Tensor counts, Tensor invalid)",
    _fake,
    after=_raise_invalid,
    setup=_setup,
    backward=_backward,
)
define(
    "class_moments_backward(Tensor g_sums, Tensor g_sqnorms, Tensor x, Tensor labels, SymInt num_classes,"
    " Tensor? center, int ignore_index) -> Tensor g_x"
)
define(
    "accumulate_class_moments_(Tensor(a!) counts, Tensor(b!) center, Tensor(c!) sums, Tensor(d!) sqnorms,"
    " Tensor(e!) invalid, Tensor x, Tensor labels, int ignore_index) -> ()",
    lambda *_: None,
    kernel_returns="Tensor",
    after=_changed,
)
