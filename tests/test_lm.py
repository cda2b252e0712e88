"""`ncops lm` on tiny random models saved to disk, against float64 NumPy on the full logits."""

from __future__ import annotations

import json
import re

import numpy as np
import numpy_metrics
import pytest
import torch

import ncops
from ncops import cli
from ncops.errors import CommandError
from ncops.lm.collect import LayerStatistics
from ncops.lm.measure import parse_layers
from ncops.lm.windows import IGNORE, Tokens, Windows, tokenize

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WINDOW = 32
WORDS = [f"w{i}" for i in range(120)]
SMALL = {
    "vocab_size": 150,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def sentence(seed: int, length: int) -> str:
    words = np.random.default_rng(seed).zipf(1.4, size=length) % len(WORDS)
    return " ".join(WORDS[i] for i in words) + "\n"


def save_tokenizer(folder, bos: bool = False):
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return fast


def save(folder, model, bos: bool = False) -> str:
    model.save_pretrained(folder)
    save_tokenizer(folder, bos)
    return str(folder)


def llama(**options):
    config = transformers.LlamaConfig(
        **{**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, **options}
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a random Llama, two text files whose last windows are short, and the model."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("llama")
    model = llama()
    save(folder / "model", model)
    texts = []
    for i, length in enumerate((WINDOW * 20 + 7, WINDOW * 30 + 11)):
        texts.append(folder / f"{i}.txt")
        texts[-1].write_text(sentence(i, length))
    return folder / "model", texts, model


def run(capsys, *arguments) -> dict:
    status = cli.main(["lm", *map(str, arguments), "--json"])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


def expected(model, texts, min_count, window=WINDOW, hidden=None):
    """Features and labels of both parts from the full model in float64, one unpadded window at a time, and metrics."""
    model = model.double().eval()
    pieces = []
    for path in texts:
        ids = [3 + WORDS.index(w) for w in path.read_text().split()]
        pieces += [ids[a : a + window] for a in range(0, len(ids), window) if len(ids[a : a + window]) >= 2]
    held = round(0.2 * len(pieces))
    parts = []
    for rows in (pieces[:-held], pieces[-held:]):
        xs, ys = [], []
        for ids in rows:
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_hidden_states=True)
            x = out.hidden_states[-1 if hidden is None else hidden][0, :-1]
            if hidden is None:
                logits = x @ model.get_output_embeddings().weight.T
                torch.testing.assert_close(logits, out.logits[0, :-1], rtol=1e-9, atol=1e-9)
            xs.append(x.numpy())
            ys.append(np.array(ids[1:]))
        parts.append((np.concatenate(xs), np.concatenate(ys)))
    weight = model.get_output_embeddings().weight.detach().numpy()
    geometry = numpy_metrics.class_geometry(*parts[0], len(weight), min_count)
    metrics = numpy_metrics.geometry_metrics(geometry, weight)
    decisions = numpy_metrics.decision_metrics(*parts[1], weight, None, geometry)
    model.float()
    return metrics, {k: v for k, v in decisions.items() if np.isscalar(v)}, geometry, parts


def assert_metrics(found: dict, wanted: dict, rtol: float) -> None:
    for name, value in wanted.items():
        scale = abs(value) / abs(wanted["nc3_cos_mean"]) if name == "nc3_cos_cv" else 1 if "cos" in name else abs(value)
        assert abs(found[name] - value) <= rtol * max(scale, 1e-3), (name, found[name], value)


def test_agrees_with_numpy_on_the_full_logits(tiny, capsys):
    folder, texts, model = tiny
    page = run(
        capsys, folder, "--text", *texts, "--window", WINDOW, "--batch-size", 3, "--min-count", 5, "--dtype", "float64"
    )
    geometry, decisions, classes, parts = expected(model, texts, 5)
    assert_metrics(page["metrics"], {**geometry, **decisions}, 1e-8)
    assert page["coverage"]["samples"] == len(parts[0][1])
    assert page["coverage"]["decision_samples"] == len(parts[1][1])
    assert page["coverage"]["classes_kept"] == len(classes["classes"])
    assert page["run"]["features"] == "base" and page["run"]["decisions_on"] == "held-out windows"
    counts = dict(zip(classes["classes"].tolist(), classes["counts"].tolist(), strict=True))
    assert {row["id"]: row["count"] for row in page["classes"]["rows"]} == counts
    for row in page["classes"]["rows"]:
        assert row["text"] == WORDS[row["id"] - 3]
        assert row["decided"] == (parts[1][1] == row["id"]).sum()


def test_float32_is_close_to_float64(tiny, capsys):
    folder, texts, model = tiny
    page = run(capsys, folder, "--text", *texts, "--window", WINDOW, "--min-count", 5)
    geometry, decisions, _, parts = expected(model, texts, 5)
    assert_metrics(page["metrics"], geometry, 1e-4)
    assert abs(page["metrics"]["nll"] - decisions["nll"]) < 1e-5 * decisions["nll"]
    for name in ("accuracy", "nc4_agreement", "ncc_accuracy"):
        assert abs(page["metrics"][name] - decisions[name]) <= 2 / len(parts[1][1])


def test_batching_and_padding_change_nothing(tiny, capsys):
    folder, texts, _ = tiny
    pages = [
        run(capsys, folder, "--text", *texts, "--window", WINDOW, "--batch-size", b, "--dtype", "float64")
        for b in (1, 7)
    ]
    assert_metrics(pages[1]["metrics"], pages[0]["metrics"], 1e-9)
    assert pages[0]["coverage"]["samples"] == pages[1]["coverage"]["samples"]


def test_hidden_layers(tiny, capsys):
    folder, texts, model = tiny
    page = run(
        capsys,
        folder,
        "--text",
        *texts,
        "--window",
        WINDOW,
        "--min-count",
        5,
        "--dtype",
        "float64",
        "--layers",
        "0,2,-1",
    )
    assert page["layers"]["points"] == [0, 2, 3]
    for at, layer in enumerate((0, 2, 3)):
        wanted = expected(model, texts, 5, hidden=layer)[0]
        assert_metrics(
            {n: v[at] for n, v in page["layers"]["metrics"].items()},
            {n: wanted[n] for n in page["layers"]["metrics"]},
            1e-8,
        )
    assert page["layers"]["metrics"]["nc1_quotient"][2] == pytest.approx(page["metrics"]["nc1_quotient"], rel=1e-9)


def test_layers_leave_padding_out():
    """A token that is the first of the vocabulary is a class as any other, and what fills up a window is none."""
    hidden, labels = torch.randn(3, 8, 4), torch.randint(0, 3, (3, 8))
    labels[1, 5:] = IGNORE
    layers = LayerStatistics([1], [0, 2, 1], 5, [hidden, hidden])
    layers.update([hidden, hidden], labels)
    counts = [int((labels == label).sum()) for label in (0, 2, 1)]
    assert layers.statistics[1].compute().counts.tolist() == counts


def test_logits_are_made_for_the_probe_only(tiny):
    from ncops import lm

    folder, texts, _ = tiny
    loaded = lm.load(lm.find_source(folder))
    rows = []
    loaded.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[:-1].numel())
    )
    lm.measure(loaded, [[texts[0].read_text()]], window=WINDOW, min_count=2, progress=False)
    assert rows == [16, 16]


