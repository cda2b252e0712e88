"""The commands that read a language model: ``ncops lm``, ``ncops lens`` and ``ncops plan``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from .._version import __version__
from ..errors import CommandError, Interrupted, need
from .options import (
    MODEL,
    Adapter,
    BatchSize,
    Bos,
    BosOption,
    Device,
    DeviceMapOption,
    Documents,
    DocumentsOption,
    Dtype,
    DtypeOption,
    Encoding,
    EncodingErrors,
    Every,
    Gguf,
    IgnoreSoftcap,
    Json,
    MinCount,
    Model,
    Output,
    Stride,
    Text,
    TextField,
    TrustRemoteCode,
    Window,
    clean_stdout,
    device_of,
    plain_errors,
)

if TYPE_CHECKING:
    from ..lm import Source


@contextlib.contextmanager
def _resumable(folder: Path | None, kept: str) -> Iterator[None]:
    """Ctrl-C says where the same command would go on, from files that this pattern finds."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None:
            raise
        found = any(folder.glob(kept))
        raise Interrupted(
            f"the same command goes on from {folder}" if found else f"{folder} holds no checkpoint yet"
        ) from None


def lm(
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL...", help=f"{MODEL}; several (RUN/step-*): each in a folder of --output, and together."
        ),
    ],
    text: Text,
    held_out: Annotated[
        list[str] | None,
        Option("--held-out", metavar="FILE...", help="Held-out part, read as --text, which is all train part then."),
    ] = None,
    text_field: TextField = "text",
    encoding_errors: Encoding = EncodingErrors.strict,
    tokens: Annotated[
        int | None, Option(min=4, help="Tokens of --text to read, both parts together [default: all].")
    ] = None,
    window: Window = None,
    stride: Stride = None,
    bos: BosOption = Bos.auto,
    documents: DocumentsOption = Documents.separate,
    batch_size: BatchSize = 8,
    layers: Annotated[
        str | None, Option(help="Hidden layers to measure too: 0,6,12 or all; 0 is the embedding, -1 the last.")
    ] = None,
    min_count: Annotated[int, MinCount] = 10,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "",
    device_map: DeviceMapOption = None,
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf: Gguf = None,
    ignore_softcap: IgnoreSoftcap = False,
    statistics: Annotated[
        Path | None,
        Option(help="Class statistics of this model, of an earlier run or `ncops merge`; all text is held out."),
    ] = None,
    save: Annotated[
        Path | None, Option(help="Folder for class_statistics.safetensors and decision_statistics.safetensors.")
    ] = None,
    checkpoint: Annotated[
        Path | None, Option(help="Folder that keeps the place; the same command goes on from there.")
    ] = None,
    every: Every = 100,
    tokens_csv: Annotated[
        Path | None,
        Option("--tokens-csv", help="Write a row for each scored token of the held-out part as this CSV file."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure the token collapse of a causal language model on disk: every token of the vocabulary is a class.

    Only the base model runs. The last 20 % of the windows are held out for the decisions, or --held-out. Several
    processes share the windows and write one report: torchrun --nproc_per_node=N -m ncops lm ...

    Of several models a report each and one of all of them; the same command goes on with those that are not done.
    """
    need("cli", "tqdm")
    from ..report.console import say
    from ..report.output import check_file, check_folder, deliver, deliver_comparison

    series = len(models) > 1
    for option, folder in (("--output", output), ("--save", save), ("--checkpoint", checkpoint)):
        check_folder(folder, option)
    check_file(tokens_csv, "--tokens-csv")
    if held_out and statistics is not None:
        raise CommandError("--held-out: beside --statistics all of --text is held out; give the one or the other")
    if series and output is None:
        raise CommandError(f"--output: expected a folder for the reports of {len(models)} models")
    for option, given in (("--statistics", statistics), ("--tokens-csv", tokens_csv), ("--adapter", adapter)):
        if series and given is not None:
            raise CommandError(f"{option}: of one model, got {len(models)}")
    if series and "-" in (*text, *(held_out or ())):
        raise CommandError(f"--text: standard input can be read once, and there are {len(models)} models")
    with (
        clean_stdout(as_json),
        _resumable(output if series else checkpoint, "*/report.json" if series else "*.safetensors"),
    ):
        from .. import lm as work
        from ..lm import series as of_series
        from ..lm.ranks import join
        from ..lm.text import few_names
        from ..measuring.saved import read_saved

        given = origin = None
        if statistics is not None:
            given, origin = read_saved(statistics, "--statistics", "ClassStatistics")
        sources = [work.find_source(model, gguf) for model in models]
        names = of_series.folder_names(models) if series else [_name(models[0], sources[0])]
        spread = None if device_map is None else device_map.value
        if spread and (device or "RANK" in os.environ):
            other = f"--device {device}" if device else "torchrun"
            raise CommandError(f"--device-map: {spread} takes all devices in one process, and {other} gives it one")
        with join(device_of(device)) as (ranks, here):
            how = {
                "tokens": tokens, "window": window, "stride": stride, "bos": bos.value, "documents": documents.value,
                "batch_size": batch_size, "layers": layers, "min_count": min_count, "ignore_softcap": ignore_softcap,
            }  # fmt: skip
            load = {"dtype": dtype.value, "device_map": spread, "trust_remote_code": trust_remote_code}
            read = {"field": text_field, "errors": encoding_errors.value, "processes": ranks.size}
            facts = {
                "data": few_names(text), "held_out_data": few_names(held_out or []) or None, "text_field": text_field,
                "encoding_errors": encoding_errors.value,
            }  # fmt: skip

            told = say if ranks.speaks else lambda _: None
            measured = None
            for source, name in zip(sources, names, strict=True):
                if series:
                    files = [source.folder, *text, *(held_out or ())]
                    inputs = of_series.inputs_of(files, {**how, **load, **read, "ncops": __version__})
                    if ranks.agree(of_series.is_finished(output / name, inputs)):
                        told(f"{name}: done before")
                        continue
                    facts[of_series.INPUTS] = inputs
                within = name if series else ""
                texts = work.read_texts(text, **read, told=told)
                others = work.read_texts(held_out, **read, told=told, option="--held-out") if held_out else None
                measured = work.measure(
                    work.load(source, **load, device=here, adapter=adapter), texts, held_out=others, **how, given=given,
                    given_origin=origin, save=_inside(save, within), checkpoint=_inside(checkpoint, within),
                    every=every, tokens_csv=tokens_csv, ranks=ranks, facts={"model_name": name, **facts},
                )  # fmt: skip
                if series and measured is not None:
                    deliver(measured, title=f"Token collapse of {name}", folder=output / name, quiet=True)
    if not ranks.speaks:
        return
    if not series:
        deliver(measured, title=f"Token collapse of {names[0]}", folder=output, as_json=as_json)
        return
    from ..report.comparison import compare

    with plain_errors():
        comparison = compare([output / name for name in names])
    deliver_comparison(comparison, folder=output, title="Token collapse, model by model", as_json=as_json)


def _name(model: str, source: Source) -> str:
    """What to call a model: "." has the name of its folder."""
    return Path(model).name or source.folder.name


def _inside(folder: Path | None, name: str) -> Path | None:
    """The folder of one model, made if need be."""
    if folder is not None and name:
        folder = folder / name
        folder.mkdir(exist_ok=True)
    return folder


def lens(
    model: Model,
    text: Text,
    text_field: TextField = "text",
    encoding_errors: Encoding = EncodingErrors.strict,
    tokens: Annotated[int | None, Option(min=2, help="Tokens to read [default: all].")] = None,
    window: Window = None,
    stride: Stride = None,
    bos: BosOption = Bos.auto,
    documents: DocumentsOption = Documents.separate,
    batch_size: BatchSize = 8,
    layers: Annotated[
        str, Option(help="0,6,12 or all; 0 is the embedding, -1 the last, which is always among them.")
    ] = "all",
    translators: Annotated[
        Path | None, Option(help="Affine maps of a tuned lens, one per layer: a .safetensors file (docs/lens.md).")
    ] = None,
    divergences: Annotated[
        bool, Option("--divergences", help="Reverse KL, Jensen-Shannon divergence and overlap too: thrice the work.")
    ] = False,
    examples: Annotated[int, Option(min=1, help="Tokens of the first window in the heat map.")] = 32,
    top: Annotated[int, Option(min=1, help="First choices named for each of their layers.")] = 5,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf: Gguf = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Folder for lens.json and lens.html.")] = None,
    as_json: Json = False,
) -> None:
    """Read every layer of a causal language model through its own last norm and unembedding: a logit lens.

    For each layer: entropy, KL to the last layer, agreement with it, rank and log-probability of the true next token,
    over all tokens, by position and by frequency; and a heat map of first choices. Logits are never stored.
    """
    need("cli", "tqdm")
    from ..report.output import check_folder, deliver_lens

    check_folder(output)
    if translators is not None and not translators.is_file():
        raise CommandError(f"--translators: no file {str(translators)!r}")
    with clean_stdout(as_json):
        from .. import lm as work
        from ..lm.lens import measure_lens
        from ..lm.text import few_names

        source = work.find_source(model, gguf)
        name = _name(model, source)
        texts = work.read_texts(text, field=text_field, errors=encoding_errors.value)
        loaded = work.load(
            source, dtype=dtype.value, device=device_of(device), adapter=adapter, trust_remote_code=trust_remote_code
        )
        found = measure_lens(
            loaded, texts, tokens=tokens, window=window, stride=stride, bos=bos.value, documents=documents.value,
            batch_size=batch_size, layers=layers, translators=translators, divergences=divergences,
            examples=examples, top=top,
            facts={
                "model_name": name, "data": few_names(text), "text_field": text_field,
                "encoding_errors": encoding_errors.value, "stride": stride, "bos": bos.value,
                "documents": documents.value,
            },
        )  # fmt: skip
    deliver_lens(found, title=f"Logit lens of {name}", folder=output, as_json=as_json)


def plan(
    model: Model,
    tokens: Annotated[int, Option(min=4, help="Tokens of the job, train and held-out part together.")],
    ranks: Annotated[int, Option(min=1, help="Processes that share it, each with a machine or GPU like this one.")] = 1,
    text: Annotated[
        list[str] | None,
        Option("--text", metavar="FILE...", help="A sample of the text [default: tokens as frequent as words are]."),
    ] = None,
    window: Window = None,
    batch_size: BatchSize = 8,
    min_count: Annotated[int, MinCount] = 10,
    every: Every = 100,
    seconds: Annotated[float, Option(min=0, help="To spend on running batches, about.")] = 20.0,
    flops: Annotated[
        float | None, Option(min=1, help="Operations a second of another machine's products: 4e14 [default: measured].")
    ] = None,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf: Gguf = None,
    as_json: Json = False,
) -> None:
    """Predict time, memory, traffic and disk of `ncops lm` for a job of any size, from a few batches run here.

    Starting Python is not in the time, nor what the network takes for the traffic.
    """
    need("cli", "tqdm")
    from ..report.console import emit, show_table

    with clean_stdout(as_json):
        from .. import lm as work
        from ..lm.plan import plan as predict

        source = work.find_source(model, gguf)
        texts = None if text is None else work.read_texts(text)
        loaded = work.load(
            source, dtype=dtype.value, device=device_of(device), adapter=adapter, trust_remote_code=trust_remote_code
        )
        found = predict(
            loaded, tokens, texts=texts, ranks=ranks, window=window, batch_size=batch_size, min_count=min_count,
            every=every, seconds=seconds, flops=flops,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    title = f"{_name(model, source)}: {tokens:,} tokens on {ranks} rank(s)"
    times = [*found.seconds.items(), ("total", found.total_seconds)]
    show_table(title, ("time", ""), [(part, duration(taken)) for part, taken in times])
    rates = ", ".join(f"{part} {rate:,.0f}" for part, rate in found.tokens_per_second.items())
    emit(f"\ntokens a second of a rank: {rates}; {found.kept:,} classes will be kept\n")
    held = [*found.memory.items(), ("total", sum(found.memory.values()))]
    show_table("", ("memory of a rank", ""), [(part, size(number)) for part, number in held])
    emit(f"\nsent by a rank: {size(found.traffic)}")
    save, checkpoint = (size(found.disk[name]) for name in ("save", "checkpoint"))
    emit(f"on disk: --save {save}; --checkpoint {checkpoint} of all ranks, {found.writes:,} time(s), beside the last")


def duration(seconds: float) -> str:
    """As a person says it, three digits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:.3g} s"


def size(number: float) -> str:
    """Bytes as a person says them."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
