"""The lens against the plain expression on full logits of every layer, in float64."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import save_file
from test_lm import SMALL, llama, save, sentence, transformers
from torch.nn import functional

import ncops
from ncops import cli, memory
from ncops.errors import CommandError
from ncops.lm.head import Head
from ncops.lm.lens.columns import DIVERGENCES, HALF_ROWS, Reference, pull
from ncops.lm.lens.run import LayerLens
from ncops.lm.lens.stream import find_stream
from ncops.lm.load import LoadedModel
from ncops.lm.windows import IGNORE

SIZES = {**SMALL, "initializer_range": 0.3}
GPT = {"vocab_size": 150, "n_embd": 24, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}
OPT = {**SIZES, "ffn_dim": 48, "init_std": 0.3}
IDS = torch.randint(3, 140, (2, 12), generator=torch.Generator().manual_seed(0))


def opt(**options):
    return transformers.OPTForCausalLM(transformers.OPTConfig(**{**OPT, **options}))


def opt_tail(model, h):
    decoder = model.model.decoder
    h = h if decoder.final_layer_norm is None else decoder.final_layer_norm(h)
    return h if decoder.project_out is None else decoder.project_out(h)


# Model, and how its last state becomes the input of the head: by its source, not by search.
MODELS = {
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, initializer_range=0.3)),
        lambda m, h: m.transformer.ln_f(h), "transformer.ln_f",
    ),
    "llama": (llama, lambda m, h: m.model.norm(h), "model.norm"),
    "opt before": (
        lambda: opt(word_embed_proj_dim=10), opt_tail, "model.decoder.final_layer_norm -> model.decoder.project_out",
    ),
    "opt after": (
        lambda: opt(word_embed_proj_dim=10, do_layer_norm_before=False), opt_tail, "model.decoder.project_out",
    ),
    "no norm": (
        lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**GPT, initializer_range=0.3)),
        lambda m, h: h, "the state",
    ),
    "transform": (
        lambda: transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, is_decoder=True)),
        lambda m, h: m.cls.predictions.transform(h), "cls.predictions.transform",
    ),
    "factor": (
        lambda: transformers.MiniCPM3ForCausalLM(transformers.MiniCPM3Config(**SIZES, dim_model_base=8)),
        lambda m, h: m.model.norm(h) / 3, "model.norm * 0.333333",
    ),
    "mamba": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=150, hidden_size=24, num_hidden_layers=3, state_size=4)
        ),
        lambda m, h: m.backbone.norm_f(h), "backbone.norm_f",
    ),
}  # fmt: skip


def made(name: str):
    torch.manual_seed(5)
    model = MODELS[name][0]().eval()
    if name != "mamba":  # which gives its logits in float32, whatever it is
        model.double()
    with torch.no_grad():  # norms whose gains are all 1 would hide which of them is taken
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits_by_layer(name: str, model, ids) -> torch.Tensor:
    """(L, B, T, V): of every layer by the model's own modules, of the last one as the model gives them."""
    out = model(ids, output_hidden_states=True)
    states = out.hidden_states
    if name == "mamba":  # gives what leaves its blocks only
        states = (model.get_input_embeddings()(ids), *states)
    head = model.get_output_embeddings()
    middle = [head(MODELS[name][1](model, h)) for h in states[:3]]
    if name == "factor":
        torch.testing.assert_close(head(states[-1] / 3), out.logits, rtol=1e-12, atol=1e-12)
    return torch.stack([*middle, out.logits])


