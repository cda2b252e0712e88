"""Classes spread over real processes, against one process that holds all of them and has seen all rows."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from class_shard_cases import D, batch, bits, check_same_bits, check_same_geometry, one_and_shards, same
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ncops
from ncops.distributed import ShardedClassStatistics, class_shards
from ncops.distributed.agreement import together
from ncops.distributed.exchange import rounds
from ncops.stats import blocks

pytestmark = pytest.mark.slow

# -- equal to one process ---------------------------------------------------------------------------------------------


def agree_with_one_process(rank, ranks, classes, dtype, scatter, receive_bytes):
    blocks_of_two_classes = mock.patch.object(blocks, "BLOCK_BYTES", 2 * 8 * D)
    with blocks_of_two_classes, mock.patch.object(class_shards, "RECEIVE_BYTES", receive_bytes):
        return check_against_one_process(rank, ranks, classes, dtype, scatter)


def check_against_one_process(rank, ranks, classes, dtype, scatter):
    dtype = getattr(torch, dtype)
    one, shards = one_and_shards(rank, ranks, classes, dtype, scatter=scatter, diagonal=scatter)
    start, stop = shards.classes
    assert int(shards.local.counts.sum()) == int(one.counts[start:stop].sum())
    assert torch.equal(shards.local.counts[: stop - start], one.counts[start:stop])
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for min_count in (1, 8, 10_000):
        want = one.compute(min_count)
        check_same_geometry(shards.compute(min_count), want, **tolerance)
        for dst in range(ranks):
            got = shards.compute(min_count, dst=dst)
            assert (got is None) == (rank != dst)
            if rank == dst:
                check_same_geometry(got, want, **tolerance)

    whole = shards.gather()
    assert isinstance(whole, ncops.ClassStatistics)
    assert torch.equal(whole.counts, one.counts) and whole.input_dtype == dtype
    check_same_geometry(whole.compute(2), shards.compute(2), rtol=1e-13, atol=1e-13)
    last = shards.gather(dst=ranks - 1)
    assert (last is None) == (rank != ranks - 1)
    if last is not None:
        check_same_bits(last, whole)
    whole.update(*batch(0, ranks, 9, classes, dtype))  # an ordinary one goes on
    whole.merge(one)

    _, again = one_and_shards(rank, ranks, classes, dtype, scatter=scatter, diagonal=scatter)
    assert same(bits(shards), bits(again)), "the same rows give the same bits"
    return shards.classes


@pytest.mark.parametrize(
    ("ranks", "classes", "dtype", "scatter", "receive_bytes", "ranges"),
    [
        (2, 7, "float32", True, 1 << 20, [(0, 4), (4, 7)]),
        (3, 11, "bfloat16", False, 1 << 20, [(0, 4), (4, 8), (8, 11)]),
        (3, 2, "float64", True, 1 << 20, [(0, 1), (1, 2), (2, 2)]),  # more ranks than classes
        (3, 4, "float16", True, 11 * D * 2, [(0, 2), (2, 4), (4, 4)]),  # received eleven rows at a time
        (1, 3, "float32", True, 1, [(0, 3)]),  # and one at a time
    ],
)
def test_equals_one_process(on_ranks, ranks, classes, dtype, scatter, receive_bytes, ranges):
    assert on_ranks(ranks, agree_with_one_process, ranks, classes, dtype, scatter, receive_bytes) == ranges


def class_left_out(rank, ranks, classes, ignored):
    one = ncops.ClassStatistics(classes, D, ignore_index=ignored)
    shards = ShardedClassStatistics(classes, D, ignore_index=ignored)
    for r in range(ranks):
        x, y = batch(r, ranks, 0, classes, torch.float32)
        y = y.where(y >= 0, ignored)
        one.update(x, y)
        if r == rank:
            shards.update(x, y)
    check_same_geometry(shards.compute(), one.compute(), rtol=1e-5, atol=1e-6)


def test_a_class_that_is_the_ignore_index_counts_nowhere(on_ranks):
    on_ranks(2, class_left_out, 2, 7, 3)


def spoilt(rank, step, ranks, classes):
    x, y = batch(rank, ranks, step, classes, torch.float32)
    if len(x):
        x[3, 1], x[5, 0], y[5] = float("nan"), float("inf"), -100  # the second row is ignored whatever it holds
    return x, y


def nonfinite_modes(rank, ranks, classes):
    for mode in ("propagate", "skip"):
        one = ncops.ClassStatistics(classes, D, scatter=True, nonfinite=mode)
        shards = ShardedClassStatistics(classes, D, scatter=True, nonfinite=mode)
        for step in range(2):
            for r in range(ranks):
                one.update(*spoilt(r, step, ranks, classes))
            shards.update(*spoilt(rank, step, ranks, classes))
        want = one.compute()
        check_same_geometry(shards.compute(), want, rtol=1e-5, atol=1e-6)
        check_same_geometry(shards.gather().compute(), want, rtol=1e-5, atol=1e-6)
        assert want.means.isnan().any() == (mode == "propagate")
        assert want.coverage["skipped_rows"] == (0 if mode == "propagate" else 4)
        assert shards.gather().nonfinite == mode
    strict = ShardedClassStatistics(classes, D, nonfinite="raise")
    strict.update(*batch(rank, ranks, 0, classes, torch.float32))
    before = bits(strict)
    cause = r"update: rank 0: x: 1 of 20 rows hold a NaN or an infinity, first row 3; update: rank 1: x: 1 of 27 rows"
    with pytest.raises(ValueError, match=cause):
        strict.update(*spoilt(rank, 0, ranks, classes))
    assert same(before, bits(strict))


def test_rows_that_are_not_finite(on_ranks):
    on_ranks(3, nonfinite_modes, 3, 5)


def nothing_seen(rank, ranks):
    shards = ShardedClassStatistics(4, D, scatter=True)
    one = ncops.ClassStatistics(4, D, scatter=True)
    check_same_geometry(shards.compute(), one.compute())
    check_same_bits(shards.gather(), one)
    empty = torch.zeros(0, D, dtype=torch.float64), torch.zeros(0, dtype=torch.int32)
    shards.update(*empty)
    one.update(*empty)
    check_same_geometry(shards.compute(), one.compute())
    check_same_bits(shards.gather(), one)
    x, y = torch.randn(2, 3, D, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.uint8)  # leading dimensions
    with torch.inference_mode():
        shards.update(x, y)
    shards.update(x.requires_grad_(), y)
    assert shards.compute().num_samples == 12 * ranks and not shards.local.sums.requires_grad
    shards.reset()
    assert shards.updates == 0 and shards.input_dtype is None
    shards.update(x.detach().float(), y)
    assert shards.compute().num_samples == 6 * ranks
    return repr(shards)


def test_nothing_seen_empty_batches_and_reset(on_ranks):
    assert on_ranks(2, nothing_seen, 2)[1] == (
        "ShardedClassStatistics(num_classes=4, dim=5, scatter=True, rank=1 of 2, classes=[2, 4), device='cpu')"
    )


def in_a_group(rank, classes):
    group = dist.new_group([0, 2])
    if rank == 1:
        with pytest.raises(ValueError, match="group: this process is not one of its ranks"):
            ShardedClassStatistics(classes, D, group=group)
        return None
    shards = ShardedClassStatistics(classes, D, group=group)
    shards.update(*batch(rank // 2, 1, 0, classes, torch.float32))
    got = shards.compute(dst=1)
    assert (got is None) == (rank == 0)
    assert torch.equal(shards.gather().counts, shards.gather().counts)
    return None if got is None else got.counts.tolist()


def test_a_group_of_some_ranks(on_ranks):
    one = ncops.ClassStatistics(6, D)
    for rank in range(2):
        one.update(*batch(rank, 1, 0, 6, torch.float32))
    assert on_ranks(3, in_a_group, 6) == [None, None, one.compute().counts.tolist()]


# -- what is refused --------------------------------------------------------------------------------------------------


def refusals(rank, ranks, classes):
    """Every wrong thing that rank 1 alone does; the words that each rank hears."""
    _, shards = one_and_shards(rank, ranks, classes, torch.float32, steps=1, scatter=True)
    good = batch(rank, ranks, 1, classes, torch.float32)
    x, y = good
    wrong = {
        "shape": lambda: shards.update(x[:, :3], y),
        "labels' shape": lambda: shards.update(x, y[:-1]),
        "label": lambda: shards.update(x, torch.full_like(y, classes)),
        "label's dtype": lambda: shards.update(x, y.float()),
        "no tensor": lambda: shards.update(None, y),
        "dtype": lambda: shards.update(x.double(), y),
        "min_count": lambda: shards.compute(0),
    }
    heard, before = {}, bits(shards)
    for name, call in wrong.items():
        with pytest.raises(ValueError) as error:
            if rank == 1:
                call()
            elif name == "min_count":
                shards.compute(1)
            else:
                shards.update(*good)
        heard[name] = str(error.value)
        assert same(before, bits(shards)), name

    one_by_one = {
        "dst": lambda: shards.compute(dst=rank + 7),
        "another dst": lambda: shards.gather(dst=rank),
        "another min_count": lambda: shards.compute(min_count=rank + 1),
        "another call": lambda: shards.compute() if rank == 1 else shards.update(*good),
        "first dtype": lambda: ShardedClassStatistics(4, D).update(x.double() if rank == 1 else x, y * 0),
        "num_classes": lambda: ShardedClassStatistics(classes + rank, D).update(*good),
        "nonfinite": lambda: ShardedClassStatistics(4, D, nonfinite=("skip", "raise", "skip")[rank]).compute(),
    }
    for name, call in one_by_one.items():
        with pytest.raises(ValueError) as error:
            call()
        heard[name] = str(error.value)
        assert same(before, bits(shards)), name
    shards.update(*good)
    assert shards.updates == 2
    return heard


def test_what_one_rank_must_refuse_every_rank_refuses(on_ranks):
    ranks = on_ranks(3, refusals, 3, 7)
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] == {
        "shape": "update: rank 1: x: expected shape (..., dim) with dim = 5, got (30, 3)",
        "labels' shape": "update: rank 1: labels: expected shape x.shape[:-1] = (30,), got (29,)",
        "label": "update: rank 1: labels: expected values in [0, 7) or ignore_index=-100, got 7 at row 0 of 30",
        "label's dtype": "update: rank 1: labels: expected an integer dtype, got torch.float32",
        "no tensor": "update: rank 1: x: expected a tensor, got NoneType",
        "dtype": "update: rank 1: x: expected torch.float32, the dtype of the first update, got torch.float64",
        "min_count": "compute: rank 1: min_count: expected at least 1 (a class without rows has no mean), got 0",
        "dst": "; ".join(f"compute: rank {r}: dst: expected None or a rank in [0, 3), got {r + 7}" for r in range(3)),
        "another dst": "gather: dst differs between ranks: 0 on rank 0, 1 on rank 1",
        "another min_count": "compute: min_count differs between ranks: 1 on rank 0, 2 on rank 1",
        "another call": "call differs between ranks: update on rank 0, compute on rank 1",
        "first dtype": "update: dtype of x differs between ranks: torch.float32 on rank 0, torch.float64 on rank 1",
        "num_classes": "update: num_classes differs between ranks: 7 on rank 0, 8 on rank 1",
        "nonfinite": "compute: nonfinite differs between ranks: skip on rank 0, raise on rank 1",
    }


def faults_of_two_kinds(rank):
    def prepare():
        raise (ValueError("wrong"), MemoryError("none left"))[rank]

    with pytest.raises(RuntimeError, match="^call: rank 0: wrong; call: rank 1: MemoryError: none left$"):
        together("call", prepare, None)


def test_a_fault_that_no_caller_has_made_is_no_value_error(on_ranks):
    on_ranks(2, faults_of_two_kinds)


def out_of_step(rank, ranks, classes):
    _, shards = one_and_shards(rank, ranks, classes, torch.float32, steps=1)
    good = batch(rank, ranks, 1, classes, torch.float32)
    if rank == 1:  # its rows have arrived when memory runs out
        update, shards.local.update = shards.local.update, lambda *_: torch.empty(1 << 60)
        with pytest.raises(RuntimeError):
            shards.update(*good)
        shards.local.update = update
    else:
        shards.update(*good)
    for call in (shards.compute, lambda: shards.update(*good)):
        with pytest.raises(RuntimeError, match=r"rank 1: RuntimeError: an update has failed halfway: reset\(\)"):
            call()
    shards.reset()
    shards.update(*good)
    if rank == 0:
        shards.reset()
    with pytest.raises(ValueError, match="compute: input_dtype differs between ranks: None on rank 0, float32 on"):
        shards.compute()
    if rank == 0:
        shards.local.input_dtype = torch.float32
    with pytest.raises(ValueError, match="compute: updates differs between ranks: 0 on rank 0, 1 on rank 1"):
        shards.compute()


def test_ranks_that_are_out_of_step(on_ranks):
    on_ranks(2, out_of_step, 2, 5)


def test_arguments_and_no_process_group(tmp_path):
    with pytest.raises(RuntimeError, match="ShardedClassStatistics: torch.distributed is not initialised"):
        ShardedClassStatistics(4, 3)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for wrong in ({"num_classes": 0}, {"dim": True}, {"nonfinite": "drop"}):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
                ShardedClassStatistics(**{"num_classes": 4, "dim": 3, **wrong})
    finally:
        dist.destroy_process_group()


# -- memory and rounds ------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that any operation made or was given."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            if isinstance(t, torch.Tensor) and t.device.type != "meta":
                self.elements = max(self.elements, t.numel())
        return out


def largest(rank, ranks, classes):
    x, y = batch(rank, 1, 0, classes, torch.float32)
    with LargestTensor() as seen:
        shards = ShardedClassStatistics(classes, D)
        for _ in range(2):
            shards.update(x, y)
        here = shards.compute(dst=0)
    start, stop = shards.classes
    assert here is None or here.means.numel() < classes * D / ranks, "K is small here"
    assert seen.elements <= (stop - start) * D
    state = [t for t in vars(shards.local).values() if isinstance(t, torch.Tensor)]
    assert max(t.numel() for t in state) == (stop - start) * D
    with LargestTensor() as seen:
        shards.gather(dst=0)
    return seen.elements


def test_no_rank_holds_all_classes(on_ranks):
    classes, ranks = 1001, 3
    elements = on_ranks(ranks, largest, ranks, classes)
    assert elements[0] == classes * D, "the instrument sees a C x D tensor where there is one"
    assert max(elements[1:]) <= 334 * D


def test_rounds_send_every_row_once_in_order():
    counts = torch.tensor([[3, 0, 5], [0, 0, 4], [2, 0, 1]])
    arrived: dict[int, list] = {0: [], 1: [], 2: []}
    sizes = []
    for start, stop in rounds(counts, limit=4):
        for owner in range(3):
            new = [(s, i) for s in range(3) for i in range(int(start[s, owner]), int(stop[s, owner]))]
            arrived[owner] += new
            sizes.append(len(new))
    assert max(sizes) == 4
    for owner in range(3):
        assert arrived[owner] == [(s, i) for s in range(3) for i in range(int(counts[s, owner]))]
    assert len(list(rounds(torch.zeros(2, 2, dtype=torch.int64), limit=4))) == 1
