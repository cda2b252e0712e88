"""A causal language model on disk: its files, its tokenizer and configuration, its weights."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CommandError, need
from .adapter import check_adapter, merged

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


class Source(NamedTuple):
    """Where a model lies: a folder, and the name of a GGUF file in it where that is the format."""

    folder: Path
    gguf: str | None


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
    if (path / "adapter_config.json").exists():
        whole = any(any(path.glob(pattern)) for pattern in WEIGHT_FILES)
        raise CommandError(
            f"MODEL: {path} holds a model and an adapter: give each a folder, the adapter's by --adapter" if whole
            else f"MODEL: {path} holds an adapter of PEFT without its model: give the model's, and --adapter {path}"
        )  # fmt: skip
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


CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the names of causal models end, whatever stands before: people's own classes are called like the known ones."""
WHOLE = "ForConditionalGeneration"
"""How models end whose part is a causal one, beside what reads images or sound."""
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin", "*.gguf")
TOKENIZER_FILES = ("tokenizer*.json", "*.model", "vocab.*", "*.tiktoken")


def words(error: BaseException, most: int = 300) -> str:
    """The message in one short line: the loader's first line may be no more than a colon, its list of models 3 kB."""
    text = " ".join(str(error).split())
    if not any(map(str.isalpha, text)):  # a key that was not found is a number, the end of a file nothing
        text = f"{type(error).__name__} {text}".strip()
    text = text.partition(" Model type should be one of")[0]
    return text if len(text) <= most else f"{text[:most]} ..."


def _why_no_tokenizer(source: Source, error: BaseException) -> str:
    if source.gguf is None and not any(any(source.folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return f"no tokenizer.json or tokenizer.model in {source.folder}"
    return f"its tokenizer: {words(error)}"


def _quiet_pipe() -> contextlib.AbstractContextManager:
    """Progress bars of the loader belong on a terminal; in a log file they are one endless line."""
    return contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())


class LoadedModel:
    """A model on disk: tokenizer and configuration now, the weights when :attr:`model` is first asked for.

    So what is cheap to look at, such as the text, is looked at before minutes are spent on loading.
    """

    def __init__(
        self,
        source: Source,
        dtype: str,
        device: str,
        adapter: Path | None = None,
        device_map: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        import transformers

        self.source, self.dtype, self.device = source, dtype, torch.device(device)
        self.adapter, self._device_map = adapter, device_map
        self.unused: str | None = None
        self._options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        if source.gguf:
            self._options["gguf_file"] = source.gguf
        folder = str(source.folder)
        with self._explained(lambda error: _why_no_tokenizer(source, error)):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **self._options)
        with self._explained(words):
            self.config = transformers.AutoConfig.from_pretrained(folder, **self._options)
        if getattr(self.config, "auto_map", None) and not trust_remote_code:
            print(
                f"ncops: {folder}: code of its own (auto_map) does not run, that of transformers does", file=sys.stderr
            )
        if getattr(self.config, "is_encoder_decoder", False):
            raise CommandError(
                f"MODEL: {source.folder} is an encoder-decoder ({self._architecture()}): its decoder alone, without "
                "what the encoder gives it, would be measured"
            )

    @functools.cached_property
    def model(self) -> nn.Module:
        """The model in evaluation mode, whole.

        Raises:
            CommandError: the folder does not hold a causal language model, or not all of one.
        """
        import transformers

        with self._explained(self._why_no_model):
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                str(self.source.folder), dtype=self.dtype, device_map=self._device_map, output_loading_info=True,
                **self._options,
            )  # fmt: skip
            model = (model if self._device_map else model.to(self.device)).eval().requires_grad_(False)
        self._check_whole(type(model).__name__, loading)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise CommandError(
                f"--device-map: {self.source.folder} does not fit these devices: weights that are fetched when they "
                "run are not measured"
            )
        if next(model.parameters()).dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # products of all experts at once take no float64
        if self.adapter is not None:
            with self._explained(words, f"--adapter: {self.adapter} did not load"):
                model = merged(model, self.adapter).requires_grad_(False)
        return model

    def _why_no_model(self, error: BaseException) -> str:
        text = words(error)
        unknown = text.startswith("Unrecognized configuration class")
        known = "is none that transformers knows (AutoModelForCausalLM lists them)"
        return f"{self._architecture()} {known}" if unknown else text

    def facts(self) -> dict[str, str | None]:
        """What a report says of where the model came from."""
        return {
            "model_path": str(self.source.folder),
            "gguf": self.source.gguf,
            "adapter": None if self.adapter is None else str(self.adapter),
            "unused_weights": self.unused,
        }

    def _architecture(self) -> str:
        return ", ".join(getattr(self.config, "architectures", None) or [self.config.model_type])

    def _check_whole(self, loaded: str, loading: dict[str, Any]) -> None:
        folder, stated = self.source.folder, getattr(self.config, "architectures", None) or [loaded]
        missing, unused = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
        if missing:  # transformers fills them with random numbers
            raise CommandError(
                f"MODEL: {folder}: the checkpoint lacks {len(missing)} weight(s) of {loaded}, "
                f"{missing[0]} for one: it is not a causal language model, or not a whole one"
            )
        part = self.config.get_text_config() is not self.config and all(name.endswith(WHOLE) for name in stated)
        if not part and loaded not in stated and not any(name.endswith(CAUSAL) for name in stated):
            raise CommandError(
                f"MODEL: {folder} holds a {self._architecture()}, as its config.json says under architectures, which "
                f"is no causal language model: {loaded} would be another model, or a part of it"
            )
        if unused:
            self.unused = f"{len(unused)} weight(s) of the checkpoint, {unused[0]} for one"
            print(f"ncops: {folder}: {loaded} does not use {self.unused}", file=sys.stderr)

    @contextlib.contextmanager
    def _explained(self, why: Callable[[BaseException], str], what: str | None = None) -> Iterator[None]:
        """What goes wrong inside transformers, in one line."""
        try:
            with _quiet_pipe():
                yield
        except CommandError:
            raise
        except Exception as error:  # of any kind: files are read by several packages
            if "trust_remote_code" in str(error):
                raise CommandError(
                    f"MODEL: {self.source.folder} runs only with code of its own (auto_map in its configuration): "
                    "--trust-remote-code lets it, if you have read that code"
                ) from error
            what = what or f"MODEL: {self.source.folder} did not load as a causal language model"
            raise CommandError(f"{what}: {why(error)}") from error


def load(
    source: Source, *, dtype: str = "float32", device: str = "cpu", adapter: Path | None = None,
    device_map: str | None = None, trust_remote_code: bool = False,
) -> LoadedModel:  # fmt: skip
    """The model behind ``source``: nothing is looked up on a hub.

    Args:
        adapter: folder of an adapter of PEFT, which is merged into the weights.
        device_map: how the model is spread over the devices of this machine, in the words of accelerate; then
            ``device`` is not read.
        trust_remote_code: runs code that lies beside the model; without, no code in the folder runs.

    Raises:
        CommandError: when a package is missing, or the folder holds no tokenizer or no configuration of such a model.
    """
    if dtype not in DTYPES:
        raise CommandError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    need("lm", "transformers", *(["gguf"] * bool(source.gguf)), *(["accelerate"] * bool(source.gguf or device_map)))
    if adapter is not None:
        check_adapter(adapter)
        need("peft", "peft")
    import transformers

    transformers.logging.set_verbosity_error()
    return LoadedModel(source, dtype, device, adapter, device_map, trust_remote_code)