def plain(logits: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every column from full logits (L, B, T, V) in float64; NaN and -1 where there is no next token."""
    logq = logits.log_softmax(-1)
    q, logp = logq.exp(), logq[-1]
    p, m = logp.exp(), (logq.exp() + logp.exp()) / 2
    target = ids[:, 1:].expand(len(logits), -1, -1)[..., None]
    known = logits[:, :, :-1].gather(-1, target)
    wide = {"value": torch.nan, "pad": (0, 1)}
    return {
        "entropy": -(q * logq).sum(-1),
        "kl": (p * (logp - logq)).sum(-1),
        "agree": logits.argmax(-1) == logits[-1].argmax(-1),
        "rank": functional.pad((logits[:, :, :-1] > known).sum(-1), (0, 1), value=-1),
        "logprob": functional.pad(logq[:, :, :-1].gather(-1, target)[..., 0], **wide),
        "reverse_kl": (q * (logq - logp)).sum(-1),
        "js": ((p * (logp - m.log())).sum(-1) + (q * (logq - m.log())).sum(-1)) / 2,
        "overlap": torch.minimum(p, q).sum(-1),
    }


def assert_lens(found, wanted, tolerance=1e-9) -> None:
    for name, values in wanted.items():
        got = getattr(found, name)
        if values.is_floating_point():
            torch.testing.assert_close(got.to(values), values, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
        else:
            assert torch.equal(got, values), name


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_full_logits(name):
    model = made(name)
    logits = logits_by_layer(name, model, IDS)
    tolerance = 1e-9 if logits.dtype == torch.float64 else 1e-4
    wanted = plain(logits.double(), IDS)
    others = {column: wanted.pop(column) for column in DIVERGENCES}
    found = ncops.lens(model, IDS, batch_size=1)
    assert found.layers == (0, 1, 2, 3) and found.facts["through"] == MODELS[name][2]
    assert_lens(found, wanted, tolerance)
    assert found.reverse_kl is None and (found.kl[-1] == 0).all() and found.agree[-1].all()
    top = logits.log_softmax(-1).topk(5)
    assert torch.equal(found.top, top.indices)
    torch.testing.assert_close(found.top_logprob, top.values, rtol=tolerance, atol=tolerance)
    assert_lens(ncops.lens(model, IDS, divergences=True), wanted | others, tolerance)


@pytest.mark.parametrize("divergences", [False, True])
def test_a_soft_cap_and_a_scale(divergences):
    torch.manual_seed(2)
    config = transformers.Gemma2Config(**SIZES, head_dim=6, num_key_value_heads=2, final_logit_softcapping=2.0)
    model = transformers.Gemma2ForCausalLM(config).double().eval()
    weight = model.get_output_embeddings().weight.detach()
    with torch.no_grad():
        out = model(IDS, output_hidden_states=True)
        middle = [2 * torch.tanh(model.model.norm(h) @ weight.T / 2) for h in out.hidden_states[:3]]
        head = Head(2 * weight, None, 0.5, "interrupted", 2.0)
        target = torch.cat([IDS[:, 1:], torch.full((2, 1), IGNORE)], 1)
        made = LayerLens(model, head, IDS[:1], "all", None, divergences)
        found = made.read(IDS, torch.ones_like(IDS), target, 3)
        logits = torch.stack([*middle, out.logits])
        wanted = plain(logits, IDS)
    if not divergences:
        wanted = {name: values for name, values in wanted.items() if name not in DIVERGENCES}
    assert_lens(found, wanted)
    assert found.logprob.nan_to_num().abs().max() < math.log(150) + 4  # capped logits are within 2 of 0
    top = logits.log_softmax(-1).topk(3)
    assert torch.equal(found.top, top.indices)
    torch.testing.assert_close(found.top_logprob, top.values, rtol=1e-9, atol=1e-9)
    assert (found.facts["logit_scale"], found.facts["softcap"]) == (0.5, 2.0)


def test_layers_and_single_choices():
    model = made("llama")
    whole, some = ncops.lens(model, IDS), ncops.lens(model, IDS, layers=[0, -2], top=1)
    assert some.layers == (0, 2, 3) and ncops.lens(model, IDS, layers="1").layers == (1, 3)
    for name, column in some.columns().items():
        assert torch.equal(column.nan_to_num(), getattr(whole, name)[[0, 2, 3]].nan_to_num()), name
    assert torch.equal(some.top, whole.top[[0, 2, 3], ..., :1])
    torch.testing.assert_close(some.top_logprob, whole.top_logprob[[0, 2, 3], ..., :1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergences", [False, True])
def test_how_many_layers_meet_the_head_together_changes_nothing(monkeypatch, divergences):
    model = made("llama")
    whole = ncops.lens(model, IDS, divergences=divergences, top=2)
    for rows in (1, 2 * IDS.numel()):
        monkeypatch.setattr("ncops.lm.lens.run.TOGETHER", rows)
        found = ncops.lens(model, IDS, divergences=divergences, top=2)
        for name, column in found.columns().items():
            assert torch.equal(column.nan_to_num(), getattr(whole, name).nan_to_num()), name
        assert torch.equal(found.top, whole.top) and torch.equal(found.top_logprob, whole.top_logprob)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-6), (torch.float64, 1e-13)])
def test_one_product_gives_the_kl(dtype, bound):
    """By the Bregman form, of states as they are in their dtype, up to the rounding of the logits' size."""
    x, weight = 2 * torch.randn(20, 32), torch.randn(HALF_ROWS + 900, 32)
    bias = torch.randn(len(weight))
    bias[7] = -torch.inf
    y = (x + torch.logspace(-3, 0.3, 20)[:, None] * torch.randn(20, 32)).to(dtype)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    target = torch.full((20,), IGNORE)
    found = Reference(x, Head(weight, bias, 0.7, "base"), target, IGNORE).columns(y)
    exact = ncops.linear_divergence(x.double(), weight.double(), y.double(), bias=bias.double(), scale=0.7)
    assert exact.kl.max() > 5 and exact.kl.min() < 1e-3
    assert (found.kl.double() - exact.kl).abs().max() < bound * (x.double() @ weight.double().T).abs().max()
    assert (found.kl >= 0).all()


def test_the_pull_is_the_expected_row():
    x, weight = torch.randn(7, 16), torch.randn(2 * HALF_ROWS + 5, 16)
    bias = torch.randn(len(weight))
    probability = (0.5 * x.double() @ weight.double().T + bias).softmax(-1)
    got = pull(x, Head(weight, bias, 0.5, "base"))
    torch.testing.assert_close(got.double(), 0.5 * probability @ weight.double(), rtol=1e-5, atol=1e-6)
    half = weight.bfloat16()
    probability = (0.5 * x.bfloat16().double() @ half.double().T + bias.bfloat16()).softmax(-1)
    got = pull(x.bfloat16(), Head(half, bias.bfloat16(), 0.5, "base"))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), 0.5 * probability @ half.double(), rtol=1e-5, atol=1e-6)


