"""Options that several commands take, and what all of them do about their input and output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, get_args

from typer import Argument, Option

from ..conventions import PRESETS
from ..errors import CommandError
from ..names import Nonfinite as NonfiniteName
from ..names import Panels as PanelsName


def choices(name: str, values: Iterable[str]) -> type[Enum]:
    return Enum(name, {value: value for value in values}, type=str)


Bos = choices("Bos", ("auto", "always", "never"))
DemoModel = choices("DemoModel", ("smollm2", "tiny", "digits"))
DeviceMap = choices("DeviceMap", ("auto", "balanced", "balanced_low_0", "sequential"))
Documents = choices("Documents", ("separate", "packed"))
Dtype = choices("Dtype", ("float32", "bfloat16", "float16", "float64", "auto"))
EncodingErrors = choices("EncodingErrors", ("strict", "replace", "ignore"))
Nonfinite = choices("Nonfinite", get_args(NonfiniteName))
Panels = choices("Panels", get_args(PanelsName))
Preset = choices("Preset", PRESETS)

Json = Annotated[bool, Option("--json", help="Print JSON on standard output; everything else goes to standard error.")]
MinCount = Option("--min-count", min=1, help="Samples that a class needs to be kept.")
Output = Annotated[Path | None, Option("--output", "-o", help="Folder for report.json and report.html.")]

# Of commands that read a language model.
MODEL = "Folder of a Hugging Face causal LM, or with a GGUF file, or such a file"
TEXT = "text files, folders of them, - (standard input), .gz, .zst, .jsonl, .parquet, folders of datasets.save_to_disk"
Model = Annotated[str, Argument(metavar="MODEL", help=f"{MODEL}.")]
Text = Annotated[list[str], Option("--text", metavar="FILE...", help=f"After MODEL: {TEXT}.")]
TextField = Annotated[str, Option(help="Name of the text in records of .jsonl, .parquet and data sets.")]
Encoding = Annotated[
    EncodingErrors, Option(help="Bytes that are not UTF-8 are an error, become U+FFFD, or are left out.")
]
Window = Annotated[int | None, Option(min=2, help="Tokens seen together [default: 256, or what the model takes].")]
Stride = Annotated[
    int | None, Option(min=1, help="Tokens from one window to the next; what overlaps is context [default: WINDOW].")
]
BosOption = Annotated[Bos, Option(help="BOS before every window; auto: where the tokenizer puts one.")]
DocumentsOption = Annotated[Documents, Option(help="Windows of one document each, or of all of them, joined by EOS.")]
BatchSize = Annotated[int, Option(min=1, help="Windows per forward pass.")]
Every = Annotated[int, Option(min=1, help="Batches between two checkpoints.")]
DtypeOption = Annotated[Dtype, Option(help="Numeric type of the model; auto: as stored.")]
Device = Annotated[str, Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")]
DeviceMapOption = Annotated[
    DeviceMap | None, Option(help="Spread the model over the GPUs of this machine, in accelerate's words.")
]
Adapter = Annotated[
    Path | None, Option(help="Folder of an adapter (LoRA, ...) saved by PEFT; merged into the model in memory.")
]
TrustRemoteCode = Annotated[
    bool, Option("--trust-remote-code", help="Run code that lies in MODEL, where the model needs it.")
]
Gguf = Annotated[str | None, Option(help="GGUF file in MODEL, where there are several.")]
IgnoreSoftcap = Annotated[
    bool, Option("--ignore-softcap", help="Leave out the model's soft cap: measure the logits before it.")
]


def clean_stdout(as_json: bool) -> contextlib.AbstractContextManager:
    """Libraries that print while they work must not spoil the JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """An error about the user's data or files reads as one line: the checks name argument, value and expectation."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error


def device_of(name: str) -> str:
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device: {name!r} is not a device here: {str(error).splitlines()[0]}") from None
    return str(device)
