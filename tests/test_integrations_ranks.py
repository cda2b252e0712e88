"""The two passes of the callbacks over two real processes, against one process that saw everything."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from ncops.integrations._passes import TwoPasses, world

C, D, TRAIN, HELD = 5, 8, 101, 37


def datasets() -> tuple[DataLoader, DataLoader]:
    g = torch.Generator().manual_seed(4)
    labels = torch.arange(TRAIN + HELD) % C
    x = 5 * torch.randn(C, 6, generator=g)[labels] + torch.randn(TRAIN + HELD, 6, generator=g)
    parts = TensorDataset(x[:TRAIN], labels[:TRAIN]), TensorDataset(x[TRAIN:], labels[TRAIN:])
    return tuple(DataLoader(part, batch_size=16, shuffle=True) for part in parts)


def measured(rank: int) -> dict[str, float]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, D), nn.Tanh(), nn.Dropout(0.5), nn.Linear(D, C))  # in training mode
    number, ranks = world()
    assert number == rank
    train, held = datasets()
    passes = TwoPasses(unpack=lambda batch: (batch[0], batch[1]))
    report = passes.measure(DistributedDataParallel(model) if ranks > 1 else model, train, held)
    assert model.training
    return passes.flat(report)


def test_two_ranks_equal_one_process(on_ranks):
    ranks, one = on_ranks(2, measured), measured(0)
    assert ranks[0] == ranks[1], "both ranks log the same bits"
    assert one["nc/samples"] == TRAIN and one["nc/decision_samples"] == HELD
    assert list(ranks[0]) == list(one)
    for name, value in one.items():
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-5, atol=1e-7, msg=name)
