"""PEFT's adapters and the head of a causal model: right, by the unpatched loss and gradients, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from test_integrations_loss_patch import RANKS, V, batch, loss_and_gradients, same, tiny, trained_on_rank, trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ncops.errors import CommandError
from ncops.nn import LinearHead

peft = pytest.importorskip("peft")
from ncops.integrations.transformers import patch  # noqa: E402
from ncops.lm import find_head, find_source  # noqa: E402

EMBEDDINGS = {"target_modules": ["embed_tokens"]}
ENSURED = {"ensure_weight_tying": True}
TASK = {"task_type": "CAUSAL_LM"}


def lora(**options) -> peft.LoraConfig:
    """Random from the start, so that every part of it counts."""
    return peft.LoraConfig(
        r=2, **TASK, **{"init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], **options}
    )


def adapted(config=None, name: str = "Llama", **options) -> nn.Module:
    model = tiny(name)
    torch.manual_seed(3)
    return peft.get_peft_model(model, config or lora(**options)).eval()


def added() -> nn.Module:
    """An adapter as transformers itself adds it, without a wrapper around the model."""
    model = tiny()
    torch.manual_seed(3)
    model.add_adapter(lora())
    return model.eval()


RIGHT = {
    "attention": adapted,
    "DoRA": lambda: adapted(use_dora=True),
    "capped": lambda: adapted(name="Gemma2"),
    "added": added,
    "tied": lambda: adapted(name="tied Llama"),
    "tied embeddings": lambda: adapted(name="tied Llama", **EMBEDDINGS),
    "saved head": lambda: adapted(modules_to_save=["lm_head"]),
    "saved tied head": lambda: adapted(name="tied Llama", modules_to_save=["lm_head"], **ENSURED),
    "saved embeddings": lambda: adapted(name="tied Llama", modules_to_save=["embed_tokens"]),
    "some tokens": lambda: adapted(trainable_token_indices=[3, 4]),
    "prompt": lambda: adapted(peft.PromptTuningConfig(num_virtual_tokens=3, **TASK)),
    "prefix": lambda: adapted(peft.PrefixTuningConfig(num_virtual_tokens=3, **TASK)),
    "AdaLoRA": lambda: adapted(peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"], **TASK)),
    "IA3": lambda: adapted(peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], **TASK)),
}
ON_HEAD = "expected an nn.Linear as output embedding, got peft"
REFUSED = {
    "head": (lambda: adapted(target_modules=["lm_head"]), rf"{ON_HEAD}.tuners.lora.layer.Linear in LlamaForCausalLM"),
    "untrained head": (lambda: adapted(target_modules=["lm_head"], init_lora_weights=True), ON_HEAD),
    "DoRA head": (lambda: adapted(target_modules=["lm_head"], use_dora=True), ON_HEAD),
    "tied": (lambda: adapted(name="tied Llama", **EMBEDDINGS, **ENSURED), ON_HEAD),
    "tied tokens": (lambda: adapted(name="tied Llama", trainable_token_indices=[3]), rf"{ON_HEAD}.*TrainableTokens"),
    "IA3 head": (lambda: adapted(peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], **TASK)), ON_HEAD),
    "a loss of its own": (
        lambda: adapted(
            peft.CPTConfig(cpt_token_ids=[3, 4, 5], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3], **TASK)
        ),
        "PeftModelForCausalLM fails without its logits, which logits=True forms",
    ),
}


class Wanted(TorchDispatchMode):
    """Which of x, weight and bias each sweep was asked the gradients of."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ncops.linear_loss.default:
            self.found.append(args[-3:])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RIGHT)
