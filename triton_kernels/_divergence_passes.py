"""Divergences of pairs of rows in two passes over their classes, each cut into splits that are merged in order.

The first pass finds the log-sum-exps, the entropies and the means of d = y - z under p and under q. From them follows
a shift that takes log(q / p) = d - shift, off by some delta: the difference of the log-sum-exps or, where that is its
own rounding, a mean, which lacks the divergence. The second pass adds up sum p f(s) of s = d - shift, f(t) = e^t - 1 -
t: with c = shift - mean it is e^(KL - c) - 1 + c whatever the shift, so KL = c + log1p(sum - c) has no delta in it. The
other sums err by delta^2, and by delta times themselves.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ..backends.planes import DIVERGENCE_PLANES, DIVERGENCE_SHARE_FLOATS
from ._divergence_terms import (
    NEAR,
    Pair,
    exp_rests,
    load_pair,
    log_ratio,
    mixture_logs,
    mixture_rests,
    of_dtype,
    q_above,
)
from ._launch import Launch, capability, split_count, tuned
from ._logit_columns import TRITON
from ._logit_state import NOWHERE, UNDERFLOW, log1p, store_planes
from .logit_stats import blocks_of

ROWS_AT_ONCE = 1 << 19  # bounds the shares at 40 MB where rows are not split
SHARES_PER_PROGRAM = 256
WARPS = 4
# Planes of a share of both distributions, those of q after those of p, and of what all shares come to.
MAX, SUM, WEIGHTED, MEAN = (tl.constexpr(plane) for plane in range(4))
ARGMAX, LOST = (tl.constexpr(plane) for plane in range(2))
LSE, OTHER_LSE, SHIFT = (tl.constexpr(plane) for plane in range(3))
MOMENTS = tl.constexpr(3)  # after the three: mean and entropy of p, then of q; the largest logits are last
SHARE_FLOATS, SHARE_INDICES, ROW_PLANES, SUMS = 8, 4, 9, 6


class Share(NamedTuple):
    """What a distribution, p say, has of some classes of each row; the lowest index has an argmax on ties."""

    max: tl.tensor
    sum: tl.tensor  # of e^(z - max)
    weighted: tl.tensor  # of e^(z - max) (z - max)
    mean: tl.tensor  # of e^(z - max) d, over classes that neither masks
    argmax: tl.tensor
    lost: tl.tensor  # 1 if the other distribution masks a class of this one


@triton.jit
def _empty(ROWS: tl.constexpr, DTYPE: tl.constexpr):
    zero, none = tl.zeros([ROWS], DTYPE), tl.zeros([ROWS], tl.int32)
    return Share(tl.full([ROWS], float("-inf"), DTYPE), zero, zero, zero, none + NOWHERE, none)


@triton.jit
def _add_tile(share, z, d, lost, column):
    """NaN reach the sum by their exponentials, +inf by those of their difference from the maximum."""
    peak = tl.max(z, 1)
    index = tl.min(tl.where(z == peak[:, None], column[None, :], NOWHERE), 1)
    newer = peak > share.max  # the earlier classes win ties
    max = tl.where(newer, peak, share.max)
    top = tl.where(max == float("-inf"), 0, max)
    lower = tl.maximum(share.max - top, UNDERFLOW)
    factor = tl.exp(lower)
    below = z - top[:, None]
    terms = tl.exp(below)
    weighted = factor * (share.weighted + lower * share.sum)
    return Share(
        max,
        share.sum * factor + tl.sum(terms, 1),
        weighted + tl.sum(terms * tl.maximum(below, UNDERFLOW), 1),
        share.mean * factor + tl.sum(terms * d, 1),
        tl.where(newer, index, share.argmax),
        tl.maximum(share.lost, tl.max(lost.to(tl.int32), 1)),
    )


@triton.jit(do_not_specialize=["num_rows", "tiles_per_split", "splits"])
def _shares(
    first, second, bias, other_bias, scale: "fp64", num_classes,  # noqa: F821
    stride_n, stride_v, other_n, other_v, stride_b, other_b,
    floats, indices, num_rows, tiles_per_split, splits,
    ONE_HEAD: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The shares of BLOCK_N rows in one split: ``floats (8, splits, N)`` and ``indices (4, splits, N)``."""
    of = Pair(
        first, second, bias, other_bias, scale, num_classes, stride_n, stride_v, other_n, other_v, stride_b, other_b
    )
    program = tl.cast(tl.program_id(0), tl.int64)
    split = program % splits
    rows = program // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    start = (split * tiles_per_split * BLOCK_V).to(tl.int32)
    end = tl.minimum(start + tiles_per_split * BLOCK_V, num_classes)
    p, q = _empty(BLOCK_N, DTYPE), _empty(BLOCK_N, DTYPE)
    for at in tl.range(start, end, BLOCK_V, num_stages=STAGES):
        column = at + tl.arange(0, BLOCK_V)
        v = load_pair(of, row, column, ONE_HEAD, DTYPE, SOFTCAP)
        p = _add_tile(p, v.z, v.d, v.other_masked & (v.masked == 0), column)
        q = _add_tile(q, v.y, -v.d, v.masked & (v.other_masked == 0), column)
    plane, out, here = tl.cast(splits, tl.int64) * num_rows, split * num_rows + rows, rows < num_rows
    both = (p.max, p.sum, p.weighted, p.mean, q.max, q.sum, q.weighted, q.mean)
    store_planes(floats, out, plane, here, both)
    store_planes(indices, out, plane, here, (p.argmax, p.lost, q.argmax, q.lost))