def test_half_precision_is_close():
    model = made("llama").bfloat16()
    found = ncops.lens(model, IDS)
    logits = logits_by_layer("llama", model, IDS).double()
    wanted = plain(logits, IDS)
    assert found.kl.dtype == torch.float32
    assert (found.kl.double() - wanted["kl"]).abs().max() < 2e-2 * logits.abs().max()  # the logits there are rounded


def test_a_nan_stays_in_its_row():
    """Of a layer's state, and of the last one's, which all layers are held against."""
    x, weight = torch.randn(6, 8), torch.randn(40, 8)
    y = x + torch.randn(6, 8)
    y[2:4, 3] = x[3:5, 3] = torch.nan
    reference = Reference(x, Head(weight, None, 1.0, "base"), torch.zeros(6, dtype=torch.int64), IGNORE)
    found, last = reference.columns(y), reference.own()
    for columns, bad in ((found, (2, 3)), (last, (3, 4))):
        for name in ("entropy", "logprob"):
            assert getattr(columns, name).isnan().tolist() == [row in bad for row in range(6)], name
        assert not columns.agree[list(bad)].any() and (columns.rank[list(bad)] == -1).all()
    assert found.kl.isnan().tolist() == [row in (2, 3, 4) for row in range(6)]
    assert last.kl.isnan().tolist() == [row in (3, 4) for row in range(6)] and last.agree.sum() == 4


# -- the way into the head --------------------------------------------------------------------------------------------


def test_the_states_are_what_the_model_says_they_are():
    model = made("llama")
    stream = find_stream(model, IDS[:1])
    assert [type(block).__name__ for block in stream.blocks] == ["LlamaDecoderLayer"] * 3
    assert [step.module for step in stream.tail] == [model.model.norm]


class Shifted(transformers.LlamaForCausalLM):
    """Adds something that is no module between its norm and its head."""

    def forward(self, input_ids, **options):
        out = self.model(input_ids, use_cache=False)
        logits = self.lm_head(out.last_hidden_state + 1)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


def test_what_no_other_state_can_pass_is_refused():
    config = made("llama").config
    with pytest.raises(CommandError, match=r"MODEL: between the last block of Shifted .* is no module of its own"):
        ncops.lens(Shifted(config).double().eval(), IDS)
    shared = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SIZES, embedding_size=24)).eval()
    with pytest.raises(CommandError, match=r"MODEL: AlbertForMaskedLM has no list of blocks"):
        find_stream(shared, IDS[:1])


def test_it_leaves_the_model_as_it_was():
    model = made("llama").train()
    before = ncops.lens(model, IDS).entropy
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.inference_mode():
        assert torch.equal(ncops.lens(model, IDS).entropy, before)


# -- translators ------------------------------------------------------------------------------------------------------