def test_loss_and_gradients_are_those_of_the_adapted_model(name):
    model = RIGHT[name]()
    given = [{}] if name in ("prompt", "prefix") else [{}, {"num_items_in_batch": torch.tensor(50)}]
    own, keys = [loss_and_gradients(model, **more) for more in given], list(model.state_dict())
    trained = model.get_output_embeddings().weight.requires_grad
    assert own[0][1] and own[0][0] > 0
    with patch(model), Wanted() as wanted:
        for more, expected in zip(given, own, strict=True):
            same(loss_and_gradients(model, **more), expected)
        assert model(**batch()).logits.shape[-1] == 0
        assert list(model.state_dict()) == keys
    assert len(wanted.found) == len(given) + 1
    assert all(wants == (True, trained, False) for wants in wanted.found), "a frozen head takes no gradient"
    same(loss_and_gradients(model), own[0], 0, 0)
    assert model(**batch()).logits.shape[-1] == V


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_left_as_it_was(name):
    make, message = REFUSED[name]
    model = make()
    before = {module: set(vars(module)) for module in model.modules()}
    with pytest.raises(ValueError, match=message):
        patch(model)
    assert {module: set(vars(module)) for module in model.modules()} == before


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_an_adapter_put_around_a_patched_head(options, logits):
    base = tiny()
    patched = patch(base, logits=logits)
    torch.manual_seed(3)
    model = peft.get_peft_model(base, lora(target_modules=["lm_head"], **options)).eval()
    with pytest.raises(ValueError, match="peft.tuners.lora.*Linear is around the output embedding of LlamaForCausalLM"):
        model(**batch())
    assert model(batch()["input_ids"]).logits.shape[-1] == V
    patched.undo()
    same(loss_and_gradients(model), loss_and_gradients(adapted(target_modules=["lm_head"], **options)), 0, 0)


@pytest.mark.parametrize("saved", [None, ["lm_head"]], ids=["elsewhere", "saved head"])
def test_an_adapter_that_comes_later(saved, monkeypatch):
    base = tiny()
    patched = patch(base)
    monkeypatch.setattr(type(base), "__deepcopy__", lambda *_: pytest.fail("copied the model"), raising=False)
    torch.manual_seed(3)
    model = peft.get_peft_model(base, lora(modules_to_save=saved)).eval()
    monkeypatch.undo()
    own = loss_and_gradients(adapted(modules_to_save=saved))
    same(loss_and_gradients(model), own)
    patched.undo()
    same(loss_and_gradients(model), own, 0, 0)


@pytest.mark.parametrize("saved", [None, ["lm_head"]], ids=["elsewhere", "saved head"])
def test_merged(saved):
    """The adapter's weights go into the model's; the patch stays, and can be taken off."""
    own, model = adapted(modules_to_save=saved), adapted(modules_to_save=saved)
    patched = patch(model)
    for each in (own, model):
        each.merge_adapter()
    assert torch.equal(patched._head.weight, own.get_base_model().get_output_embeddings().weight)
    torch.testing.assert_close(model(**batch()).loss, own(**batch()).loss)
    own, model = own.merge_and_unload().requires_grad_(), model.merge_and_unload().requires_grad_()
    assert model(**batch()).logits.shape[-1] == 0
    same(loss_and_gradients(model), loss_and_gradients(own))
    patched.undo()
    same(loss_and_gradients(model), loss_and_gradients(own), 0, 0)
    with patch(model):
        same(loss_and_gradients(model), loss_and_gradients(own))


@pytest.mark.parametrize("name", ["attention", "saved head"])
def test_other_adapters_than_the_patched_one(name):
    """Where its head is another, the loss is the model's own."""

    def losses(model: nn.Module) -> list[torch.Tensor]:
        with model.disable_adapter():
            found = [model(**batch()).loss]
        for active in ("other", "default"):
            model.set_adapter(active)
            found.append(model(**batch()).loss)
        return found

    def two() -> nn.Module:
        model = RIGHT[name]()
        torch.manual_seed(4)
        model.add_adapter("other", lora(modules_to_save=["lm_head"] if name == "saved head" else None))
        if name == "saved head":
            with torch.no_grad():
                model.base_model.model.lm_head.modules_to_save["other"].weight.mul_(0.5)
        return model.eval()

    own, model = losses(two()), two()
    assert len({float(loss) for loss in own}) == 3
    with patch(model):
        torch.testing.assert_close(losses(model), own)


