"""Host side of what linear_stats and logit_stats share: the columns, the planes of partial states, the merge launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.dtypes import compute_dtype
from ._logit_state import FLOATS, INTEGERS, columns_kernel

TRITON = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
STATES_PER_PROGRAM = 512
WARPS = 4


def empty_columns(x: Tensor, target: Tensor | None) -> tuple[Tensor, ...]:
    """The 13 columns for the rows of ``x``, each with its own memory; those of the target have size 0 without one."""
    n, dtype = x.shape[0], compute_dtype(x.dtype)
    own = 0 if target is None else n
    floats = [x.new_empty(size, dtype=dtype) for size in (n, n, n, n, own, own, n, n, n)]
    integers = [x.new_empty(size, dtype=torch.int64) for size in (n, n, own)]
    return (*floats, *integers, x.new_empty(own, dtype=torch.bool))


def partials(x: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Memory for the states of ``splits`` parts of each row."""
    n = x.shape[0]
    floats = x.new_empty((FLOATS, splits, n), dtype=compute_dtype(x.dtype))
    return floats, x.new_empty((INTEGERS, splits, n), dtype=torch.int32)


def launch_columns(
    columns: list[Tensor], floats: Tensor, integers: Tensor, target: Tensor | None, target_logit: Tensor | None,
    num_classes: int, per_split: int, ignore_index: int, own_here: bool = True,
) -> None:  # fmt: skip
    """Fills the columns from the states of parts of ``per_split`` classes each."""
    _, splits, n = floats.shape
    block_s = triton.next_power_of_2(splits)
    block_n = max(1, STATES_PER_PROGRAM // block_s)
    columns_kernel[(triton.cdiv(n, block_n),)](
        floats, integers, target, target_logit, 0 if target is None else target.stride(0), *columns,
        n, num_classes, per_split, splits, ignore_index,
        HAS_TARGET=target is not None, OWN_HERE=own_here, BLOCK_N=block_n, BLOCK_S=block_s, num_warps=WARPS,
    )  # fmt: skip


def column_signature():
    """``ahead_of_time`` of the merge."""
    names = "lse gap max second own nll entropy mean var".split()
    for name in ("fp32", "fp64"):
        signature = {
            "floats": f"*{name}", "integers": "*i32", "target": "*i64", "target_logit": f"*{name}",
            **dict.fromkeys(names, f"*{name}"), **dict.fromkeys(("argmax", "second_index", "target_rank"), "*i64"),
            "valid": "*i1", "num_rows": "i32", "num_classes": "i32", "per_split": "i32", "splits": "i32",
            "ignore_index": "i32",
        }  # fmt: skip
        blocks = {"BLOCK_S": 32, "BLOCK_N": STATES_PER_PROGRAM // 32}
        constexprs = {"HAS_TARGET": True, "OWN_HERE": True, "stride_target": 1, **blocks}
        yield f"logit_columns[{name}]", columns_kernel, signature, constexprs, {"num_warps": WARPS, "num_stages": 2}