def test_tokens_counts_both_parts(tiny, capsys):
    folder, texts, _ = tiny
    page = run(capsys, folder, "--text", *texts, "--tokens", 10 * WINDOW, "--window", WINDOW, "--min-count", 2)
    assert page["run"]["tokens"] == 10 * WINDOW
    assert (page["run"]["train_windows"], page["run"]["held_out_windows"]) == (8, 2)
    assert page["coverage"]["samples"] + page["coverage"]["decision_samples"] == 10 * (WINDOW - 1)


def test_default_window_fits_the_model_and_half_precision_runs(tiny, capsys):
    folder, texts, _ = tiny
    page = run(capsys, folder, "--text", *texts, "--min-count", 2, "--dtype", "bfloat16")
    assert page["run"]["window"] == 64 and page["run"]["dtype"] == "bfloat16" and page["run"]["features"] == "base"
    assert page["metrics"]["nll"] > 0


def test_added_bos_is_no_sample(tmp_path, capsys):
    folder = save(tmp_path / "model", llama(), bos=True)
    (tmp_path / "a.txt").write_text(sentence(3, 10 * WINDOW))
    page = run(capsys, folder, "--text", tmp_path / "a.txt", "--window", WINDOW, "--min-count", 2)
    assert page["coverage"]["samples"] == 8 * (WINDOW - 1)


