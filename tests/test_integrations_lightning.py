"""The Lightning callback in real training runs on scikit-learn's digits."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from testing import Adapted
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader, TensorDataset

import ncops

pytest.importorskip("lightning")
datasets = pytest.importorskip("sklearn.datasets")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl

from ncops.integrations import lightning as integration  # noqa: E402
from ncops.integrations.lightning import NeuralCollapseCallback  # noqa: E402
from ncops.integrations.loaders import same_data  # noqa: E402
from ncops.model import evaluating, features_into, find_classifier  # noqa: E402
from ncops.report import NAMES  # noqa: E402

TRAIN, CLASSES, WIDTH = 1000, 10, 24


class Noisy(TensorDataset):
    """Augments with every generator there is: a callback that draws from one of them would change the training."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.01 * torch.randn(()) + 0.01 * random.random(), y


@pytest.fixture(scope="module")
def digits() -> tuple[TensorDataset, TensorDataset]:
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    return TensorDataset(x[:TRAIN], y[:TRAIN]), TensorDataset(x[TRAIN:1300], y[TRAIN:1300])


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.1))
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.frozen = nn.BatchNorm1d(WIDTH).eval()  # a mode of its own, to be left alone

    def forward(self, x):
        return self.fc(self.body(x))

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class History(pl.loggers.Logger):
    """What reaches the trainer's logger."""

    name, version = "history", "0"

    def __init__(self):
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def trainer(callbacks, epochs=2, logger=False, **options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=logger, callbacks=callbacks, **(quiet | options)
    )


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fit(digits, callbacks, dataset=TensorDataset, **options) -> tuple[Net, pl.Trainer]:
    pl.seed_everything(1, verbose=False)
    model = Net()
    train = DataLoader(dataset(*digits[0].tensors), batch_size=64, shuffle=True)
    run = trainer(callbacks, **options)
    run.fit(model, train, DataLoader(digits[1], batch_size=100))
    return model, run


@torch.no_grad()
def by_hand(model: Net, train, held) -> ncops.CollapseReport:
    model.eval()
    stats = ncops.ClassStatistics(CLASSES, WIDTH, scatter=True)
    stats.update(model.body(train[0]), train[1])
    geometry = stats.compute()
    decisions = ncops.DecisionStatistics(geometry, model.fc.weight, model.fc.bias)
    decisions.update(model.body(held[0]), held[1])
    return ncops.collapse(geometry, model.fc.weight, model.fc.bias, decisions=decisions)


def test_training_run(digits):
    history, callback = History(), NeuralCollapseCallback()
    stop = pl.callbacks.EarlyStopping(monitor="nc/nc1_quotient", mode="min", patience=50)
    model, run = fit(digits, [callback, stop], epochs=6, logger=history)
    rows = [row for row in history.rows if "nc/nc1_pinv" in row]
    assert len(rows) == 6, "once per evaluation, and not in the sanity check"
    names = {f"nc/{name}" for name in NAMES}
    assert all({n for n in row if n.startswith("nc/")} - names == {"nc/classes_kept", "nc/samples",
               "nc/decision_samples"} and names <= set(row) for row in rows)  # fmt: skip
    assert rows[-1]["nc/nc1_quotient"] < 0.9 * rows[0]["nc/nc1_quotient"] and rows[-1]["nc/accuracy"] > 0.85
    truth = by_hand(model, digits[0].tensors, digits[1].tensors)
    for name in NAMES:
        logged = float(run.callback_metrics[f"nc/{name}"])
        torch.testing.assert_close(logged, truth[name], rtol=1e-3, atol=1e-6, msg=name)
    assert rows[-1]["nc/samples"] == TRAIN and rows[-1]["nc/decision_samples"] == 300
    assert dict(callback.report) == pytest.approx(dict(truth), rel=1e-3, abs=1e-6)


def test_training_is_the_same_without_it(digits):
    def weights(callbacks):
        model, _ = fit(digits, callbacks, Noisy, val_check_interval=5, num_sanity_val_steps=0)
        assert not model.fc._forward_pre_hooks and not model.frozen.training
        return model.state_dict()

    callback = NeuralCollapseCallback(max_batches=3)
    plain, watched = weights([]), weights([callback])
    assert callback.report is not None
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name


def test_options_tests_and_other_batches(digits):
    class Named(Net):
        def forward(self, image, scale=1.0):
            return self.fc(self.body(image * scale))

        def validation_step(self, batch, index, dataloader_idx=0):
            self.log("val_loss", F.cross_entropy(self(batch["image"]), batch["label"]))

        test_step = validation_step

    def loader(data):
        rows = [{"image": x, "label": y} for x, y in zip(*data.tensors, strict=True)]
        return DataLoader(rows, batch_size=50)

    model, held = Named(), loader(digits[1])
    callback = NeuralCollapseCallback(
        "fc", train_loader=loader(digits[0]), max_batches=4, scatter=False, prefix="val/nc", metrics=["nc1_cdnv"]
    )
    run = trainer([callback], limit_val_batches=2)
    found = run.validate(model, [held, held], verbose=False)
    assert found[0]["val/nc/0/nc1_cdnv"] > 0 and found[-1]["val/nc/1/decision_samples"] == 100
    assert callback.report.coverage["samples"] == 200 and math.isnan(callback.report["nc1_pinv"])
    assert run.test(model, held, verbose=False)[0]["val/nc/decision_samples"] == 300
    with torch.no_grad(), evaluating(model):
        own = NeuralCollapseCallback(means_from="eval")
        trainer([own]).validate(model, held, verbose=False)
    assert own.report.coverage["samples"] == own.report.coverage["decision_samples"] == 300