def test_translators(tmp_path):
    model = made("opt before")
    a, b = 0.1 * torch.randn(3, 24, 24, dtype=torch.float64), torch.randn(3, 24, dtype=torch.float64)
    with torch.no_grad():
        out = model(IDS, output_hidden_states=True)
        states = [h + h @ w.T + c for h, w, c in zip(out.hidden_states, a, b, strict=False)]
        middle = [model.get_output_embeddings()(opt_tail(model, h)) for h in states]
    wanted = plain(torch.stack([*middle, out.logits]), IDS)
    for column in DIVERGENCES:
        del wanted[column]
    single = {f"layers.{i}.{name}": t[i].clone() for i in range(3) for name, t in (("weight", a), ("bias", b))}
    for arrays in ({"weight": a, "bias": b}, single):
        save_file(arrays, tmp_path / "maps.safetensors")
        assert_lens(ncops.lens(model, IDS, translators=tmp_path / "maps.safetensors"), wanted)


@pytest.mark.parametrize(
    ("arrays", "layers", "words"),
    [
        ({"weight": (3, 20, 20)}, "all", "weight of layer 0: expected .24, 24., as the states have 24 dimensions"),
        ({"weight": (3, 24, 24), "bias": (3, 20)}, "all", "bias of layer 0: expected .24,.*got .20,."),
        ({"weight": (2, 24, 24)}, "all", "weight: expected 3 layers, 0 to 2, got 2"),
        ({"weight": (4, 24, 24)}, "all", "weight: expected 3 layers, 0 to 2, got 4"),
        ({"weight": (24, 24)}, "all", r"weight: expected \(layers, D, D\), got \(24, 24\)"),
        ({"0.weight": (24, 24), "2.weight": (24, 24)}, "all", "no map for layer 1 of the layers 0 to 2"),
        ({"0.weight": (24, 24), "3.weight": (24, 24)}, "0", "3.weight: expected layers 0 to 2"),
        ({"0.weight": (24, 24), "x.0.weight": (24, 24)}, "0", "two arrays are the weight of layer 0"),
        ({"0.weight": (24, 24), "unembed.weight": (150, 24)}, "0", "expected arrays .* got 0.weight, unembed.weight"),
    ],
)
def test_wrong_translators_are_refused(tmp_path, arrays, layers, words):
    save_file({name: torch.zeros(shape) for name, shape in arrays.items()}, tmp_path / "maps.safetensors")
    with pytest.raises(CommandError, match=f"^--translators: .*{words}"):
        ncops.lens(made("llama"), IDS, layers=layers, translators=tmp_path / "maps.safetensors")


def test_a_file_without_maps_is_refused(tmp_path):
    (tmp_path / "maps.pt").write_bytes(b"x")
    with pytest.raises(CommandError, match=r"^--translators: .*pickles"):
        ncops.lens(made("llama"), IDS, translators=tmp_path / "maps.pt")


# -- arguments and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a", {}, "^tokenizer: expected the model's for a text"),
        ([[1, 2]], {}, "^text: .* got list"),
        (torch.zeros(2, 2, 2, dtype=torch.int64), {}, r"^text: .*\(2, 2, 2\)"),
        (torch.zeros(1, 3), {}, "^text: .*float32"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "^text: "),
        (torch.tensor([[3, 150]]), {}, "^text: expected token ids from 0 to 149, got 3 to 150"),
        (IDS, {"top": 151}, "^top: expected 1 to 150, got 151"),
        (IDS, {"top": 0}, "^top: "),
        (IDS, {"layers": [4]}, "--layers: this model has layers 0 to 3, got 4"),
    ],
)
def test_wrong_arguments(text, options, words):
    with pytest.raises((ValueError, CommandError), match=words):
        ncops.lens(made("llama"), text, **options)


def test_no_logits_are_stored():
    """1024 tokens of a vocabulary of 60,000 are 246 MB of logits in float32, per layer."""
    model = llama(vocab_size=60_000, hidden_size=16, max_position_embeddings=512).eval()
    ids = torch.randint(0, 60_000, (4, 256))
    ncops.lens(model, ids[:, :8])
    before = memory.resident()
    if before is None or not memory.reset_peak():
        pytest.skip("this system does not tell a process's peak memory")
    ncops.lens(model, ids)
    assert memory.peak() - before < 100e6


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("lens")
    model = llama()
    save(folder / "model", model, bos=True)
    (folder / "a.txt").write_text(sentence(1, 300))
    (folder / "b.txt").write_text(sentence(2, 75))
    return folder, model.double().eval()


def run(capsys, *arguments) -> dict:
    status = cli.main(["lens", *map(str, arguments), "--json"])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


