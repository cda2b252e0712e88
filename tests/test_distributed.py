"""Statistics summed over real processes, against one process that saw everything."""

from __future__ import annotations

import pytest
import torch

import ncops

C, D, RANKS = 12, 6, 3


def data(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight classes far from the origin; rank 1 has other classes and fewer rows, rank 2 none at all."""
    g = torch.Generator().manual_seed(7 + rank)
    n, classes = ((90, C - 2), (35, C // 2), (0, 1))[rank]
    labels = torch.randint(0, classes, (n,), generator=g) + (C - classes if rank == 1 else 0)
    means = 100 * torch.nn.functional.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(1)), dim=1)
    x = means[labels] + 1e-4 * torch.randn(n, D, generator=g)
    labels[::17] = -100
    return x, labels


def seen(rank: int, scatter: bool) -> ncops.ClassStatistics:
    stats = ncops.ClassStatistics(C, D, scatter=scatter)
    x, y = data(rank)
    for start in range(0, len(x), 40):
        stats.update(x[start : start + 40], y[start : start + 40])
    return stats


def as_numbers(geometry) -> dict:
    names = ("classes", "counts", "class_var", "means", "within_cov", "global_mean", "sample_mean")
    return {n: None if getattr(geometry, n) is None else getattr(geometry, n).tolist() for n in names}


def reduce_classes(rank: int, scatter: bool, inplace: bool) -> dict:
    stats = seen(rank, scatter)
    before = {k: v.clone() for k, v in stats.state_dict().items() if k != "config"}
    total = stats.all_reduce(inplace=inplace)
    assert (total is stats) == inplace
    if inplace:
        with pytest.raises(RuntimeError, match="hold the sum over all ranks"):
            stats.update(*data(0))
        with pytest.raises(RuntimeError, match="hold the sum over all ranks"):
            stats.all_reduce()
    else:
        for name, value in before.items():
            assert torch.equal(stats.state_dict()[name], value), name
        stats.update(*data(0))  # goes on
    result = as_numbers(total.compute()) | {"coverage": total.compute().coverage}
    if inplace:
        stats.reset()
        stats.update(*data(0))
        assert stats.counts.sum() > 0
    return result


@pytest.mark.parametrize(("scatter", "inplace"), [(True, False), (False, True)])
def test_class_statistics_equal_one_process(on_ranks, scatter, inplace):
    ranks = on_ranks(RANKS, reduce_classes, scatter, inplace)
    assert ranks[0] == ranks[1] == ranks[2], "every rank is left with the same bits"
    one = ncops.ClassStatistics(C, D, scatter=scatter)
    for rank in range(RANKS):
        one.update(*data(rank))
    expected = as_numbers(one.compute()) | {"coverage": one.compute().coverage}
    assert ranks[0]["coverage"] == expected.pop("coverage")
    for name, value in expected.items():
        if value is None:
            assert ranks[0][name] is None
            continue
        got, want = torch.tensor(ranks[0][name]), torch.tensor(value)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-14 if name in ("within_cov", "class_var") else 1e-9)


def reduce_decisions(rank: int) -> dict:
    geometry = seen(0, False).compute()
    weight = torch.randn(C, D, generator=torch.Generator().manual_seed(5))
    mine = ncops.DecisionStatistics(geometry, weight)
    mine.update(*data(rank))
    total = mine.all_reduce()
    return {name: value.tolist() for name, value in total.state_dict().items() if name != "config"}


def test_decision_statistics_equal_one_process(on_ranks):
    ranks = on_ranks(RANKS, reduce_decisions)
    geometry = seen(0, False).compute()
    one = ncops.DecisionStatistics(geometry, torch.randn(C, D, generator=torch.Generator().manual_seed(5)))
    for rank in range(RANKS):
        one.update(*data(rank))
    for name, value in one.state_dict().items():
        if name != "config":
            for rank in range(RANKS):
                torch.testing.assert_close(torch.tensor(ranks[rank][name]), value, check_dtype=False)


def single_rows(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of one row on some rank: beside many on rank 0, beside one elsewhere, far from many, and alone."""
    labels = torch.tensor(([0] * 9 + [1, 2], [0, 1, 3, 4] + [2] * 40, [0, 4, 5])[rank])
    g = torch.Generator().manual_seed(rank)
    x = 50.0 * labels[:, None] + torch.randn(len(labels), D, generator=g)
    return x + 30.0 * ((labels == 2) & (rank == 1))[:, None], labels


def reduce_single_rows(rank: int) -> dict:
    stats = ncops.ClassStatistics(C, D, scatter=True)
    stats.update(*single_rows(rank))
    return as_numbers(stats.all_reduce().compute())


def test_classes_of_one_row_on_other_ranks(on_ranks):
    ranks = on_ranks(RANKS, reduce_single_rows)
    assert ranks[0] == ranks[1] == ranks[2]
    rows = [torch.cat(parts) for parts in zip(*map(single_rows, range(RANKS)), strict=True)]
    x, y = rows[0].double(), rows[1]
    means = torch.stack([x[y == c].mean(0) for c in range(6)])
    r = x - means[y]
    assert ranks[0]["counts"] == [11, 2, 41, 1, 2, 1]
    expected = {
        "means": means, "within_cov": r.T @ r / len(x), "sample_mean": x.mean(0), "global_mean": means.mean(0),
        "class_var": torch.stack([r[y == c].square().sum(1).mean() for c in range(6)]),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(ranks[0][name]).double(), value, rtol=1e-5, atol=1e-5, msg=name)


def reduce_other_kept(rank: int) -> str:
    stats = ncops.ClassStatistics(4, 2)
    stats.update(torch.eye(2), torch.tensor([0, 1 + rank]))
    decisions = ncops.DecisionStatistics(stats.compute(), torch.ones(4, 2))
    with pytest.raises(ValueError, match="^all_reduce: kept classes differs between ranks: ") as error:
        decisions.all_reduce()
    scaled = ncops.DecisionStatistics(seen(0, False).compute(), torch.ones(C, D), scale=1.0 + rank)
    with pytest.raises(ValueError, match="^all_reduce: scale differs between ranks: 1.0 on rank 0, 2.0 on rank 1"):
        scaled.all_reduce()
    capped = ncops.DecisionStatistics(seen(0, False).compute(), torch.ones(C, D), softcap=30.0 if rank else None)
    with pytest.raises(ValueError, match="^all_reduce: softcap differs between ranks: 0.0 on rank 0, 30.0 on rank 1"):
        capped.all_reduce()
    return str(error.value)


def test_as_many_other_kept_classes_are_refused_on_every_rank(on_ranks):
    first, second = on_ranks(2, reduce_other_kept)
    assert first == second


def reduce_unlike(rank: int) -> str:
    stats = ncops.ClassStatistics(C + rank, D)
    stats.update(*data(0))
    counts = stats.counts.clone()
    with pytest.raises(ValueError, match=r"num_classes differs between ranks: 12 on rank 0, 13 on rank 1") as error:
        stats.all_reduce(inplace=True)
    assert torch.equal(stats.counts, counts)
    stats.update(*data(0))
    with pytest.raises(ValueError, match="scatter differs between ranks: True on rank 0, False on rank 1"):
        ncops.ClassStatistics(C, D, scatter=rank == 0).all_reduce()
    return str(error.value)


def test_unlike_statistics_are_refused_on_every_rank(on_ranks):
    first, second = on_ranks(2, reduce_unlike)
    assert first == second


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match="all_reduce: torch.distributed is not initialised"):
        ncops.ClassStatistics(2, 3).all_reduce()
