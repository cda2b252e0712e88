"""A patched causal model has its own loss and gradients without logits: alone, in the Trainer, over two ranks."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import nn

import ncops

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: E402

from ncops.integrations.transformers import patch  # noqa: E402

V, TOKENS, RANKS = 24, 10, 2
SIZES = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": V,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "tied Llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "Gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"final_logit_softcapping": 0.7}),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"final_logit_softcapping": 0.7}),
    "Gemma3 uncapped": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "Granite": ("GraniteConfig", "GraniteForCausalLM", {"logits_scaling": 0.25}),
    "Cohere": ("CohereConfig", "CohereForCausalLM", {"logit_scale": 3.0}),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "output_router_logits": True}),
    "Phi": ("PhiConfig", "PhiForCausalLM", {}),  # its head has a bias
}
PROVED = {"Granite": (4.0, None), "Cohere": (3.0, None), "Gemma2": (1.0, 0.7), "Gemma3": (1.0, 0.7)}


def tiny(name: str = "Llama", **more) -> nn.Module:
    torch.manual_seed(0)
    config, model, options = MODELS[name]
    sizes = {} if name == "GPT-2" else SIZES
    made = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **options, **more}))
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(10)  # logits of a size that caps and scales are seen at
    return made.eval()


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, V, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = labels[1::2, -2:] = -100
    return {"input_ids": ids, "labels": labels}


def loss_and_gradients(model: nn.Module, **more) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch(), **more).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(found, own, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(found[0], own[0], rtol=rtol, atol=atol, check_dtype=False)
    assert list(found[1]) == list(own[1])
    for name, gradient in own[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=rtol, atol=atol * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_models_own(name):
    model = tiny(name)
    keys = list(model.state_dict())
    given = [{}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(50)}]
    own = [loss_and_gradients(model, **more) for more in given]
    with patch(model) as patched:
        for more, expected in zip(given, own, strict=True):
            same(loss_and_gradients(model, **more), expected)
        assert model(**batch()).logits.shape == (4, TOKENS, 0)
        assert (patched.scale, patched.softcap) == PROVED.get(name, (1.0, None))
        assert list(model.state_dict()) == keys
    assert "forward" not in model.__dict__ and "forward" not in model.get_output_embeddings().__dict__
    assert model.loss_function is ForCausalLMLoss and model(**batch()).logits.shape == (4, TOKENS, V)


def test_losses_of_experts_stay():
    model = tiny("Mixtral", router_aux_loss_coef=10.0)
    own = model(**batch())
    with patch(model):
        found = model(**batch())
    torch.testing.assert_close((found.loss, found.aux_loss), (own.loss, own.aux_loss))
    assert float(own.aux_loss.detach()) > 0.1


def test_calls_without_labels_and_with_logits():
    model = tiny("Gemma2")
    own, written = model(**batch()), model.generate(batch()["input_ids"], max_new_tokens=3, do_sample=False)
    patched = patch(model)
    assert torch.equal(model(batch()["input_ids"]).logits, own.logits)
    assert torch.equal(model.generate(batch()["input_ids"], max_new_tokens=3, do_sample=False), written)
    assert torch.equal(model.loss_function(own.logits, batch()["labels"], V), own.loss)
    patched.logits = True
    found = model(**batch())
    assert torch.equal(found.logits, own.logits)
    torch.testing.assert_close(found.loss, own.loss)
    shifted = nn.functional.pad(batch()["labels"], (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(model(**batch(), shift_labels=shifted).loss, own.loss)


def test_patching_draws_no_numbers_and_keeps_modes_and_gradients():
    model = tiny().train()
    model.model.layers[0].eval()
    torch.manual_seed(1)
    with patch(model):
        assert model.training and not model.model.layers[0].training
        assert all(p.grad is None for p in model.parameters())
        assert "labels" in inspect.signature(model.forward).parameters  # the Trainer reads it
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after


def test_a_deep_copy_has_weights_of_its_own():
    model = tiny()
    with patch(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.lm_head.weight.mul_(2)
        truth = tiny()
        with torch.no_grad():
            truth.lm_head.weight.mul_(2)
        same(loss_and_gradients(other), loss_and_gradients(truth))
        same(loss_and_gradients(model), loss_and_gradients(tiny()))


def test_undo_under_a_later_wrapper():
    model = tiny()
    own, patched = model(**batch()), patch(model)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    assert model(**batch()).logits.shape[-1] == 0
    patched.undo()
    assert torch.equal(model(**batch()).logits, own.logits)


def test_autocast_is_really_bfloat16():
    model, entered = tiny(), []
    with patch(model), torch.autocast("cpu", torch.bfloat16):
        model.lm_head.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
        loss = model(**batch()).loss
    target = nn.functional.pad(batch()["labels"], (0, 1), value=-100)[:, 1:]
    truth = ncops.linear_loss(entered[0].bfloat16(), model.lm_head.weight.detach().bfloat16(), None, target).loss
    assert loss.dtype == torch.float32 and torch.equal(loss, truth)


def test_compiled_it_is_one_graph():
    model = tiny("Gemma2")
    own = loss_and_gradients(model)
    with patch(model):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = compiled(**batch())
        model.zero_grad()
        found.loss.backward()
        assert found.logits.shape[-1] == 0
        same((found.loss.detach(), {name: p.grad for name, p in model.named_parameters()}), own)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = tiny("Gemma2").to(dtype)
    own = loss_and_gradients(model)
    with patch(model):
        tolerance = 1e-5 if dtype == torch.float64 else 0.1  # the model's own loss of float64 is float32
        same(loss_and_gradients(model), own, tolerance, tolerance)


def test_float16_gradients_survive_until_they_are_scaled():
    own, half = loss_and_gradients(tiny()), tiny().half()
    with patch(half):
        (2.0**20 * half(**batch(), num_items_in_batch=2**20).loss).backward()
    count = int((batch()["labels"][:, 1:] != -100).sum())
    found, truth = half.lm_head.weight.grad.float() / count, own[1]["lm_head.weight"]
    assert (found - truth).norm() < 0.02 * truth.norm()


class OwnLoss(transformers.LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **kwargs):
        out = super().forward(input_ids, **kwargs)
        if labels is not None:
            out.loss = nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1))
        return out


class Step(transformers.LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **kwargs):
        hidden = self.model(input_ids).last_hidden_state
        logits = 6 * (self.lm_head(hidden) / 6).tanh()
        loss = None if labels is None else self.loss_function(logits, labels, V)
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


class Adapter(nn.Linear):
    def __init__(self):
        super().__init__(16, V, bias=False)
        self.lora_B = nn.Parameter(torch.zeros(V, 2))


def adapted() -> nn.Module:
    model = tiny()
    model.lm_head = Adapter()
    return model


def hooked() -> nn.Module:
    model = tiny()
    model.lm_head.register_forward_hook(lambda module, args, out: 2 * out if isinstance(out, torch.Tensor) else out)
    return model


def seen_twice() -> nn.Module:
    model = tiny()
    patch(model)
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(3, 4), TypeError, "expected a model or Trainer of transformers, got Linear"),
        (
            lambda: transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=V, d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4)
            ),
            ValueError,
            "T5ForConditionalGeneration, an encoder-decoder",
        ),
        (adapted, ValueError, "expected no adapter on the output embedding of LlamaForCausalLM, got lora_B"),
        (hooked, ValueError, r"are not those of softcap\(scale .* an adapter on the head, a step after it"),
        (lambda: Step(tiny().config), ValueError, r"Step are not those of .* a step after it"),
        (lambda: OwnLoss(tiny().config), ValueError, "OwnLoss computes its loss by other means than loss_function"),
        (seen_twice, ValueError, r"LlamaForCausalLM is patched already: undo\(\) comes first"),
    ],
    ids=["no model", "encoder-decoder", "adapter", "hook", "unnamed cap", "own loss", "twice"],
)
def test_refused_by_name_and_left_as_it_was(make, error, message):
    model = make()
    before = {module: set(module.__dict__) for module in model.modules()}
    with pytest.raises(error, match=message):
        patch(model)
    assert {module: set(module.__dict__) for module in model.modules()} == before


def trainer(folder, model, empty: int = 0, **options) -> transformers.Trainer:
    """``empty``: how many of the rows have no label."""
    g, rows = torch.Generator().manual_seed(2), []
    for i in range(32):
        ids = torch.randint(3, V, (TOKENS,), generator=g)
        without = torch.arange(TOKENS if i < empty else i % 5)
        rows.append({"input_ids": ids, "labels": ids.clone().index_fill_(0, without, -100)})
    hooks = {name: options.pop(name) for name in ("compute_metrics", "compute_loss_func") if name in options}
    arguments = transformers.TrainingArguments(
        str(folder), **{"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3} | options,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:8], **hooks)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-4),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-4),
        ({"bf16": True}, 2e-2),
    ],
    ids=["plain", "accumulation", "checkpointing", "bf16"],
)
@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_the_trainer_sees_the_same_losses(tmp_path, name, options, tolerance):
    def losses(patched: bool) -> list[float]:
        run = trainer(tmp_path, tiny(name), **options)
        if patched:
            patch(run)
        run.train()
        assert (run.model(**batch()).logits.shape[-1] == 0) == patched
        return [row["loss"] for row in run.state.log_history if "loss" in row] + [run.evaluate()["eval_loss"]]

    own, found = losses(False), losses(True)
    assert len(own) == 5 and own[-1] < own[0]
    assert found == pytest.approx(own, rel=tolerance)


def test_metrics_get_their_logits(tmp_path):
    run = trainer(tmp_path, tiny(), compute_metrics=lambda found: {"wide": found.predictions.shape[-1]})
    with pytest.raises(ValueError, match="expected a Trainer without compute_metrics without logits=True"):
        patch(run)
    patch(run, logits=True)
    assert run.evaluate()["eval_wide"] == V


@pytest.mark.parametrize(
    ("options", "message"),
    [({"label_smoothing_factor": 0.1}, "label smoothing"), ({"compute_loss_func": print}, "compute_loss_func")],
)
def test_what_a_trainer_does_by_itself_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=f"expected a Trainer without {message}: its loss would not be ours"):
        patch(trainer(tmp_path, tiny(), **options))


def on_rank(rank: int, how: str) -> dict[str, list]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, whole = tiny(), batch()
    patch(model)
    if how == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (RANKS,))
        for part in (*model.model.layers, *([model.lm_head] if how == "head" else [])):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    items = int((whole["labels"][:, 1:] != -100).sum()) / RANKS
    for _ in range(2):
        model.zero_grad()
        model(**{name: t[rank::RANKS] for name, t in whole.items()}, num_items_in_batch=items).loss.backward()
    return {
        name.removeprefix("module."): (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).tolist()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("how", ["ddp", "root", "head"])
def test_two_ranks_equal_one_process(on_ranks, how):
    own = loss_and_gradients(tiny())
    for found in on_ranks(RANKS, on_rank, how):
        same((own[0], {name: torch.tensor(gradient) for name, gradient in found.items()}), own)


def trained_on_rank(
    rank: int, name: str | Callable, patched: str, folder: str, counted: bool, options: dict
) -> tuple[list[float], dict[str, list]]:
    """Losses of the steps and of an evaluation, and the parameters after them, of a Trainer among two."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "OMP_NUM_THREADS": 1}
    with mock.patch.dict(os.environ, {key: str(value) for key, value in place.items()}):
        model = tiny(name) if isinstance(name, str) else name()
        if not counted:
            model.accepts_loss_kwargs = False
        if patched == "model":
            patch(model)
        run = trainer(folder, model, optim="sgd", learning_rate=0.3, max_steps=3, **options)
        if patched == "trainer":
            patch(run)
        run.train()
        assert isinstance(run.model_wrapped, nn.parallel.DistributedDataParallel) and run.args.world_size == RANKS
        losses = [row["loss"] for row in run.state.log_history if "loss" in row] + [run.evaluate()["eval_loss"]]
        assert (model(**batch()).logits.shape[-1] == 0) == (patched != "")
    return losses, {key: parameter.tolist() for key, parameter in model.named_parameters()}


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "empty": 12}