def test_the_command_agrees_with_full_logits(folder, capsys, tmp_path):
    folder, model = folder
    texts = [folder / "a.txt", folder / "b.txt"]
    found = run(
        capsys, folder / "model", "--text", *texts, "--window", 32, "--batch-size", 3, "--dtype", "float64",
        "--examples", 20, "-o", tmp_path / "out",
    )  # fmt: skip
    sums, rank, targets = {}, [], []
    for path in texts:
        ids = [3 + int(word[1:]) for word in path.read_text().split()]
        for start in range(0, len(ids), 32):
            rows = torch.tensor([[1, *ids[start : start + 32]]])  # BOS, which is no sample
            wanted = plain(logits_by_layer("llama", model, rows), rows)
            rank.append(wanted["rank"][:, 0, 1:-1])
            targets += ids[start + 1 : start + 32]
            for name in ("entropy", "kl", "agree", "logprob"):
                sums.setdefault(name, []).append(wanted[name][:, 0, 1:-1].double())
    rank = torch.cat(rank, 1)
    assert found["tokens"] == rank.shape[1] == sum(found["by_position"]["tokens"])
    for name, parts in sums.items():
        assert found["means"][name] == pytest.approx(torch.cat(parts, 1).mean(1).tolist(), rel=1e-9, abs=1e-9), name
    every = [3 + int(word[1:]) for path in texts for word in path.read_text().split()]
    seen = [len(str(every.count(index))) for index in targets]  # digits of how often it stands in the text
    assert found["by_frequency"]["tokens"] == [seen.count(digits) for digits in sorted({*seen})]
    assert found["by_frequency"]["bins"] == [[10 ** (digits - 1), 10**digits - 1] for digits in sorted({*seen})]
    assert found["run"]["tokens"] == len(every) and len(targets) == rank.shape[1]
    assert found["median_rank"] == rank.sort(1).values[:, (rank.shape[1] - 1) // 2].tolist()
    assert found["run"]["through"] == "model.norm" and found["run"]["windows"] == 13
    assert len(found["example"]["tokens"]) == 20 and found["example"]["tokens"][0] == "<s>"
    tops = [word for layer in found["example"]["top"] for five in layer for word in five]
    assert len(tops) == 4 * 20 * 5 and all(tops)  # each has its name
    assert json.loads((tmp_path / "out" / "lens.json").read_text()) == found
    assert (tmp_path / "out" / "lens.html").read_text().count("data-heat") == 2  # 16 tokens and 4


def test_the_command_prints_a_table(folder, capsys):
    folder, _ = folder
    assert cli.main(["lens", str(folder / "model"), "--text", str(folder / "b.txt"), "--layers", "0,-1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"layer +Entropy \(nats\) +KL to the last layer", out) and "through model.norm" in out
    assert re.search(r"^ +3 .* 0\.0000 +1\.0000", out, re.M)


def test_what_the_command_refuses(folder, capsys, tmp_path, monkeypatch):
    """Before the weights are loaded."""
    folder, _ = folder
    monkeypatch.setattr(LoadedModel, "model", property(lambda self: pytest.fail("the weights are loaded")))
    here = [str(folder / "model"), "--text", str(folder / "a.txt")]
    for more, words in (
        (["--translators", str(tmp_path / "none.safetensors")], "--translators: no file"),
        (["--layers", "9"], "--layers: this model has layers 0 to 3, got 9"),
        (["--text", str(tmp_path / "none.txt")], "--text: no file"),
        (["--window", "100"], "--window: this model takes"),
    ):
        assert cli.main(["lens", *here, *more]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"ncops: {words}") and len(err.splitlines()) == 1, err


# -- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_agrees_with_its_own_logits():
    from ncops import lm
    from ncops.demo import smollm2

    try:
        source = lm.find_source(smollm2.folder())
    except CommandError as error:
        pytest.skip(str(error))
    loaded = lm.load(source)
    found = ncops.lens(loaded.model, "The capital of France is Paris, and that of Italy is", tokenizer=loaded.tokenizer)
    assert found.layers == tuple(range(31)) and found.facts["through"] == "model.norm"
    assert found.words[int(found.top[-1, 0, -1, 0])] == " Rome"
    with torch.no_grad():
        out = loaded.model(found.input_ids, output_hidden_states=True)
        states = [loaded.model.model.norm(h) for h in out.hidden_states[:30]]
        logits = torch.stack([loaded.model.lm_head(h).double() for h in states] + [out.logits.double()])
    wanted = plain(logits, found.input_ids)
    for name in ("entropy", "kl", "logprob"):
        torch.testing.assert_close(getattr(found, name).double(), wanted[name], rtol=1e-4, atol=1e-3, equal_nan=True)
    assert (found.agree == wanted["agree"]).float().mean() > 0.99 and found.agree[-1].all()
