"""Loads a causal language model from disk and finds its classifier: logits = scale * (x @ weight.T) + bias."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CommandError, need
from ..model import NeverReached, features_into, stated_scales, stated_softcap, text_config

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


class Source(NamedTuple):
    """Where a model lies: a folder, and the name of a GGUF file in it where that is the format."""

    folder: Path
    gguf: str | None


class Head(NamedTuple):
    """The classifier of a model. ``features``, "base" or "interrupted", says how its input is reached: `find_head`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    features: str
    softcap: float | None = None


class LoadedModel(NamedTuple):
    model: nn.Module
    tokenizer: Any
    source: Source


def find_source(model: str | Path, gguf: str | None = None) -> Source:
    """The files behind ``model``: a Hugging Face folder, a folder with a GGUF file, or a GGUF file.

    Raises:
        CommandError: when nothing is there, or when it is not clear which GGUF file is meant.
    """
    path = Path(model).expanduser()
    if not path.exists():
        raise CommandError(
            f"MODEL: no file or folder {str(model)!r} on this disk (names on a hub are not looked up; download it)"
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise CommandError(f"MODEL: expected a folder or a .gguf file, got {path.name!r}")
        return Source(path.parent, path.name)
    files = sorted(p.name for p in path.glob("*.gguf"))
    if gguf is not None:
        if gguf not in files:
            raise CommandError(f"--gguf: no {gguf!r} in {path}, which holds {', '.join(files) or 'no .gguf file'}")
        return Source(path, gguf)
    if (path / "config.json").exists():
        return Source(path, None)
    if len(files) == 1:
        return Source(path, files[0])
    if files:
        raise CommandError(f"--gguf: {path} holds {len(files)} GGUF files, name one of {', '.join(files)}")
    raise CommandError(f"MODEL: {path} holds neither config.json nor a .gguf file")


TOKENIZER_FILES = ("tokenizer*.json", "*.model", "vocab.*", "*.tiktoken")


def _words(error: BaseException) -> str:
    """The message in one line: the loader's first line may be no more than a colon."""
    return " ".join(str(error).split()) or type(error).__name__


def _why_no_tokenizer(source: Source, error: BaseException) -> str:
    if source.gguf is None and not any(any(source.folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return f"no tokenizer.json or tokenizer.model in {source.folder}"
    return f"its tokenizer: {_words(error)}"


def _quiet_pipe() -> contextlib.AbstractContextManager:
    """Progress bars of the loader belong on a terminal; in a log file they are one endless line."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


def load(source: Source, *, dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """The model in evaluation mode and its tokenizer, from disk: nothing is looked up, no code in the folder runs.

    Raises:
        CommandError: when a package is missing or the folder does not hold a causal language model.
    """
    if dtype not in DTYPES:
        raise CommandError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    need("lm", "transformers", *(("gguf", "accelerate") if source.gguf else ()))
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if source.gguf:
        options["gguf_file"] = source.gguf
    tokenizer = None
    try:
        with _quiet_pipe():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(source.folder), **options)
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                str(source.folder), dtype=dtype, output_loading_info=True, **options
            )
        model = model.to(torch.device(device)).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, SafetensorError) as error:
        why = _why_no_tokenizer(source, error) if tokenizer is None else _words(error)
        raise CommandError(f"MODEL: {source.folder} did not load as a causal language model: {why}") from error
    missing = sorted(loading["missing_keys"])  # transformers fills them with random numbers
    if missing:
        raise CommandError(
            f"MODEL: {source.folder}: the checkpoint lacks {len(missing)} weight(s) of {type(model).__name__}, "
            f"{missing[0]} for one: it is not a causal language model, or not a whole one"
        )
    model.requires_grad_(False)
    return LoadedModel(model, tokenizer, source)


def interrupted_features(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """The input of the output embedding; the forward pass is stopped there, so that the logits are never computed."""
    with features_into(model.get_output_embeddings()) as trap:
        try:
            return trap.run(lambda: model(**inputs))
        except NeverReached:
            raise CommandError(
                "MODEL: its forward pass never reaches its output embedding, so the features cannot be read"
            ) from None


@torch.no_grad()
def find_head(model: nn.Module, ids: torch.Tensor, *, ignore_softcap: bool = False) -> Head:
    """Finds weight, bias and scale of the classifier, and proves them on a few tokens.

    The full model runs once, on ``ids`` (1, T) with small T: its logits must equal scale * (x @ weight.T) + bias for
    the x that enters the output embedding. If the base model's last hidden state is that x, only the base model runs
    from then on ("base"); if the head transforms it first, the whole forward pass runs and is stopped before the logits
    ("interrupted").

    Raises:
        CommandError: if there is no output embedding, or the logits are no linear function of its input (soft caps).
    """
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise CommandError(
            "MODEL: it has no output embedding with a (vocabulary, dim) weight, so there is no classifier to measure"
        )
    bias = getattr(module, "bias", None)
    options = {"input_ids": ids, "use_cache": False}
    x = interrupted_features(model, **options)
    logits = model(**options).logits.reshape(-1, weight.shape[0])
    config = text_config(model)
    softcap = stated_softcap(config)
    if softcap and not ignore_softcap:
        raise CommandError(
            f"MODEL: its logits are soft-capped at {softcap:g}, which no linear classifier expresses: NLL, entropy and "
            "margins would be wrong. --ignore-softcap measures the logits before the cap"
        )
    raw = nn.functional.linear(x.reshape(-1, x.shape[-1]), weight.to(x.dtype)).double()
    offset = 0.0 if bias is None else bias.double()
    scale = 1.0
    if not softcap:
        shifted = logits.double() - offset
        fitted = float((raw * shifted).sum() / (raw * raw).sum())
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(x.dtype, 3e-2)
        scale = next((s for s in stated_scales(config) if abs(fitted / s - 1) <= tolerance), fitted)
        error = float((scale * raw - shifted).abs().max() / shifted.abs().max().clamp_min(1e-30))
        if not error <= tolerance:
            raise CommandError(
                f"MODEL: its logits are not scale * (x @ weight.T) + bias of its output embedding "
                f"(off by {error:.1e} on {ids.numel()} tokens)"
            )
    bias = None if bias is None else bias.detach()
    return Head(weight.detach(), bias, scale, _route(model, x, options), softcap)


def _route(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> str:
    base = model.base_model
    if base is model:
        return "interrupted"
    hidden = getattr(base(**options), "last_hidden_state", None)
    same = (
        hidden is not None
        and hidden.shape == x.shape
        and torch.allclose(hidden.float(), x.float(), rtol=1e-3, atol=1e-4)
    )
    return "base" if same else "interrupted"


def body(
    model: nn.Module, head: Head, input_ids: torch.Tensor, attention_mask: torch.Tensor, hidden: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """The features (B, T, D) that enter the head and, if asked for, all hidden states."""
    options = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if head.features == "base":
        out = model.base_model(**options, output_hidden_states=hidden)
        return out.last_hidden_state, out.hidden_states if hidden else None
    features = interrupted_features(model, **options)
    return features, model.base_model(**options, output_hidden_states=True).hidden_states if hidden else None