@pytest.mark.parametrize("averaged", [True, False], ids=["averaged", "per device"])
@pytest.mark.parametrize(
    ("name", "options", "counted"),
    [
        ("Llama", {}, True),
        ("tied Llama", {}, True),
        ("Gemma2", ACCUMULATED, True),
        ("Llama", ACCUMULATED | {"gradient_checkpointing": True}, True),
        ("Llama", {"gradient_accumulation_steps": 2}, False),
    ],
    ids=["plain", "tied", "accumulation", "checkpointing", "mean of batches"],
)
def test_the_trainer_of_two_ranks(on_ranks, tmp_path, name, options, counted, averaged):
    arguments = str(tmp_path), counted, {**options, "average_tokens_across_devices": averaged}
    own = on_ranks(RANKS, trained_on_rank, name, "", *arguments)
    for patched in ("model", "trainer"):
        found = on_ranks(RANKS, trained_on_rank, name, patched, *arguments)
        for mine, theirs in zip(found, own, strict=True):
            assert len(theirs[0]) == 4 and len(set(theirs[0])) == 4
            assert mine[0] == pytest.approx(theirs[0], rel=1e-5, nan_ok=True)  # 0 items: nothing is evaluated
            for key, parameter in theirs[1].items():
                torch.testing.assert_close(torch.tensor(mine[1][key]), torch.tensor(parameter), rtol=1e-4, atol=1e-6)
        assert found[0][1] == found[1][1], "the ranks hold the same bits"
