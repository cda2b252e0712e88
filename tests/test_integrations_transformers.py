"""The Trainer callback in real training runs of tiny random transformers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from testing import Adapted
from torch import nn

import ncops

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import Trainer, TrainingArguments  # noqa: E402

from ncops.integrations.transformers import NeuralCollapseCallback, is_causal, next_token, unpack  # noqa: E402
from ncops.report import NAMES  # noqa: E402

VOCABULARY, WIDTH, TOKENS = 24, 16, 12


def sentences(count: int, seed: int) -> list[dict]:
    """Token t is followed by 5 t + 3, mostly; the last tokens of every other sentence are padding."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        tokens = [int(torch.randint(0, VOCABULARY, (), generator=g))]
        while len(tokens) < TOKENS:
            noise = torch.rand((), generator=g) < 0.1
            tokens.append(int(torch.randint(0, VOCABULARY, (), generator=g)) if noise else (5 * tokens[-1] + 3) % 23)
        labels = [*tokens[:-3], -100, -100, -100] if i % 2 else tokens
        rows.append({"input_ids": torch.tensor(tokens), "labels": torch.tensor(labels)})
    return rows


def language_model(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trainer(folder, model, train, evaluation, **options) -> Trainer:
    settings = {
        "learning_rate": 1e-2, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16, "report_to": [],
        "eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no", "disable_tqdm": True,
        "num_train_epochs": 2, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **(settings | options))
    return Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=evaluation)


@torch.no_grad()
def by_hand(model, train, held) -> ncops.CollapseReport:
    model.eval()

    def samples(rows):
        ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
        return model.model(ids).last_hidden_state[:, :-1].reshape(-1, WIDTH), labels[:, 1:].reshape(-1)

    stats = ncops.ClassStatistics(VOCABULARY, WIDTH, scatter=True)
    stats.update(*samples(train))
    decisions = ncops.DecisionStatistics(stats.compute(), model.lm_head.weight)
    decisions.update(*samples(held))
    return ncops.collapse(stats.compute(), model.lm_head.weight, decisions=decisions)


def logged(run: Trainer) -> list[dict]:
    return [row for row in run.state.log_history if any(name.startswith("nc/") for name in row)]