@pytest.mark.parametrize("name", ["attention", "saved head"])
def test_the_trainer_of_an_adapter(tmp_path, name):
    def losses(patched: bool) -> list[float]:
        run = trainer(tmp_path, RIGHT[name](), gradient_accumulation_steps=2, per_device_train_batch_size=2)
        if patched:
            patch(run)
        run.train()
        assert (run.model(**batch()).logits.shape[-1] == 0) == patched
        return [row["loss"] for row in run.state.log_history if "loss" in row] + [run.evaluate()["eval_loss"]]

    own, found = losses(False), losses(True)
    assert len(set(own)) == 5 and found == pytest.approx(own, rel=1e-4)


def on_rank(rank: int, patched: str, folder: str):
    return trained_on_rank(rank, adapted, patched, folder, True, {"gradient_accumulation_steps": 2})


def test_the_trainer_of_two_ranks(on_ranks, tmp_path):
    own, found = (on_ranks(RANKS, on_rank, patched, str(tmp_path)) for patched in ("", "trainer"))
    for mine, theirs in zip(found, own, strict=True):
        assert len(set(theirs[0])) == 4 and mine[0] == pytest.approx(theirs[0], rel=1e-5)
        for key, parameter in theirs[1].items():
            torch.testing.assert_close(torch.tensor(mine[1][key]), torch.tensor(parameter), rtol=1e-4, atol=1e-6)


def test_a_head_that_takes_targets():
    x, target = torch.randn(6, 16), torch.randint(V, (6,))
    head = adapted().get_base_model().lm_head
    found = LinearHead.from_linear(head)(x, target)
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(head(x), target))
    saved = adapted(modules_to_save=["lm_head"]).get_base_model().lm_head
    assert LinearHead.from_linear(saved.modules_to_save["default"]).weight is saved.weight
    for name, wrapped in (("utils.other.ModulesToSaveWrapper", saved), ("tuners.lora.layer.Linear", lora_head(tiny()))):
        with pytest.raises(TypeError, match=f"linear: expected an nn.Linear, got peft.{name}"):
            LinearHead.from_linear(wrapped)


def lora_head(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, lora(target_modules=["lm_head"])).eval().get_base_model().lm_head


def test_adapters_around_a_head_that_takes_targets():
    """A trained copy of it takes them too; under LoRA, whose products it does not know, they are an error."""
    x, target = torch.randn(6, 16), torch.randint(V, (6,))
    model = tiny()
    model.lm_head = LinearHead.from_linear(model.lm_head)
    saved = peft.get_peft_model(copy.deepcopy(model), lora(modules_to_save=["lm_head"])).get_base_model().lm_head
    loss = saved(x, target).loss
    torch.testing.assert_close(loss, nn.functional.cross_entropy(saved(x), target))
    loss.backward()
    assert saved.modules_to_save["default"].weight.grad is not None and saved.original_module.weight.grad is None
    with pytest.raises(AttributeError, match="'LinearLoss' object has no attribute 'dtype'"):
        lora_head(model)(x, target)


@pytest.mark.parametrize("name", ["attention", "DoRA", "added", "tied embeddings", "saved head", "AdaLoRA"])
def test_the_measured_head(name):
    model, ids = RIGHT[name](), batch()["input_ids"][:1]
    head = find_head(model, ids)
    x = model(ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(head.scale * (x @ head.weight.T), model(ids).logits)
    assert head.bias is None and (name == "added") == (head.features == "base")


def test_a_measured_head_with_an_adapter():
    model, ids = adapted(target_modules=["lm_head"]), batch()["input_ids"][:1]
    with pytest.raises(CommandError, match="an adapter on it, or a step after it, is not measured"):
        find_head(model, ids)
    merged = model.merge_and_unload()
    torch.testing.assert_close(find_head(merged, ids).weight, merged.lm_head.weight.detach())


def test_an_adapter_alone_is_no_model(tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(CommandError, match=r"an adapter of PEFT without its model: give the model's, and --adapter"):
        find_source(tmp_path)