def test_bfloat16_training(digits):
    seen = set()

    def align(features, labels):
        seen.add(features.dtype)
        return features, labels

    callback = NeuralCollapseCallback(max_batches=4, align=align)
    fit(digits, [callback], epochs=1, precision="bf16-mixed")
    assert seen == {torch.bfloat16}, "measured as the trainer evaluates"
    assert 0 < callback.report["nc1_cdnv"] < math.inf and callback.report["accuracy"] > 0.3


def test_errors_leave_the_model_as_it_was(digits):
    def broken(batch):
        raise KeyError("no labels here")

    model = Net().train()
    loader = DataLoader(digits[1], batch_size=50)
    with pytest.raises(KeyError, match="no labels here"):
        trainer([NeuralCollapseCallback(train_loader=loader, unpack=broken)]).validate(model, loader, verbose=False)
    assert not model.fc._forward_pre_hooks
    model.train()
    model.frozen.eval()
    module = find_classifier(model)
    with pytest.raises(ZeroDivisionError), evaluating(model), features_into(module):
        assert module._forward_pre_hooks and not model.training
        raise ZeroDivisionError
    assert model.training and model.body.training and not model.frozen.training and not module._forward_pre_hooks
    with pytest.raises(ValueError, match="train_loader: this evaluation is not part of a fit"):
        trainer([NeuralCollapseCallback()]).validate(model, loader, verbose=False)
    with pytest.raises(ValueError, match=r"classifier: the model has no module 'head'; .*body\.0, fc"):
        find_classifier(model, "head")
    with pytest.raises(ValueError, match="classifier: the model has no nn.Linear"):
        find_classifier(nn.ReLU())
    with pytest.raises(RuntimeError, match="never calls it"), features_into(module) as trap:
        trap.run(lambda: model.body(torch.zeros(2, 64)))
    for bad in ({"means_from": "test"}, {"max_batches": 0}, {"metrics": ["nc5"]}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            NeuralCollapseCallback(**bad)
    with pytest.raises(ValueError, match="unpack: expected a batch"):
        integration.unpack({"image": 1})


def test_a_classifier_that_is_more_than_its_rows_is_refused(digits):
    model = Net()
    model.fc = Adapted(WIDTH, CLASSES)
    loader = DataLoader(digits[1], batch_size=50)
    with pytest.raises(ValueError, match="classifier: Adapted gives something else than x @ weight.T"):
        trainer([NeuralCollapseCallback(train_loader=loader)]).validate(model, loader, verbose=False)


def test_compiled_model_is_measured_eagerly(digits):
    """Dynamo cannot trace a hook that leaves the forward pass; with fullgraph=True that would be an error."""
    model, counter = Net(), CompileCounter()
    model.compile(backend=counter, fullgraph=True)
    held = DataLoader(digits[1], batch_size=100)
    callback = NeuralCollapseCallback(train_loader=DataLoader(digits[0], batch_size=200))
    trainer([], limit_val_batches=1).validate(model, held, verbose=False)
    compiled = counter.frame_count
    run = trainer([callback], limit_val_batches=1)
    run.validate(model, held, verbose=False)
    assert compiled > 0 and counter.frame_count == compiled
    model.eval()  # the evaluation was of the first batch, and so are the decisions
    with torch.no_grad():
        loss = F.cross_entropy(model.fc(model.body(digits[1].tensors[0][:100])), digits[1].tensors[1][:100])
    assert callback.report["nll"] == pytest.approx(float(loss), rel=1e-4)
    assert callback.report.coverage["decision_samples"] == 100


def test_every_rank_reads_its_share_once():
    data = TensorDataset(torch.arange(103))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    shares = [torch.cat([b[0] for b in same_data(loader, None, r, 4)]).tolist() for r in range(4)]
    assert sorted(sum(shares, [])) == list(range(103))
    part = [torch.cat([b[0] for b in same_data(loader, 2, r, 4)]).tolist() for r in range(4)]
    assert [len(p) for p in part] == [16] * 4 and len(set(sum(part, []))) == 64 and max(sum(part, [])) > 64
    assert part[1] == torch.cat([b[0] for b in same_data(loader, 2, 1, 4)]).tolist()
    assert torch.equal(state, torch.get_rng_state())
    first = [torch.cat([b[0] for b in same_data(loader, 2, r, 2, drawn=False)]).tolist() for r in range(2)]
    assert sorted(sum(first, [])) == list(range(32))
    assert list(same_data([1, 2, 3], 2)) == [1, 2]
    workers = DataLoader(data, batch_size=8, num_workers=1)
    assert sum(len(b[0]) for b in same_data(workers, None)) == 103


def test_the_package_pytorch_lightning(digits):
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, CLASSES)

        def forward(self, x):
            return self.fc(x)

        def validation_step(self, batch, index):
            pass

    loader = DataLoader(digits[1], batch_size=100)
    callback = NeuralCollapseCallback(train_loader=loader)
    run = other.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    assert run.validate(Module(), loader, verbose=False)[0]["nc/samples"] == 300
