"""Statistics of layers by hooks, against features collected and reduced in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ncops

CLASSES = 4


class Net(nn.Module):
    """A tiny CNN whose parts have the shapes that watched layers have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
        self.pair = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images):
        maps = self.conv(images)
        tokens, _ = self.pair(maps.flatten(2).transpose(1, 2))
        return self.head(tokens[:, -1])


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    labels = torch.arange(60) % CLASSES
    images = torch.randn(60, 3, 6, 6, generator=generator) + labels[:, None, None, None]
    return net, images, labels


def expected(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """NC1 and NC2 of rows, by loops over classes."""
    means = np.stack([x[y == c].mean(0) for c in range(CLASSES)])
    variances = np.array([((x[y == c] - means[c]) ** 2).sum(1).mean() for c in range(CLASSES)])
    centred = means - means.mean(0)
    norms = np.linalg.norm(centred, axis=1)
    within = (x - means[y]).T @ (x - means[y]) / len(x)
    cdnv = [
        (variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum())
        for a in range(CLASSES)
        for b in range(a)
    ]
    between = centred.T @ centred / CLASSES
    return {
        "nc1_quotient": np.trace(within) / np.trace(between),
        "nc1_cdnv": np.mean(cdnv),
        "nc1_pinv": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / CLASSES,
        "nc2_norm_cv": norms.std() / norms.mean(),
    }


def test_reports_by_value(case):
    net, images, labels = case
    kept = {}
    with torch.no_grad():
        maps = net.conv(images).double().numpy()
        kept["conv"] = maps.mean((2, 3))
        kept["head"] = net(images).double().numpy()
    with ncops.watch(net, ["conv", net.head], CLASSES, scatter=True) as watched, torch.no_grad():
        for x, y in zip(images.split(17), labels.split(17), strict=True):
            out = net(x)
            watched.update(y)
    torch.testing.assert_close(out, torch.from_numpy(kept["head"][-9:]).float())
    assert list(watched.reports()) == ["conv", "head"]
    for name, report in watched.reports().items():
        for metric, value in expected(kept[name], labels.numpy()).items():
            assert report[metric] == pytest.approx(value, rel=1e-4), (name, metric)
        assert np.isnan(report["nc3_cos_mean"]) and report.coverage["samples"] == 60
    table = watched.compare().table()
    assert "conv" in table and "head" in table
    assert watched.compare().metrics["nc1_quotient"] == [
        report["nc1_quotient"] for report in watched.reports().values()
    ]


@pytest.mark.parametrize(
    ("layer", "pool", "reduce"),
    [
        ("conv", "flatten", lambda maps: maps.reshape(len(maps), -1)),
        ("conv", lambda maps: maps.amax((2, 3)), lambda maps: maps.max((2, 3))),
        ("pair", lambda tokens: tokens[:, -1], lambda tokens: tokens[:, -1]),  # the first tensor of a tuple
    ],
)
def test_pool(case, layer, pool, reduce):
    net, images, labels = case
    with torch.no_grad():
        out = net.conv(images) if layer == "conv" else net.pair(net.conv(images).flatten(2).transpose(1, 2))[0]
    wanted = reduce(out.numpy())
    with ncops.watch(net, layer, CLASSES, pool=pool) as watched:
        net(images)
        watched.update(labels)
    means = watched.statistics[layer].compute(min_count=1).means.numpy()
    np.testing.assert_allclose(
        means, [wanted[labels.numpy() == c].mean(0) for c in range(CLASSES)], rtol=1e-5, atol=1e-6
    )


def hooks(net) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_hooks_are_gone_and_more_data_may_come(case):
    net, images, labels = case
    watched = ncops.watch(net, ["conv"], CLASSES)
    assert hooks(net) == 0
    with pytest.raises(KeyError), watched:
        assert hooks(net) == 1
        raise KeyError
    assert hooks(net) == 0
    for part in (slice(0, 30), slice(30, 60)):
        with watched:
            net(images[part])
            watched.update(labels[part])
    assert int(watched.statistics["conv"].counts.sum()) == 60
    with pytest.raises(RuntimeError, match="^update: expected inside the with block"):
        watched.update(labels)


def test_what_is_refused_changes_nothing(case):
    net, images, labels = case
    with ncops.watch(net, ["conv", "head"], CLASSES, nonfinite="raise") as watched:
        net(images)
        watched.update(labels)
        before = {name: stats.sums.clone() for name, stats in watched.statistics.items()}
        net(images)
        with pytest.raises(ValueError, match="^layer 'conv': labels"):
            watched.update(labels + 1)
        with pytest.raises(ValueError, match="expected one run of 'conv' between two updates, got 0"):
            watched.update(labels)
        net(images)
        net(images)
        with pytest.raises(ValueError, match="got 2; call update"):
            watched.update(labels)
        bias = net.head.bias.detach().clone()
        net.head.bias.data[0] = float("nan")  # the second layer is the one that refuses
        net(images)
        with pytest.raises(ValueError, match="^layer 'head': x: 60 of 60 rows hold a NaN"):
            watched.update(labels)
        net.head.bias.data.copy_(bias)
        for name, stats in watched.statistics.items():
            assert torch.equal(stats.sums, before[name])
        with pytest.raises(RuntimeError, match="open already"), watched:
            pass


@pytest.mark.parametrize(
    ("layers", "options", "error"),
    [
        (["convs"], {}, "layers: the model has no module 'convs'; it has conv, conv.0, conv.1, pair, head$"),
        ([nn.ReLU()], {}, "layers: the model has no module a ReLU"),
        (["conv", "conv"], {}, "layers: expected each once, got 'conv' twice"),
        ([], {}, "layers: expected at least one, got none"),
        ("conv", {"pool": "max"}, "pool: expected 'mean', 'flatten' or a function, got 'max'"),
        ("conv", {"nonfinite": "ignore"}, "nonfinite: expected one of"),
    ],
)
def test_refusals(case, layers, options, error):
    with pytest.raises(ValueError, match=f"^{error}"):
        ncops.watch(case[0], layers, CLASSES, **options)


def test_an_output_that_may_be_tokens_or_a_signal(case):
    net, images, _ = case
    with ncops.watch(net, "pair", CLASSES) as watched, pytest.raises(ValueError, match="^layer 'pair': gave shape"):
        net(images)
    assert hooks(net) == 0
    with pytest.raises(ValueError, match="nothing was seen"):
        watched.reports()