def test_causal_language_model(tmp_path):
    train, held = sentences(96, 0), sentences(32, 1)
    model = language_model()
    assert is_causal(model)
    run = trainer(tmp_path, model, train, held, num_train_epochs=4)
    callback = NeuralCollapseCallback(run)
    run.add_callback(callback)
    run.train()
    rows = logged(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["nc/nll"] < rows[0]["nc/nll"] - 0.5 and rows[-1]["nc/nc1_pinv"] < 0.9 * rows[0]["nc/nc1_pinv"]
    truth = by_hand(model, train, held)
    for name in NAMES:
        torch.testing.assert_close(rows[-1][f"nc/{name}"], truth[name], rtol=1e-3, atol=1e-5, msg=name)
    assert rows[-1]["nc/decision_samples"] == 32 * (TOKENS - 1) - 16 * 3 == callback.report.coverage["decision_samples"]
    # The Trainer's own loss is a mean over tokens of the same batches: shifted and masked alike.
    found = run.evaluate()
    assert found["eval_loss"] == pytest.approx(found["nc/nll"], rel=1e-3)
    assert model.lm_head._forward_pre_hooks == {}


def test_training_is_the_same_without_it(tmp_path):
    train, held = sentences(64, 0), sentences(16, 1)

    def weights(watch: bool):
        run = trainer(
            tmp_path, language_model(attention_dropout=0.2), train, held, eval_strategy="steps", eval_steps=3,
            gradient_accumulation_steps=2, per_device_train_batch_size=4, num_train_epochs=2,
        )  # fmt: skip
        if watch:
            run.add_callback(NeuralCollapseCallback(run))
        run.train()
        assert bool(logged(run)) == watch
        return run.model.state_dict()

    plain, watched = weights(False), weights(True)
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name


class Classifier(nn.Module):
    """Any module that takes keywords will do for the Trainer."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def test_classifier_with_several_evaluation_sets(tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.eye(4)[labels] * 3 + torch.randn(90, 4)
    rows = [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]
    model = Classifier()
    run = trainer(tmp_path, model, rows[:60], {"a": rows[60:], "b": rows[:30]}, num_train_epochs=1)
    callback = NeuralCollapseCallback(run, "head", max_batches=2, metrics=["nc1_pinv", "accuracy"])
    run.add_callback(callback)
    run.train()
    values = {name: value for row in logged(run) for name, value in row.items() if name.startswith("nc/")}
    assert {name.split("/")[1] for name in values} == {"a", "b"} and len(values) == 10
    assert callback.report.coverage["samples"] == 32, "two batches of sixteen"
    found = run.evaluate(rows[60:])  # outside of training
    assert found["nc/accuracy"] == run.evaluate(rows[60:])["nc/accuracy"] and found["nc/samples"] == 32
    own = NeuralCollapseCallback(run, "head", means_from="eval", scatter=False, prefix="own")
    run.add_callback(own)
    assert run.evaluate(rows[60:])["own/samples"] == 30
    run.remove_callback(own)
    model.train()
    run.add_callback(NeuralCollapseCallback(run, "head", align=lambda x, y: (x[:, None], y)))
    with pytest.raises(ValueError, match="labels: expected shape .*, one label per row that enters the classifier"):
        run.evaluate(rows[60:])
    assert not model.head._forward_pre_hooks


def test_bfloat16_and_the_best_model(tmp_path):
    options = {"bf16": True, "save_strategy": "epoch", "metric_for_best_model": "eval_nc/nc1_cdnv"}
    run = trainer(tmp_path, language_model(), sentences(64, 0), sentences(16, 1), greater_is_better=False, **options)
    callback = NeuralCollapseCallback(run, prefix="eval_nc")
    run.add_callback(callback)
    run.train()
    assert run.state.best_metric == min(r["eval_nc/nc1_cdnv"] for r in run.state.log_history if "eval_nc/nll" in r)
    assert 0 < callback.report["nc1_cdnv"] < 10


def test_what_is_not_understood_is_said(tmp_path):
    with pytest.raises(TypeError, match="trainer: expected a transformers Trainer, got str"):
        NeuralCollapseCallback("head")
    with pytest.raises(ValueError, match="unpack: expected a mapping with labels, got keys x"):
        unpack({"x": 1})
    inputs, labels = unpack({"x": 1, "label": torch.ones(2)})
    assert inputs == {"x": 1} and labels.shape == (2,)
    x, y = next_token(torch.arange(6).view(1, 3, 2), torch.tensor([[1, 2, 3]]))
    assert x.tolist() == [[[0, 1], [2, 3]]] and y.tolist() == [[2, 3]]
    assert not is_causal(nn.Linear(2, 2))
    model = language_model()
    model.config.final_logit_softcapping = 30.0
    run = trainer(tmp_path, model, sentences(8, 0), sentences(8, 1))
    run.add_callback(NeuralCollapseCallback(run))
    with pytest.warns(UserWarning, match="scale: this model's configuration changes its logits"):
        run.evaluate()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = trainer(tmp_path, model, sentences(8, 0), sentences(8, 1))
        with pytest.raises(ValueError, match="scale: expected a finite number, got inf"):  # before it trains
            NeuralCollapseCallback(run, scale=float("inf"))
        run.add_callback(NeuralCollapseCallback(run, scale=1.0))
        plain = run.evaluate()
        run = trainer(tmp_path, model, sentences(8, 0), sentences(8, 1))
        with pytest.raises(ValueError, match="softcap: expected None or a positive number"):
            NeuralCollapseCallback(run, softcap=-1.0)
        run.add_callback(NeuralCollapseCallback(run, softcap=1e-6))
        capped = run.evaluate()
    assert abs(capped["nc/nll"] - math.log(VOCABULARY)) < 1e-5 < abs(plain["nc/nll"] - math.log(VOCABULARY))


def test_a_head_that_is_more_than_its_rows_is_refused(tmp_path):
    model = language_model(tie_word_embeddings=False)
    adapted = Adapted(WIDTH, VOCABULARY, bias=False)
    adapted.weight = model.lm_head.weight
    model.lm_head = adapted
    run = trainer(tmp_path, model, sentences(32, 0), sentences(16, 1))
    run.add_callback(NeuralCollapseCallback(run))
    with pytest.raises(ValueError, match="classifier: Adapted gives something else"):
        run.evaluate()


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    for decoder in (True, False):
        config = transformers.BertConfig(**sizes, num_attention_heads=2, is_decoder=decoder)
        run = trainer(tmp_path, transformers.BertLMHeadModel(config), sentences(32, 0), sentences(16, 1))
        run.add_callback(NeuralCollapseCallback(run))
        if decoder:
            assert "nc/nc1_cdnv" in run.evaluate()
        else:
            with pytest.raises(ValueError, match="model: BertLMHeadModel is not causal"):
                run.evaluate()