def head_of(model):
    from ncops.lm import find_head

    return find_head(model.eval(), torch.tensor([[5, 9, 17, 3, 4, 11]]))


def check_head(model, head):
    """Logits of `linear_stats` from the features that `body` gives are the model's: their sums, extremes and NLL."""
    from ncops.lm.head import body

    ids = torch.randint(3, 100, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        x, _ = body(model, head, ids, mask)
        logits = model(input_ids=ids, attention_mask=mask).logits
    stats = ncops.linear_stats(x, head.weight, head.bias, ids, scale=head.scale, softcap=head.softcap)
    nll = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    for ours, theirs in ((stats.lse, logits.logsumexp(-1)), (stats.max, logits.amax(-1)), (stats.nll, nll)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_head_that_transforms_first_is_interrupted():
    config = transformers.BertConfig(**SMALL, is_decoder=True, initializer_range=0.3)
    model = transformers.BertLMHeadModel(config).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    head = head_of(model)
    assert head.features == "interrupted" and head.bias is not None
    check_head(model, head)


def test_interrupted_features_through_the_command(tmp_path, capsys):
    config = transformers.BertConfig(**SMALL, is_decoder=True, initializer_range=0.3, architectures=["BertLMHeadModel"])
    folder = save(tmp_path / "bert", transformers.BertLMHeadModel(config))
    (tmp_path / "a.txt").write_text(sentence(4, 12 * WINDOW + 5))
    pages = [
        run(capsys, folder, "--text", tmp_path / "a.txt", "--window", WINDOW, "--min-count", 3, "--batch-size", b)
        for b in (1, 5)
    ]
    assert pages[0]["run"]["features"] == "interrupted"
    assert_metrics(pages[1]["metrics"], pages[0]["metrics"], 1e-3)


def test_logit_scale_is_found():
    config = transformers.GraniteConfig(
        **SMALL,
        num_key_value_heads=2,
        logits_scaling=6.0,
        initializer_range=0.3,
        embedding_multiplier=1.0,
        residual_multiplier=1.0,
    )
    model = transformers.GraniteForCausalLM(config).eval()
    head = head_of(model)
    assert head.scale == 1 / 6  # as it is stated, not as a few logits have it
    check_head(model, head)


def gemma2(**options):
    config = transformers.Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=6, initializer_range=0.3, max_position_embeddings=64, **options
    )
    return transformers.Gemma2ForCausalLM(config).eval()


def test_soft_capped_logits_are_measured_under_their_cap():
    from ncops.lm import find_head

    model = gemma2(final_logit_softcapping=2.5)
    head = head_of(model)
    assert (head.scale, head.softcap, head.ignored, head.fitted) == (1.0, 2.5, None, ())
    check_head(model, head)
    bare = find_head(model, torch.tensor([[5, 6]]), ignore_softcap=True)
    assert (bare.scale, bare.softcap, bare.ignored) == (1.0, None, 2.5)


def test_a_cap_that_no_logit_comes_near_is_found():
    """The features are stretched until it shows; what is stated and not done is not measured."""
    model = gemma2(final_logit_softcapping=1000.0)
    assert head_of(model).softcap == 1000.0
    model.config.final_logit_softcapping = None
    assert head_of(model).softcap is None
    ordinary = llama()
    ordinary.config.final_logit_softcapping = 30.0
    assert head_of(ordinary).softcap is None


def test_soft_caps_through_the_command(tmp_path, capsys):
    folder = save(tmp_path / "gemma", gemma2(final_logit_softcapping=2.5))
    (tmp_path / "a.txt").write_text(sentence(4, 12 * WINDOW + 5))
    line = [folder, "--text", tmp_path / "a.txt", "--window", WINDOW, "--min-count", 3, "--dtype", "float64"]
    capped, bare = run(capsys, *line), run(capsys, *line, "--ignore-softcap")
    assert (capped["run"]["soft_cap"], capped["run"]["soft_cap_ignored"]) == (2.5, None)
    assert (bare["run"]["soft_cap"], bare["run"]["soft_cap_ignored"]) == (None, 2.5)
    assert "notes" not in capped and "before the model's soft cap of 2.5" in " ".join(bare["notes"])
    assert abs(capped["metrics"]["nll"] - bare["metrics"]["nll"]) > 0.1
    for name in ("accuracy", "nc4_agreement", "nc3_cos_mean"):
        assert capped["metrics"][name] == bare["metrics"][name]
    (tmp_path / "place").mkdir()
    run(capsys, *line, "--checkpoint", tmp_path / "place")
    assert cli.main(["lm", *map(str, line), "--checkpoint", str(tmp_path / "place"), "--ignore-softcap"]) == 2
    assert "belongs to a run with another --ignore-softcap" in capsys.readouterr().err


def test_windows_and_labels_by_length():
    windows = Windows([[1, 2, 3, 4, 5], [6], [7, 8]], size=3)
    assert [windows[i] for i in range(len(windows))] == [[1, 2, 3], [4, 5], [7, 8]]  # a lone token has no next one
    assert windows.by_length([2, 1, 0]) == [0, 2, 1]
    assert windows.labels_seen(range(3)) == [2, 3, 5, 8] and windows.labels_seen([1]) == [5]
    assert (windows.tokens, windows.largest) == (7, 8)
    told = {Windows(ids, 2, bos).fingerprint_bytes() for ids in ([[1, 2]], [[1, 3]]) for bos in (None, 0, 1)}
    assert len(told) == 6
    long, short = windows.batches(range(3), 8)
    assert long.input_ids.tolist() == [[1, 2, 3]] and long.labels.tolist() == [[2, 3, IGNORE]]
    assert short.input_ids.tolist() == [[4, 5], [7, 8]] and short.labels.tolist() == [[5, IGNORE], [8, IGNORE]]
    assert all(batch.attention_mask.all() for batch in (long, short))
    (batch,) = Windows([[1, 2]], size=4, bos=0).batches(range(1), 1)
    assert batch.input_ids.tolist() == [[0, 1, 2]] and batch.labels.tolist() == [[IGNORE, 2, IGNORE]]


def test_tokenize_stops_at_the_limit():
    read = []

    def encode(text):
        read.append(text)
        return Tokens([ord(c) for c in text])

    assert [list(d.ids) for d in tokenize([["ab", "cd", "ef"], ["gh"]], encode, 3)] == [[97, 98, 99]]
    assert read == ["ab", "cd"]
    assert [len(d.ids) for d in tokenize([["ab"], ["gh"]], encode, None)] == [2, 2]


@pytest.mark.parametrize(("text", "wanted"), [("all", [0, 1, 2, 3]), ("3,0", [0, 3]), ("-1", [3]), (None, [])])
def test_parse_layers(text, wanted):
    assert parse_layers(text, 3) == wanted


@pytest.mark.parametrize("text", ["4", "-5", "x", "1,,2"])
def test_parse_layers_refuses(text):
    with pytest.raises(CommandError, match="--layers"):
        parse_layers(text, 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--window", "65"], "takes 64 tokens at most, got 65"),
        (["--window", "64", "--tokens", "64"], "two are needed"),
        (["--layers", "9"], "has layers 0 to 3, got 9"),
        (["--layers", "-5"], "has layers 0 to 3, got -5"),  # -4 to -1 count from the last
        (["--device", "nowhere"], "not a device"),
        (["--dtype", "float8"], "--dtype"),
        (["--gguf", "a.gguf"], "no 'a.gguf'"),
    ],
)
def test_bad_usage_is_one_line(tiny, capsys, extra, message):
    folder, texts, _ = tiny
    assert cli.main(["lm", str(folder), "--text", str(texts[0]), *extra]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err.splitlines()[-1] and "Traceback" not in err


def test_not_a_language_model(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a b c")
    assert cli.main(["lm", str(tmp_path), "--text", str(tmp_path / "a.txt")]) == 2
    assert "did not load as a causal language model" in capsys.readouterr().err


def test_a_checkpoint_without_its_head_is_refused(tmp_path, capsys):
    classifier = transformers.LlamaForSequenceClassification(llama().config)
    folder = save(tmp_path / "m", classifier)
    (tmp_path / "t.txt").write_text(sentence(0, 200))
    capsys.readouterr()
    assert cli.main(["lm", folder, "--text", str(tmp_path / "t.txt")]) == 2
    error = capsys.readouterr().err
    assert "lacks 1 weight(s) of LlamaForCausalLM, lm_head.weight" in error and error.count("\n") == 1


def test_a_folder_without_tokenizer_says_so(tmp_path, capsys):
    llama().save_pretrained(tmp_path / "m")
    (tmp_path / "t.txt").write_text(sentence(0, 200))
    capsys.readouterr()
    assert cli.main(["lm", str(tmp_path / "m"), "--text", str(tmp_path / "t.txt")]) == 2
    error = capsys.readouterr().err
    assert f"no tokenizer.json or tokenizer.model in {tmp_path / 'm'}\n" in error and error.count("\n") == 1
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    assert cli.main(["lm", str(tmp_path / "m"), "--text", str(tmp_path / "t.txt")]) == 2
    error = capsys.readouterr().err
    assert "did not load as a causal language model: its tokenizer: " in error and error.count("\n") == 1


def test_a_truncated_checkpoint_is_one_line(tmp_path, capsys):
    folder = save(tmp_path / "m", llama())
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "t.txt").write_text(sentence(0, 200))
    capsys.readouterr()
    assert cli.main(["lm", folder, "--text", str(tmp_path / "t.txt")]) == 2
    error = capsys.readouterr().err
    assert "m did not load as a causal language model: " in error and error.count("\n") == 1


@pytest.mark.parametrize("damage", [lambda d: d[:5000], lambda d: b"hello", lambda d: b"", lambda d: d[:-100]])
def test_a_damaged_bin_is_one_line(tmp_path, capsys, damage):
    from safetensors.torch import load_file

    folder = save(tmp_path / "m", llama())
    weights = tmp_path / "m" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "m" / "pytorch_model.bin")
    weights.unlink()
    whole = tmp_path / "m" / "pytorch_model.bin"
    whole.write_bytes(damage(whole.read_bytes()))
    (tmp_path / "t.txt").write_text(sentence(0, 200))
    capsys.readouterr()
    assert cli.main(["lm", folder, "--text", str(tmp_path / "t.txt")]) == 2
    error = capsys.readouterr().err
    assert re.search("m did not load as a causal language model: .*[a-zA-Z]{3}", error) and error.count("\n") == 1


def test_missing_extra_is_named(tiny, capsys, monkeypatch):
    import sys

    folder, texts, _ = tiny
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["lm", str(folder), "--text", str(texts[0])]) == 2
    assert "pip install 'ncops[lm]'" in capsys.readouterr().err
