"""What `ncops lm` must not measure as a causal model with a plain head, and the one line that says why."""

from __future__ import annotations

import json

import pytest
import torch
from test_lm import SMALL, llama, save, save_tokenizer, sentence, transformers

from ncops import cli
from ncops.errors import CommandError
from ncops.lm import find_head
from ncops.model import identity, stated_softcap

IDS = torch.randint(3, 140, (1, 16), generator=torch.Generator().manual_seed(0))
SIZES = {**SMALL, "initializer_range": 0.3}


def refused(folder, capsys, tmp_path) -> str:
    text = tmp_path / "text.txt"
    text.write_text(sentence(1, 400))
    assert cli.main(["lm", str(folder), "--text", str(text), "--window", "32", "--json"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    lines = [line for line in streams.err.splitlines() if line.startswith("ncops: MODEL")]
    assert len(lines) == 1 and len(lines[0]) < 500, streams.err
    return lines[0]


def rewrite(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- models that see their own label
def bert(cls=None, **options):
    return (cls or transformers.BertLMHeadModel)(transformers.BertConfig(**SIZES, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_model_that_sees_later_tokens_is_refused(dtype):
    find_head(bert(is_decoder=True).eval().to(dtype), IDS)
    with pytest.raises(CommandError, match=r"BertLMHeadModel is not causal: .* is_decoder is false"):
        find_head(bert().eval().to(dtype), IDS)


def test_an_untrained_model_of_small_weights_is_refused_too():
    model = transformers.BertLMHeadModel(transformers.BertConfig(**SMALL)).eval()
    with pytest.raises(CommandError, match="not causal"):
        find_head(model, IDS)


def test_masked_models_are_refused(tmp_path, capsys):
    save(tmp_path / "masked", bert(transformers.BertForMaskedLM))
    assert "holds a BertForMaskedLM" in refused(tmp_path / "masked", capsys, tmp_path)
    rewrite(tmp_path / "masked", architectures=["BertLMHeadModel"])
    assert "not causal" in refused(tmp_path / "masked", capsys, tmp_path)


# ---- a part of a model
def test_encoder_decoders_are_refused(tmp_path, capsys):
    sizes = {"vocab_size": 150, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = transformers.BartConfig(**sizes, **heads, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=64)
    save(tmp_path / "bart", transformers.BartForConditionalGeneration(bart))
    line = refused(tmp_path / "bart", capsys, tmp_path)
    assert "is an encoder-decoder (BartForConditionalGeneration)" in line
    whisper = transformers.WhisperConfig(**sizes, **heads, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0)
    save(tmp_path / "whisper", transformers.WhisperForConditionalGeneration(whisper))
    assert "is an encoder-decoder" in refused(tmp_path / "whisper", capsys, tmp_path)


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "LlamaModel"])
def test_other_heads_and_none_are_refused(architecture, tmp_path, capsys):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0)
    save(tmp_path / "model", getattr(transformers, architecture)(config))
    line = refused(tmp_path / "model", capsys, tmp_path)
    assert f"holds a {architecture}" in line and "LlamaForCausalLM would be another model, or a part of it" in line


def test_weights_that_are_not_used_are_named(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    save(folder, llama())
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "v_head.summary.weight": torch.zeros(1, 24)}, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "a.txt").write_text(sentence(1, 400))
    assert cli.main(["lm", str(folder), "--text", str(tmp_path / "a.txt"), "--window", "32", "--json"]) == 0
    streams = capsys.readouterr()
    assert "does not use 1 weight(s) of the checkpoint, v_head.summary.weight for one" in streams.err
    assert json.loads(streams.out)["run"]["unused_weights"].startswith("1 weight(s)")


def test_a_type_that_is_not_causal_is_named_in_a_short_line(tmp_path, capsys):
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.ViTModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    line = refused(folder, capsys, tmp_path)
    assert "as a causal language model: ViTModel is none that transformers knows (AutoModelForCausalLM lists" in line


# ---- heads that are more than a product
class Adapted(torch.nn.Linear):
    """A linear layer with a low-rank adapter, as adapter libraries patch one in."""

    def forward(self, x):
        return super().forward(x) + x @ self.a @ self.b


def test_an_adapter_on_the_head_is_refused():
    model = llama().eval()
    head = Adapted(24, 150, bias=False)
    head.weight = model.lm_head.weight
    head.a, head.b = torch.randn(24, 2), torch.randn(2, 150)
    model.lm_head = head
    with pytest.raises(CommandError, match="an adapter on it, or a step after it, is not measured"):
        find_head(model, IDS)


class Capped(torch.nn.Module):
    """A causal model whose logits are soft-capped without a word in its configuration."""

    def __init__(self, cap: float, after: float = 1.0, bend=torch.tanh):
        super().__init__()
        self.inner, self.cap, self.after, self.bend = llama(initializer_range=0.5), cap, after, bend
        self.config, self.base_model = self.inner.config, self.inner.base_model

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, **inputs):
        out = self.inner(**inputs)
        out.logits = self.after * self.cap * self.bend(out.logits / self.cap)
        return out


@pytest.mark.parametrize(
    ("dtype", "near"),
    [(torch.float64, 3e-12), (torch.float32, 3e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-3)], ids=str,
)  # fmt: skip
def test_a_soft_cap_that_nothing_names_is_fitted(dtype, near):
    """In half precision most caps move each of the model's own logits by less than its rounding."""
    model = Capped(3e4).eval()
    with torch.no_grad():
        largest = float(model(input_ids=IDS).logits.abs().max())
    model.to(dtype)
    for cap in (largest / 4, largest, 40 * largest, 700.0):
        model.cap = cap
        head = find_head(model, IDS)
        assert head.scale == 1.0 and head.fitted == ("softcap",)
        assert head.softcap == pytest.approx(cap, rel=near) and (cap != 700.0 or head.softcap == 700.0)
        assert "softcap" in head.remarks()[0]
    if dtype != torch.float16:
        model.cap = 1e9  # more than float16 holds
        assert find_head(model, IDS)[4:] == (None, None, ())


def test_a_scale_after_the_cap_is_one_before_a_larger_cap():
    model = Capped(12.0, after=0.5).eval().double()
    head = find_head(model, IDS)
    assert (head.scale, head.softcap) == pytest.approx((0.5, 6.0), rel=1e-12)
    assert head.fitted == ("softcap", "scale")
    model.config.logits_scaling = 2.0
    for stated in (12.0, 6.0):
        model.config.logits_soft_cap = stated
        assert find_head(model, IDS)[2:] == (0.5, "base", 6.0, None, ())


def nan_beyond(z):
    return z + 0 * (1 - z.abs()).sqrt()


@pytest.mark.parametrize(
    "bend",
    [torch.nn.functional.softsign, torch.atan, torch.special.erf, lambda z: z.clamp(-1, 1), torch.asinh, nan_beyond],
)
@pytest.mark.parametrize("size", [30.0, 3000.0])  # the larger bends nothing but what is stretched
def test_other_bends_are_refused(bend, size):
    model = Capped(size, bend=bend).eval()
    with pytest.raises(CommandError, match="are not softcap"):
        find_head(model, IDS)


def test_soft_caps_by_any_name():
    for name in ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap", "output_logits_soft_cap"):
        assert stated_softcap(transformers.LlamaConfig(**{name: 30.0})) == 30.0
    for name in ("attn_logit_softcapping", "attention_logits_soft_cap", "router_logit_cap"):
        assert stated_softcap(transformers.LlamaConfig(**{name: 30.0})) is None
    assert stated_softcap(transformers.LlamaConfig(final_logit_softcapping=None)) is None


# ---- identity
def test_models_that_share_a_head_are_two_models(tmp_path, capsys):
    torch.manual_seed(5)
    model = llama()
    save(tmp_path / "a", model)
    before = identity(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 4] += 1e-3
    save(tmp_path / "b", model)
    assert identity(model) != before
    text = tmp_path / "text.txt"
    text.write_text(sentence(1, 400))

    def run(name, *more):
        line = ["lm", str(tmp_path / name), "--text", str(text), "--window", "32", "--min-count", "2", "--json"]
        status = cli.main([*line, *map(str, more)])
        return status, capsys.readouterr().err

    for name in ("a", "b"):
        (tmp_path / f"{name}-stats").mkdir()
        assert run(name, "--save", tmp_path / f"{name}-stats")[0] == 0
    status, said = run("b", "--statistics", tmp_path / "a-stats")
    assert status == 2 and "expected those of this model" in said
    assert run("a", "--statistics", tmp_path / "a-stats")[0] == 0
    files = [str(tmp_path / f"{name}-stats" / "class_statistics.safetensors") for name in ("a", "b")]
    assert cli.main(["merge", *files, "--output", str(tmp_path / "sum")]) == 2
    assert "made with" in capsys.readouterr().err
    (tmp_path / "place").mkdir()
    assert run("a", "--checkpoint", tmp_path / "place")[0] == 0
    status, said = run("b", "--checkpoint", tmp_path / "place")
    assert status == 2 and "belongs to a run with another model" in said


# ---- tokens
def test_a_padding_token_outside_the_embedding_is_never_fed(tmp_path, capsys):
    folder = tmp_path / "model"
    save(folder, llama())
    tokenizer = save_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    while tokenizer.pad_token_id < 150:
        tokenizer.add_tokens([f"more{len(tokenizer)}"])
        tokenizer.add_special_tokens({"pad_token": f"[PAD{len(tokenizer)}]"})
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.txt").write_text(sentence(2, 32 * 12 + 9))
    assert cli.main(["lm", str(folder), "--text", str(tmp_path / "a.txt"), "--window", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"]["samples"]


def test_the_text_is_looked_at_before_the_weights(tmp_path, capsys):
    folder = tmp_path / "model"
    save(folder, llama())
    (folder / "model.safetensors").write_bytes(b"would not load")
    (tmp_path / "bad.txt").write_bytes(b"one \xff byte")
    assert cli.main(["lm", str(folder), "--text", str(tmp_path / "bad.txt")]) == 2
    assert "cannot be read as UTF-8 text" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    assert cli.main(["lm", str(folder), "--text", str(tmp_path / "short.txt")]) == 2
    assert "two are needed" in capsys.readouterr().err


# ---- models that do not run
def test_a_tokenizer_that_is_larger_than_the_embedding(tmp_path, capsys):
    save(tmp_path / "model", llama(vocab_size=60))
    line = refused(tmp_path / "model", capsys, tmp_path)
    assert "its tokenizer gives the id" in line and "its embedding has 60 rows" in line


def test_a_model_that_fails_inside_is_one_line(tmp_path, capsys, monkeypatch):
    save(tmp_path / "model", llama())

    def fails(*args, **kwargs):
        raise RuntimeError("expected m1 and m2 to have the same dtype\n" + "a long story\n" * 300)

    monkeypatch.setattr(transformers.LlamaModel, "forward", fails)
    line = refused(tmp_path / "model", capsys, tmp_path)
    assert "LlamaForCausalLM does not run on 16 tokens in float32: expected m1 and m2" in line


def test_rows_of_another_shape_than_the_logits_are_refused():
    """ProphetNet predicts several tokens at a time."""
    sizes = {"num_decoder_layers": 1, "num_encoder_layers": 1, "hidden_size": 32, "vocab_size": 150, "ngram": 2}
    heads = {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    model = transformers.ProphetNetForCausalLM(transformers.ProphetNetConfig(**sizes, **heads)).eval()
    with pytest.raises(CommandError, match=r"is given \(1, 2, 16, 32\), and its logits are \(1, 16, 150\)"):
        find_head(model, IDS)


def test_no_bound_on_positions(tmp_path, capsys):
    save(tmp_path / "model", llama())
    rewrite(tmp_path / "model", max_position_embeddings=-1)
    (tmp_path / "a.txt").write_text(sentence(1, 400))
    line = ["lm", str(tmp_path / "model"), "--text", str(tmp_path / "a.txt"), "--window", "48", "--json"]
    assert cli.main(line) in (0, 2)
    assert "takes -1 tokens" not in capsys.readouterr().err


def test_layers_of_another_shape_are_refused(tmp_path, capsys, monkeypatch):
    save(tmp_path / "model", llama())
    (tmp_path / "a.txt").write_text(sentence(1, 400))
    forward = transformers.LlamaModel.forward

    def streams(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        if out.hidden_states is not None:
            out.hidden_states = tuple(h[:, :, None].expand(-1, -1, 4, -1) for h in out.hidden_states)
        return out

    monkeypatch.setattr(transformers.LlamaModel, "forward", streams)
    line = ["lm", str(tmp_path / "model"), "--text", str(tmp_path / "a.txt"), "--window", "32", "--layers", "all"]
    assert cli.main(line) == 2
    assert "--layers: expected hidden states of shape (batch, tokens, dim)" in capsys.readouterr().err