@triton.jit
def _merged(floats, indices, at, plane, here):
    """``(lse, mean, entropy, max, argmax)`` in float64 of one distribution from all its shares (ROWS, SPLITS).

    The mean is -inf where the other distribution masks a class of this one.
    """
    maxima = tl.load(floats + MAX * plane + at, here, float("-inf")).to(tl.float64)
    sums = tl.load(floats + SUM * plane + at, here, 0).to(tl.float64)
    max = tl.max(maxima, 1)
    lower = tl.maximum(maxima - tl.where(max == float("-inf"), 0, max)[:, None], UNDERFLOW)
    factor = tl.exp(lower)
    total = tl.sum(factor * sums, 1)
    weighted = tl.load(floats + WEIGHTED * plane + at, here, 0).to(tl.float64)
    weighted = tl.sum(factor * (weighted + lower * sums), 1)
    mean = tl.sum(factor * tl.load(floats + MEAN * plane + at, here, 0).to(tl.float64), 1) / total
    argmax = tl.load(indices + ARGMAX * plane + at, here, NOWHERE)
    argmax = tl.min(tl.where(maxima == max[:, None], argmax, NOWHERE), 1)
    lost = tl.max(tl.load(indices + LOST * plane + at, here, 0), 1)
    gap = tl.log(total)
    return max + gap, tl.where(lost > 0, float("-inf"), mean), gap - weighted / total, max, argmax


@triton.jit
def _shift(rise, mean, DTYPE: tl.constexpr):
    """The mean of d where what ``rise``, the difference of the log-sum-exps, is above it may be its rounding."""
    eps: tl.constexpr = 2.0**-52 if DTYPE == tl.float64 else 2.0**-23
    return tl.where(rise - mean > 8 * eps * (1 + tl.abs(mean)), rise, mean)


