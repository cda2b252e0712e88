"""The metrics inside the real torchmetrics: one process, copies, casts, collections, and two real ranks."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ncops

pytest.importorskip("torchmetrics")
from torchmetrics import MetricCollection  # noqa: E402
from torchmetrics.utilities.distributed import gather_all_tensors  # noqa: E402
from torchmetrics.utilities.exceptions import TorchMetricsUserError  # noqa: E402

from ncops.integrations.torchmetrics import LogitStatistics, NeuralCollapse  # noqa: E402

C, D = 6, 9


def data(seed: int = 0, n: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight classes far from the origin, where uncentred float32 sums have no digit of the spread."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (n,), generator=g)
    means = 100 * F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(9)), dim=1)
    x = means[labels] + 0.01 * torch.randn(n, D, generator=g)
    labels[::11] = -100
    return x, labels


def head() -> nn.Linear:
    return nn.Linear(D, C).requires_grad_(False)


def expected(x, y, classifier=None, convention="ncops") -> ncops.CollapseReport:
    stats = ncops.ClassStatistics(C, D, scatter=True)
    stats.update(x, y)
    weight, bias = (None, None) if classifier is None else (classifier.weight, classifier.bias)
    return ncops.collapse(stats.compute(), weight, bias, convention=convention)


def assert_report(values: dict, report: ncops.CollapseReport, rtol: float = 1e-5) -> None:
    for name, value in values.items():
        assert isinstance(value, torch.Tensor) and value.shape == () and value.dtype == torch.float64
        torch.testing.assert_close(float(value), report[name], rtol=rtol, atol=1e-7, msg=lambda m, name=name: name + m)


def test_neural_collapse_is_the_report_of_the_stream():
    (x, y), classifier = data(), head()
    metric = NeuralCollapse(C, D, classifier)
    for rows in torch.arange(len(x)).split(32):
        metric.update(x[rows], y[rows])
    values = metric.compute()
    assert [n for n in values if n.startswith("nc3")] and "nc1_pinv" in values and "nc4_agreement" not in values
    assert_report(values, expected(x, y, classifier))
    report = metric.report()
    assert report.coverage["samples"] == int((y >= 0).sum())
    decisions = ncops.DecisionStatistics(metric.geometry(), classifier.weight, classifier.bias)
    decisions.update(x, y)
    assert decisions.num_samples == report.coverage["samples"]


def test_what_was_not_given_has_no_name():
    metric = NeuralCollapse(C, D, scatter=False)
    metric.update(*data())
    values = metric.compute()
    assert "nc1_pinv" not in values and "vci" not in values and "nc3_cos_mean" not in values
    assert_report(values, expected(*data()))
    assert not any(value.isnan() for value in values.values())


def test_classifier_is_read_when_it_is_needed():
    (x, y), classifier = data(), head()
    metric = NeuralCollapse(C, D, classifier)
    metric.update(x, y)
    before = metric.compute()["nc3_cos_mean"]
    classifier.weight.neg_()
    metric.update(x[:1], y[:1])
    torch.testing.assert_close(metric.compute()["nc3_cos_mean"], -before, rtol=1e-3, atol=0)
    assert not list(metric.parameters()) and not list(metric.children()) and not metric.state_dict()
    metric.classifier = (classifier.weight, None)
    assert "nc3_cos_mean" in metric.compute()
    with pytest.raises(TypeError, match=r"classifier: expected a module, a weight or \(weight, bias\), got str"):
        NeuralCollapse(C, D, "fc").report()


def test_forward_gives_the_batch_and_keeps_the_sum():
    x, y = data()
    metric = NeuralCollapse(C, D)
    assert metric.full_state_update is False and metric.higher_is_better is None
    for rows in torch.arange(len(x)).split(40):
        assert_report(metric(x[rows], y[rows]), expected(x[rows], y[rows]))
    with pytest.raises(ValueError, match="target|labels"):
        metric(x, y + C)
    assert metric.update_count == 3
    assert_report(metric.compute(), expected(x, y))
    metric.reset()
    assert metric.counts.sum() == 0 and metric.center.numel() == 0
    metric.update(x[:50].double(), y[:50])  # another dtype than before the reset
    assert_report(metric.compute(), expected(x[:50].double(), y[:50]))


@pytest.mark.parametrize("cast", ["half", "to", "set_dtype", "module"])
def test_states_keep_their_dtype(cast):
    x, y = data()
    metric = NeuralCollapse(C, D, (torch.ones(C, D), None))
    logits = LogitStatistics()
    module = nn.ModuleList([metric, logits])
    metric.update(x, y)
    logits.update(x, y.clamp_min(0))
    before = {name: value.clone() for name, value in metric.metric_state.items()}
    result = metric.compute()
    if cast == "half":
        metric.half(), logits.half()
    elif cast == "to":
        metric.to(torch.bfloat16), logits.to("cpu", torch.float16)
    elif cast == "set_dtype":
        metric.set_dtype(torch.float16), logits.set_dtype(torch.float32)
    else:
        module.to(torch.float16)
    for name, value in metric.metric_state.items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    assert metric.sums.dtype == metric.scatter.dtype == logits.sums.dtype == torch.float64
    metric.update(x, y)
    assert metric.compute()["nc1_cdnv"].dtype == torch.float64 and len(result) == len(metric.compute())
    metric.reset()
    assert metric.sums.dtype == torch.float64
    assert metric.to("meta").sums.device.type == "meta"


def test_copies_and_files():
    (x, y), classifier = data(), head()
    metric = NeuralCollapse(C, D, classifier)
    metric.update(x[:60], y[:60])
    copies = metric.clone(), pickle.loads(pickle.dumps(metric))
    assert copies[0].classifier is classifier
    for copied in copies:
        copied.update(x[60:], y[60:])
        assert_report(copied.compute(), expected(x, y, classifier))
    assert_report(metric.compute(), expected(x[:60], y[:60], classifier))
    metric.persistent(True)
    loaded = NeuralCollapse(C, D, classifier)
    loaded.load_state_dict(metric.state_dict())
    loaded.update(x[60:], y[60:])
    assert_report(loaded.compute(), expected(x, y, classifier))


def test_merge_state():
    x, y = data()
    parts = [NeuralCollapse(C, D), NeuralCollapse(C, D)]
    for metric, rows in zip(parts, (slice(0, 70), slice(70, None)), strict=True):
        metric.update(x[rows], y[rows])
    theirs = {name: value.clone() for name, value in parts[1].metric_state.items()}
    parts[0].merge_state(parts[1])
    assert_report(parts[0].compute(), expected(x, y))
    assert all(torch.equal(value, theirs[name]) for name, value in parts[1].metric_state.items())
    empty = NeuralCollapse(C, D)
    empty.merge_state(parts[0].metric_state)
    torch.testing.assert_close(dict(empty.report()), dict(parts[0].report()), equal_nan=True)
    with pytest.raises(ValueError, match="incoming_state: .*sqnorms"):
        empty.merge_state({"counts": empty.counts})
    with pytest.raises(ValueError, match="other: input_dtype"):
        half = NeuralCollapse(C, D)
        half.update(x.half(), y)
        parts[0].merge_state(half)


def test_collection_shares_states_where_it_may():
    (x, y), classifier = data(), head()
    y = y.clamp_min(0)
    metrics = MetricCollection(
        {
            "ours": NeuralCollapse(C, D, classifier),
            "papyan": NeuralCollapse(C, D, convention="papyan"),
            "skip": NeuralCollapse(C, D, nonfinite="skip"),
            "logits": LogitStatistics(classifier),
        },
        prefix="train/",
    )
    validation = metrics.clone(prefix="val/")
    for rows in torch.arange(len(x)).split(50):
        metrics.update(x[rows], y[rows])
        validation.update(features=x[rows], target=y[rows])
    groups = sorted(sorted(group) for group in metrics.compute_groups.values())
    assert groups == [["logits"], ["ours", "papyan"], ["skip"]]
    values, again = metrics.compute(), validation.compute()
    assert_report({"nc1_pinv": values["train/papyan_nc1_pinv"]}, expected(x, y, convention="papyan"))
    assert_report({"nc3_cos_mean": values["train/ours_nc3_cos_mean"]}, expected(x, y, classifier))
    nll = F.cross_entropy(classifier(x).double(), y)
    torch.testing.assert_close(values["train/logits_nll"], nll)
    assert list(again) == [name.replace("train/", "val/") for name in values]
    metrics.reset()
    metrics.update(x[:50], y[:50])
    assert_report({"nc1_pinv": metrics.compute()["train/papyan_nc1_pinv"]}, expected(x[:50], y[:50], None, "papyan"))


def dense(z: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """The means of LogitStatistics, written out over float64 logits of the rows that count."""
    z, y = z[y >= 0].double(), y[y >= 0]
    p, logp = z.softmax(1), z.log_softmax(1)
    own = z.gather(1, y[:, None])
    rival = z.scatter(1, y[:, None], -math.inf).amax(1)
    rank = (z > own).sum(1)
    nll = -logp.gather(1, y[:, None]).mean()
    values = {
        "entropy": -(p * logp).sum(1).mean(), "max_prob": p.amax(1).mean(), "lse": z.logsumexp(1).mean(),
        "z_loss": z.logsumexp(1).square().mean(), "logit_mean": z.mean(), "logit_var": z.var(1, correction=0).mean(),
        "nll": nll, "perplexity": nll.exp(), "accuracy": (rank == 0).double().mean(),
        "top5_accuracy": (rank < 5).double().mean(), "margin": (own[:, 0] - rival).mean(), "rank": rank.double().mean(),
    }  # fmt: skip
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_logit_statistics(stored, softcap):
    torch.manual_seed(1)
    x, y = torch.randn(4, 20, D), torch.randint(0, C, (4, 20))
    y[:, ::7] = -100
    classifier = head()
    z = classifier(x)
    metric = LogitStatistics(None if stored else classifier, softcap=softcap)
    first = metric(*((z[:3], y[:3]) if stored else (x[:3], y[:3])))
    metric.update(*((z[3:], y[3:]) if stored else (x[3:], y[3:])))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    for values, rows in ((first, slice(3)), (metric.compute(), slice(None))):
        truth = dense(z[rows].reshape(-1, C), y[rows].reshape(-1))
        assert set(values) == set(truth)
        for name, value in truth.items():
            torch.testing.assert_close(float(values[name]), value, rtol=1e-5, atol=1e-6, msg=name)
    free = LogitStatistics(classifier, softcap=softcap)
    free.update(x)
    assert set(free.compute()) == set(LogitStatistics.FREE)
    torch.testing.assert_close(float(free.compute()["lse"]), z.double().logsumexp(-1).mean().item())


def test_logit_statistics_under_autocast_and_without_gradients():
    classifier = nn.Linear(D, C)
    x, y = data()
    x = (x / 100).requires_grad_()
    metric = LogitStatistics(classifier)
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(x, y)
    torch.testing.assert_close(float(metric.compute()["nll"]), dense(classifier(x).detach(), y)["nll"])
    metric.reset()
    metric(x.bfloat16(), y)
    assert not metric.sums.requires_grad and float(metric.counts[1]) == (y >= 0).sum()


def test_what_is_wrong_is_named():
    x, y = data()
    with pytest.raises(ValueError, match=rf"^classifier: expected shape \(num_classes, dim\) = \({C}, {D}\)"):
        NeuralCollapse(C, D, classifier=nn.Linear(D + 1, C))
    NeuralCollapse(C, D, classifier=nn.LazyLinear(C))  # its shape comes later
    metric = LogitStatistics(head())
    with pytest.raises(TypeError, match="^features: expected a tensor, got ndarray"):
        metric.update(x.numpy(), y)
    with pytest.raises(ValueError, match=rf"^features: expected shape \(..., D\) with D = {D}"):
        metric.update(x[:, 1:], y)
    with pytest.raises(TypeError, match="^logits: expected a tensor, got ndarray"):
        LogitStatistics().update(x.numpy(), y)
    with pytest.raises(ValueError, match="scale: expected a number, got a tensor that requires a gradient"):
        LogitStatistics(scale=torch.ones((), requires_grad=True))


def test_logit_statistics_on_a_device_without_autocast():
    metric = LogitStatistics().to("meta")
    metric.update(torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta"))
    assert metric.sums.is_meta


def test_plots():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = data()
    for metric in (NeuralCollapse(C, D, head()), LogitStatistics(head())):
        results = [metric(x[rows], y[rows]) for rows in torch.arange(len(x)).split(60)]
        fig, ax = metric.plot()
        assert ax.figure is fig and len(ax.lines) > 3
        _, axes = plt.subplots()
        _, ax = metric.plot(results, axes)
        assert ax is axes and len(ax.lines) >= len(results[0])
    plt.close("all")


def both_cases(rank: int) -> list[dict]:
    return [synchronised(rank, idle) for idle in (False, True)]


def synchronised(rank: int, idle: bool) -> dict:
    x, y = data(rank, (90, 50)[rank])
    classifier = head_of_ranks()
    gathering = NeuralCollapse(C, D, classifier, dist_sync_fn=lambda t, group=None: gather_all_tensors(t, group))
    metrics = {"ours": NeuralCollapse(C, D, classifier), "gathering": gathering, "logits": LogitStatistics(classifier)}
    if not (idle and rank == 1):
        for metric in metrics.values():
            metric.update(x, y)
    found = {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in metrics.items()}
    metric = metrics["ours"]
    found["coverage"] = metric.report().coverage
    found["own rows"] = int(metric.counts.sum())  # compute has put the local states back
    metric.sync()
    found["all rows"] = int(metric.counts.sum())
    with pytest.raises(TorchMetricsUserError, match="hold the sum over all ranks"):
        metric.update(x, y)
    metric.unsync()
    if not idle:
        metric.update(x, y)
    return found


def head_of_ranks() -> nn.Linear:
    classifier = head()
    classifier.weight.copy_(torch.randn(C, D, generator=torch.Generator().manual_seed(3)))
    classifier.bias.zero_()
    return classifier


def test_two_ranks_equal_one_process(on_ranks):
    cases = zip(*on_ranks(2, both_cases), strict=True)
    for idle, ranks in zip((False, True), cases, strict=True):
        check_ranks(ranks, idle)


def check_ranks(ranks: tuple[dict, dict], idle: bool) -> None:
    parts = [data(0, 90)] if idle else [data(0, 90), data(1, 50)]
    x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    report = expected(x, y, head_of_ranks())
    for name in ("ours", "gathering", "logits", "coverage", "all rows"):
        assert ranks[0][name] == ranks[1][name], f"{name}: both ranks have the same bits"
    for name in ("ours", "gathering"):
        assert set(ranks[0][name]) > {"nc1_pinv", "nc3_cos_mean"}
        for metric, value in ranks[0][name].items():
            torch.testing.assert_close(value, report[metric], rtol=1e-5, atol=1e-7, msg=f"{name} {metric}")
    for name, value in dense(head_of_ranks()(x), y).items():
        torch.testing.assert_close(ranks[0]["logits"][name], value, rtol=1e-5, atol=1e-5, msg=name)
    own = [int((part[1] >= 0).sum()) for part in (data(0, 90), data(1, 50))]
    assert [rank["own rows"] for rank in ranks] == [own[0], 0 if idle else own[1]]
    assert ranks[0]["all rows"] == ranks[0]["coverage"]["samples"] == int((y >= 0).sum())


class Adapted(torch.nn.Linear):
    """A linear layer with a low-rank adapter, as adapter libraries patch one in."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.a, self.b = torch.nn.Parameter(torch.randn(sizes[0], 2)), torch.nn.Parameter(torch.zeros(2, sizes[1]))

    def forward(self, x):
        return super().forward(x) + x @ self.a @ self.b


def test_a_classifier_that_is_more_than_its_rows_is_refused():
    head = Adapted(6, 5)
    x, y = torch.randn(20, 6), torch.randint(0, 5, (20,))
    metric = LogitStatistics(head)
    metric.update(x, y)  # an adapter that is still zero changes nothing
    with torch.no_grad():
        head.b.normal_()
    for metric in (LogitStatistics(head), NeuralCollapse(5, 6, head)):
        before = {name: value.clone() for name, value in metric.metric_state.items()}
        with pytest.raises(ValueError, match=r"classifier: Adapted gives something else than x @ weight.T \+ bias"):
            metric.update(x, y)
        assert all(torch.equal(value, before[name]) for name, value in metric.metric_state.items())
    half = torch.nn.Linear(6, 5, dtype=torch.bfloat16)
    LogitStatistics(half).update(x.bfloat16(), y)
