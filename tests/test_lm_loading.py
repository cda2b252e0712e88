"""`ncops lm` on models that take more than a folder of weights: adapters, code of their own, several devices."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from test_lm import SMALL, llama, run, save, save_tokenizer, sentence, transformers
from test_lm_refusals import rewrite

from ncops import cli
from ncops.errors import CommandError
from ncops.lm import find_source, load

peft = pytest.importorskip("peft")
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(0))
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"]),
    "rslora": lambda: peft.LoraConfig(r=3, target_modules="all-linear", use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=3, target_modules=["v_proj"], use_dora=True),
    "head": lambda: peft.LoraConfig(r=3, target_modules=["lm_head", "k_proj"]),
    "embedding": lambda: peft.LoraConfig(r=3, target_modules=["embed_tokens"]),
    "whole head": lambda: peft.LoraConfig(r=3, target_modules=["k_proj"], modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def adapted(folder, settings, **options):
    """A model saved in ``folder``/model and a random adapter of it in ``folder``/adapter; the two together."""
    model = llama(**options)
    save(folder / "model", model)
    both = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for parameter in both.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    both.save_pretrained(folder / "adapter")
    return both


def text(tmp_path) -> str:
    (tmp_path / "a.txt").write_text(sentence(1, 400))
    return str(tmp_path / "a.txt")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_a_merged_adapter_is_the_model_beside_its_adapter(kind, tied, tmp_path):
    both = adapted(tmp_path, ADAPTERS[kind](), tie_word_embeddings=tied).double()
    loaded = load(find_source(tmp_path / "model"), dtype="float64", adapter=tmp_path / "adapter")
    with torch.no_grad():
        wanted, found = both(input_ids=IDS).logits, loaded.model(input_ids=IDS).logits
        plain = load(find_source(tmp_path / "model"), dtype="float64").model(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert float((plain - wanted).abs().max()) > 0.1
    assert not [name for name, _ in loaded.model.named_modules() if "lora" in name]


def test_adapters_through_the_command(tmp_path, capsys):
    both = adapted(tmp_path, ADAPTERS["lora"]())
    merged = both.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    save_tokenizer(tmp_path / "merged")
    line = ["--text", text(tmp_path), "--window", 32, "--min-count", 2, "--dtype", "float64"]
    found = run(capsys, tmp_path / "model", *line, "--adapter", tmp_path / "adapter")
    wanted = run(capsys, tmp_path / "merged", *line)
    plain = run(capsys, tmp_path / "model", *line)
    assert found["run"]["adapter"] == str(tmp_path / "adapter") and wanted["run"]["adapter"] is None
    assert found["metrics"]["nll"] == pytest.approx(wanted["metrics"]["nll"], rel=1e-6)
    assert abs(found["metrics"]["nll"] - plain["metrics"]["nll"]) > 1e-3 * plain["metrics"]["nll"]


def refused(capsys, tmp_path, *arguments) -> str:
    assert cli.main(["lm", *map(str, arguments), "--text", text(tmp_path), "--window", "32"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ncops: ")]
    assert len(line) < 500
    return line


def test_adapters_that_are_none_of_this_model(tmp_path, capsys, monkeypatch):
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    adapted(tmp_path, ADAPTERS["lora"]())
    assert f"holds an adapter of PEFT without its model: give the model's, and --adapter {adapter}" in refused(
        capsys, tmp_path, adapter
    )
    (adapter / "config.json").write_text((folder / "config.json").read_text())  # as people add it by hand
    assert "--adapter" in refused(capsys, tmp_path, adapter)
    assert "--adapter: expected a folder with adapter_config.json" in refused(
        capsys, tmp_path, folder, "--adapter", folder
    )
    save(tmp_path / "deeper", llama(num_hidden_layers=4))
    assert f"--adapter: {adapter} lacks 4 weight(s), " in refused(
        capsys, tmp_path, tmp_path / "deeper", "--adapter", adapter
    )
    save(tmp_path / "flatter", llama(num_hidden_layers=2))
    assert "has no place in this model for 4 weight(s), " in refused(
        capsys, tmp_path, tmp_path / "flatter", "--adapter", adapter
    )
    save(tmp_path / "wider", llama(hidden_size=32))
    assert f"--adapter: {adapter} did not load: " in refused(capsys, tmp_path, tmp_path / "wider", "--adapter", adapter)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(llama(), prompt).save_pretrained(tmp_path / "prompt")
    assert "is a learned prompt (PROMPT_TUNING)" in refused(capsys, tmp_path, folder, "--adapter", tmp_path / "prompt")
    for name in ("model.safetensors", "tokenizer.json"):
        (adapter / name).write_bytes((folder / name).read_bytes())
    assert "holds a model and an adapter: give each a folder" in refused(capsys, tmp_path, adapter)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'ncops[peft]'" in refused(capsys, tmp_path, folder, "--adapter", adapter)


CODE = """
import transformers