@triton.jit
def _poisoned(lse, other_lse):
    """Whether a logit is NaN or +inf, or all of one of the rows are -inf."""
    return ((tl.abs(lse) < float("inf")) & (tl.abs(other_lse) < float("inf"))) == 0


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _merge_shares(
    floats, indices, rows_out, tops, num_rows, splits,
    SHARE: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """``rows_out (9, N)``: log-sum-exps, the shift in the precision of the logits, mean of d and entropy of p, of -d
    and q, the largest logits. ``tops``: of a ``SHARE`` of the classes where these are, ``(2, N)``, else whether it is
    one place, ``(N,)``."""
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.arange(0, BLOCK_S)
    at = tl.cast(split, tl.int64)[None, :] * num_rows + row[:, None]
    exists = row < num_rows
    here = exists[:, None] & (split < splits)[None, :]
    num_rows = tl.cast(num_rows, tl.int64)
    plane = num_rows * splits
    lse, mean, entropy, max, argmax = _merged(floats, indices, at, plane, here)
    other = _merged(floats + 4 * plane, indices + 2 * plane, at, plane, here)
    other_lse, other_mean, other_entropy, other_max, other_argmax = other
    rise = other_lse - lse
    shift = tl.where(other_mean > float("-inf"), -_shift(-rise, other_mean, DTYPE), rise)
    shift = tl.where(mean > float("-inf"), _shift(rise, mean, DTYPE), shift)
    shift = shift.to(DTYPE).to(tl.float64)
    values = (lse, other_lse, shift, mean, entropy, other_mean, other_entropy, max, other_max)
    store_planes(rows_out, row, num_rows, exists, values)
    if SHARE:
        store_planes(tops, row, num_rows, exists, (argmax, other_argmax))
    else:
        tl.store(tops + row, (argmax == other_argmax) & (_poisoned(lse, other_lse) == 0), exists)


@triton.jit
def _probability(z, lse, DTYPE: tl.constexpr):
    """e^(z - lse), in two steps: the first, near the maximum, is exact."""
    upper = lse.to(DTYPE)
    return tl.exp((z - upper[:, None]) - (lse - upper.to(tl.float64)).to(DTYPE)[:, None])


@triton.jit(do_not_specialize=["num_rows", "tiles_per_split", "splits"])
def _sums(
    first, second, bias, other_bias, scale: "fp64", num_classes,  # noqa: F821
    stride_n, stride_v, other_n, other_v, stride_b, other_b,
    given, out, num_rows, tiles_per_split, splits, beta: "fp64",  # noqa: F821
    ONE_HEAD: tl.constexpr, DTYPE: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``out (6, splits, N)`` from ``given (3, N)``, both log-sum-exps and the shift.

    The sums are those of p f(s) and q f(-s), of KL(p || m) and KL(q || m), of p where p < q and of q where q < p.
    """
    of = Pair(
        first, second, bias, other_bias, scale, num_classes, stride_n, stride_v, other_n, other_v, stride_b, other_b
    )
    program = tl.cast(tl.program_id(0), tl.int64)
    split = program % splits
    rows = program // splits * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, num_rows - 1)
    start = (split * tiles_per_split * BLOCK_V).to(tl.int32)
    end = tl.minimum(start + tiles_per_split * BLOCK_V, num_classes)
    wide = tl.cast(num_rows, tl.int64)
    lse, other_lse = tl.load(given + row), tl.load(given + OTHER_LSE * wide + row)
    shift = tl.load(given + SHIFT * wide + row)
    lift = tl.exp(other_lse - lse - shift).to(DTYPE)[:, None]  # q times it is p e^s, also where p is 0
    lower = 1 / lift
    shift, beta = shift.to(DTYPE), of_dtype(beta, DTYPE)
    level = other_lse.to(DTYPE) - lse.to(DTYPE)
    zero = tl.zeros([BLOCK_N], DTYPE)
    kl, reverse, mixture, other_mixture, below, other_below = zero, zero, zero, zero, zero, zero
    for at in tl.range(start, end, BLOCK_V, num_stages=STAGES):
        v = load_pair(of, row, at + tl.arange(0, BLOCK_V), ONE_HEAD, DTYPE, SOFTCAP)
        p, q = _probability(v.z, lse, DTYPE), _probability(v.y, other_lse, DTYPE)
        s = log_ratio(v, shift)
        near = tl.abs(s) < NEAR
        t = tl.where(near, s, 0)
        rest, other_rest = exp_rests(t)
        kl += tl.sum(tl.where(near, p * rest, tl.maximum(q * lift - p * (1 + s), 0)), 1)
        reverse += tl.sum(tl.where(near, q * other_rest, tl.maximum(p * lower - q * (1 - s), 0)), 1)
        over_p, over_q = mixture_logs(s, beta)
        far = tl.maximum((1 - beta) * (q - p) - p * over_p, 0)
        other_far = tl.maximum(beta * (p - q) - q * over_q, 0)
        h, other_h = mixture_rests(t, rest, other_rest, beta)
        mixture += tl.sum(tl.where(near, p * h, far), 1)
        other_mixture += tl.sum(tl.where(near, q * other_h, other_far), 1)
        above = q_above(v, level)
        below += tl.sum(above * p, 1)
        other_below += tl.sum((1 - above) * q, 1)
    values = (kl, reverse, mixture, other_mixture, below, other_below)
    store_planes(out, split * num_rows + rows, wide * splits, rows < num_rows, values)


@triton.jit
def _divergence(found, rise, mean, shift):
    """KL from sum p f(d - shift)."""
    c = shift - mean
    kl = tl.where(rise - mean > NEAR, rise - mean, tl.maximum(c + log1p(tl.where(rise - mean > NEAR, 0, found - c)), 0))
    return tl.where(mean == float("-inf"), float("inf"), kl)


@triton.jit
def _total(sums, PLANE: tl.constexpr, plane, at, here):
    return tl.sum(tl.load(sums + PLANE * plane + at, here, 0).to(tl.float64), 1)


@triton.jit(do_not_specialize=["out_plane", "num_rows", "splits"])
def _finish(
    rows_in, sums, out, out_plane, num_rows, splits, beta: "fp64",  # noqa: F821
    SHARE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The planes, in the order of ``DIVERGENCE_PLANES``, from what both passes found.

    In a ``SHARE`` of the classes, that all of one side are masked does not poison the row.
    """
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.arange(0, BLOCK_S)
    at = tl.cast(split, tl.int64)[None, :] * num_rows + row[:, None]
    exists = row < num_rows
    here = exists[:, None] & (split < splits)[None, :]
    num_rows = tl.cast(num_rows, tl.int64)
    plane = num_rows * splits
    lse, other_lse = tl.load(rows_in + row, exists, 0), tl.load(rows_in + OTHER_LSE * num_rows + row, exists, 0)
    moments = rows_in + MOMENTS * num_rows + row
    mean, entropy = tl.load(moments, exists, 0), tl.load(moments + num_rows, exists, 0)
    other_mean = tl.load(moments + 2 * num_rows, exists, 0)
    other_entropy = tl.load(moments + 3 * num_rows, exists, 0)
    shift = tl.load(rows_in + SHIFT * num_rows + row, exists, 0)
    rise = other_lse - lse
    kl = _divergence(_total(sums, 0, plane, at, here), rise, mean, shift)
    reverse = _divergence(_total(sums, 1, plane, at, here), -rise, other_mean, -shift)
    mixture, other_mixture = _total(sums, 2, plane, at, here), _total(sums, 3, plane, at, here)
    below = _total(sums, 4, plane, at, here)
    overlap = below + _total(sums, 5, plane, at, here)
    shift = tl.where(reverse < float("inf"), -other_mean - reverse, rise)
    shift = tl.where(kl < float("inf"), mean + kl, shift)
    js = beta * mixture + (1 - beta) * other_mixture
    values = (
        kl, reverse, js, overlap, entropy, other_entropy, lse, other_lse, shift, mixture, other_mixture, below,
    )  # fmt: skip
    if SHARE:
        bad = ((lse < float("inf")) & (other_lse < float("inf"))) == 0
    else:
        bad = _poisoned(lse, other_lse)
    out_plane = tl.cast(out_plane, tl.int64)
    for k in tl.static_range(len(values)):
        tl.store(out + k * out_plane + row, tl.where(bad, float("nan"), values[k]), exists)


class Rows(NamedTuple):
    """Pairs of rows of products ``(n, V)``, which the kernels' :class:`Pair` reads, and the classes' biases or None."""

    first: Tensor
    second: Tensor
    bias: Tensor | None
    other_bias: Tensor | None
    scale: float
    softcap: float
    one_head: bool

    def part(self, rows: slice) -> "Rows":
        return self._replace(first=self.first[rows], second=self.second[rows])

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.first.dtype)

    @property
    def arguments(self) -> dict:
        biases = {"bias": self.bias, "other_bias": self.other_bias}
        strides = {
            "stride_b": 0 if self.bias is None else self.bias.stride(0),
            "other_b": 0 if self.other_bias is None else self.other_bias.stride(0),
        }
        (stride_n, stride_v), (other_n, other_v) = self.first.stride(), self.second.stride()
        return {
            "first": self.first, "second": self.second, "scale": self.scale, "num_classes": self.first.shape[1],
            "stride_n": stride_n, "stride_v": stride_v, "other_n": other_n, "other_v": other_v,
            "num_rows": self.first.shape[0], "ONE_HEAD": self.one_head, "DTYPE": TRITON[self.dtype],
            "SOFTCAP": self.softcap or None, **biases, **strides,
        }  # fmt: skip


class Cut(NamedTuple):
    """How rows and their classes go to programs."""

    block_n: int
    block_v: int
    row_blocks: int
    splits: int
    per_split: int  # tiles

    def options(self, config: Launch) -> dict:
        return config.options | {"BLOCK_N": self.block_n, "BLOCK_V": self.block_v, "STAGES": config.num_stages}

    def merging(self, n: int) -> tuple[tuple[int], dict]:
        """Grid and options of a kernel that joins the splits of ``n`` rows."""
        block_s = triton.next_power_of_2(self.splits)
        block_n = max(1, SHARES_PER_PROGRAM // block_s)
        return (triton.cdiv(n, block_n),), {"BLOCK_N": block_n, "BLOCK_S": block_s, "num_warps": WARPS}


def cut_of(rows: Rows, config: Launch) -> Cut:
    n, v = rows.first.shape
    block_n, block_v = blocks_of(config, rows.first, rows.second)
    blocks, tiles = triton.cdiv(n, block_n), triton.cdiv(v, block_v)
    splits = split_count(capability(rows.first.device), blocks, tiles, waves=4)
    return Cut(block_n, block_v, blocks, splits, triton.cdiv(tiles, splits))


def empty_planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(floats, agree)`` of the rows of ``x``."""
    n = x.shape[0]
    return x.new_empty((len(DIVERGENCE_PLANES), n), dtype=compute_dtype(x.dtype)), x.new_empty(n, dtype=torch.bool)


def divergences(rows: Rows, beta: float, floats: Tensor, agree: Tensor) -> None:
    """Fills ``floats (12, n)`` and ``agree (n)``.

    Workspace: 72 bytes per row and split (128 in float64) and 72 per row, of at most 2^19 rows at a time.
    """
    _in_parts(rows, lambda config, some, here: _run(config, some, beta, floats[:, here], agree[here], False))


def divergence_share(rows: Rows, floats: Tensor, indices: Tensor) -> None:
    """Fills ``floats (9, n)`` float64 and ``indices (2, n)``, as named in ``ncops.backends.planes``, of some of the
    classes by themselves."""
    of = [DIVERGENCE_PLANES.index(name) for name in DIVERGENCE_SHARE_FLOATS[:-2]]

    def run(config: Launch, some: Rows, here: slice) -> None:
        n = some.first.shape[0]
        planes, places = floats.new_empty((len(DIVERGENCE_PLANES), n)), indices.new_empty((len(indices), n))
        tops = _run(config, some, 0.5, planes, places, True)[-2:]
        poisoned = planes[DIVERGENCE_PLANES.index("lse")].isnan()
        floats[:, here], indices[:, here] = torch.cat([planes[of], tops.masked_fill(poisoned, torch.nan)]), places

    _in_parts(rows, run)


def divergence_ratios(rows: Rows, whole: Tensor, beta: float, out: Tensor) -> None:
    """Fills ``out (4, n)`` float64, as named in ``ncops.backends.planes``, of some of the classes as part of all, whose
    log-sum-exps and shift are ``whole (3, n)``."""

    def run(config: Launch, some: Rows, here: slice) -> None:
        sums = second_pass(some, whole[:, here].contiguous(), beta, cut_of(some, config), config)
        mixture, other_mixture, below, other_below = sums[2:].sum(1, dtype=torch.float64)
        out[:, here] = torch.stack([mixture, other_mixture, below + other_below, below])

    _in_parts(rows, run)


def _in_parts(rows: Rows, run: Callable[[Launch, Rows, slice], None]) -> None:
    n, v = rows.first.shape
    for start in range(0, n, ROWS_AT_ONCE):
        here = slice(start, min(n, start + ROWS_AT_ONCE))
        some = rows.part(here)
        tuned(
            "logit_divergence", rows.first, (here.stop - start, v),
            lambda config, some=some, here=here: run(config, some, here),
        )  # fmt: skip


def _run(config: Launch, rows: Rows, beta: float, floats: Tensor, tops: Tensor, share: bool) -> Tensor:
    """Fills ``floats`` and ``tops`` of all classes, or of a share of them; returns what the first pass found."""
    n, cut = rows.first.shape[0], cut_of(rows, config)
    state = first_pass(rows, cut, config, tops, share)
    sums = second_pass(rows, state[:3], beta, cut, config)
    grid, options = cut.merging(n)
    _finish[grid](state, sums, floats, floats.stride(0), n, cut.splits, beta, SHARE=share, **options)
    return state


def first_pass(rows: Rows, cut: Cut, config: Launch, tops: Tensor, share: bool) -> Tensor:
    """``(9, n)`` float64, of which the second pass reads three planes; fills ``tops`` as :func:`_merge_shares` says."""
    n = rows.first.shape[0]
    floats = rows.first.new_empty((SHARE_FLOATS, cut.splits, n), dtype=rows.dtype)
    indices = rows.first.new_empty((SHARE_INDICES, cut.splits, n), dtype=torch.int32)
    _shares[(cut.row_blocks * cut.splits,)](
        floats=floats, indices=indices, tiles_per_split=cut.per_split, splits=cut.splits, **rows.arguments,
        **cut.options(config),
    )  # fmt: skip
    state = rows.first.new_empty((ROW_PLANES, n), dtype=torch.float64)
    grid, options = cut.merging(n)
    _merge_shares[grid](
        floats, indices, state, tops, n, cut.splits, SHARE=share, DTYPE=TRITON[rows.dtype], **options
    )
    return state


def second_pass(rows: Rows, given: Tensor, beta: float, cut: Cut, config: Launch) -> Tensor:
    """``(6, splits, n)`` sums over these classes from ``given (3, n)`` float64, contiguous: both log-sum-exps and the
    shift over all classes, of which these may be a part."""
    sums = rows.first.new_empty((SUMS, cut.splits, rows.first.shape[0]), dtype=rows.dtype)
    _sums[(cut.row_blocks * cut.splits,)](
        given=given, out=sums, tiles_per_split=cut.per_split, splits=cut.splits, beta=beta, **rows.arguments,
        **cut.options(config),
    )  # fmt: skip
    return sums