class OwnConfig(transformers.LlamaConfig):
    model_type = "own"


class OwnForCausalLM(transformers.LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 0.5 * out.logits
        return out
"""


def test_code_of_its_own_runs_only_if_it_is_trusted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    save(folder, llama())
    (folder / "own.py").write_text(CODE)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    rewrite(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=own)
    line = refused(capsys, tmp_path, folder)
    assert "runs only with code of its own (auto_map in its configuration): --trust-remote-code lets it" in line
    options = [folder, "--text", text(tmp_path), "--window", 32, "--min-count", 2]
    assert run(capsys, *options, "--trust-remote-code")["run"]["logit_scale"] == pytest.approx(0.5, rel=1e-6)
    rewrite(folder, model_type="llama", architectures=["LlamaForCausalLM"])  # a type that transformers has too
    assert cli.main(["lm", *map(str, options), "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["run"]["logit_scale"] == 1.0
    assert "code of its own (auto_map) does not run, that of transformers does" in streams.err


def test_a_device_map(tmp_path, capsys):
    pytest.importorskip("accelerate")
    folder = save(tmp_path / "model", llama())
    line = [folder, "--text", text(tmp_path), "--window", 32, "--min-count", 2, "--layers", "all"]
    spread, plain = (run(capsys, *line, *more) for more in (("--device-map", "sequential"), ("--device", "cpu")))
    if not torch.cuda.is_available():
        assert spread["metrics"] == plain["metrics"] and spread["layers"] == plain["layers"]
    line = refused(capsys, tmp_path, folder, "--device-map", "auto", "--device", "cpu")
    assert "--device-map: auto takes all devices in one process, and --device cpu gives it one" in line


def test_a_model_on_several_devices_gives_features_where_its_head_is(tmp_path):
    """The head on a device of its own, which here has no numbers: shapes and devices are right."""
    from ncops.lm.head import Head, body

    model = llama().eval()
    head = Head(torch.empty(150, 24, device="meta"), None, 1.0, "base")
    assert body(model, head, IDS, torch.ones_like(IDS))[0].device.type == "meta"


def test_weights_that_are_fetched_when_they_run_are_refused(tmp_path):
    from accelerate import cpu_offload

    folder = save(tmp_path / "model", llama())
    loaded = load(find_source(folder), device_map="auto")
    real = transformers.AutoModelForCausalLM.from_pretrained

    def offloaded(*args, **options):
        model, info = real(*args, **{**options, "device_map": None})
        return cpu_offload(model, torch.device("cpu")), info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", offloaded)
        with pytest.raises(CommandError, match="--device-map: .* does not fit these devices"):
            loaded.model  # noqa: B018


def test_experts_run_in_float64(tmp_path, capsys):
    sizes = {"num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64}
    folder = save(tmp_path / "moe", transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, **sizes)))
    line = [folder, "--text", text(tmp_path), "--window", 32, "--min-count", 2]
    double, single = (run(capsys, *line, "--dtype", dtype) for dtype in ("float64", "float32"))
    assert double["run"]["dtype"] == "float64"
    assert double["metrics"]["nll"] == pytest.approx(single["metrics"]["nll"], rel=1e-5)
