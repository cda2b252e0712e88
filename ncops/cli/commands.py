"""The commands behind ``ncops``, as a typer application. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, get_args

import typer
from typer import Argument, Option

from .._version import __version__
from ..conventions import PRESETS
from ..errors import CommandError, Interrupted, need
from ..names import Nonfinite as NonfiniteName
from ..names import Panels as PanelsName

app = typer.Typer(
    help="Measures the geometry of trained classifiers and language models: neural collapse NC1 to NC4, in one pass.",
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, Option("--json", help="Print JSON on standard output; everything else goes to standard error.")]
MinCount = Option("--min-count", min=1, help="Samples that a class needs to be kept.")
Output = Annotated[Path | None, Option("--output", "-o", help="Folder for report.json and report.html.")]
TEXT = "text files, folders of them, - (standard input), .gz, .zst, .jsonl, .parquet, folders of datasets.save_to_disk"


def _choices(name: str, values: Iterable[str]) -> type[Enum]:
    return Enum(name, {value: value for value in values}, type=str)


Bos = _choices("Bos", ("auto", "always", "never"))
DemoModel = _choices("DemoModel", ("smollm2", "tiny", "digits"))
DeviceMap = _choices("DeviceMap", ("auto", "balanced", "balanced_low_0", "sequential"))
Documents = _choices("Documents", ("separate", "packed"))
Dtype = _choices("Dtype", ("float32", "bfloat16", "float16", "float64", "auto"))
EncodingErrors = _choices("EncodingErrors", ("strict", "replace", "ignore"))
Nonfinite = _choices("Nonfinite", get_args(NonfiniteName))
Panels = _choices("Panels", get_args(PanelsName))
Preset = _choices("Preset", PRESETS)


def _clean_stdout(as_json: bool) -> contextlib.AbstractContextManager:
    """Libraries that print while they work must not spoil the JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """An error about the user's data or files reads as one line: the checks name argument, value and expectation."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error


@contextlib.contextmanager
def _resumable(checkpoint: Path | None) -> Iterator[None]:
    """Ctrl-C says where the same command would go on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is None:
            raise
        kept = any(checkpoint.glob("*.safetensors"))
        raise Interrupted(
            f"the same command goes on from {checkpoint}" if kept else f"{checkpoint} holds no checkpoint yet"
        ) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ncops {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Show the build and the backend of every op.")
def info(as_json: Json = False) -> None:
    """Show the build, the backend of every op and why others are off, and torch's environment report."""
    from .info import collect, show

    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show(facts)


@app.command(short_help="Measure features stored in a file.")
def measure(
    features: Annotated[
        Path, Argument(metavar="FEATURES", help=".safetensors or .npz with features (N, D) and labels (N).")
    ],
    classifier: Annotated[
        Path | None, Option(help="File with weight (C, D) and bias (C); default: those in FEATURES, if any.")
    ] = None,
    num_classes: Annotated[
        int | None, Option(min=1, help="Default: rows of the classifier, else the highest label + 1.")
    ] = None,
    min_count: Annotated[int, MinCount] = 1,
    convention: Annotated[Preset, Option(help="Which published definitions the metrics follow.")] = Preset.ncops,
    batch: Annotated[int, Option(min=1, help="Rows per batch.")] = 65536,
    scatter: Annotated[bool, Option(help="Keep the D x D scatter that nc1_pinv and vci need.")] = True,
    nonfinite: Annotated[
        Nonfinite, Option(help="A row with a NaN or an infinity spoils its class, is skipped, or is an error.")
    ] = Nonfinite.propagate,
    features_key: Annotated[str | None, Option(help="Name of the features [default: features, x or H].")] = None,
    labels_key: Annotated[str | None, Option(help="Name of the labels [default: labels or y].")] = None,
    weight_key: Annotated[
        str | None, Option(help="Name of the classifier's rows [default: weight, W, fc.weight, ...].")
    ] = None,
    bias_key: Annotated[str | None, Option(help="Name of its bias [default: bias, b, fc.bias, ...].")] = None,
    html: Annotated[Path | None, Option(help="Write the report as this HTML file.")] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure stored features, read in batches. Arrays val_features and val_labels, if there, are the held-out part."""
    from ..measuring import files as work
    from ..measuring.features import measure_features
    from ..report.output import check_file, check_folder, deliver
    from ..stats.arrays import Arrays, read_classifier

    check_folder(output)
    check_file(html, "--html")
    with _clean_stdout(as_json), _plain_errors():
        arrays = Arrays(features)
        x = arrays.require(features_key, work.FEATURES, "features", "--features-key")
        y = arrays.require(labels_key, work.LABELS, "labels", "--labels-key")
        held = [arrays.find(None, (f"val_{name}",), "") for name in (x, y)]
        decide = work.FilePart(arrays, held[0], held[1]) if all(held) else None
        head = read_classifier(classifier, arrays, weight_key, bias_key)
        measured = measure_features(
            work.FilePart(arrays, x, y), decide, head,
            num_classes=num_classes, min_count=min_count, batch=batch, convention=convention.value, scatter=scatter,
            nonfinite=nonfinite.value,
        )  # fmt: skip
    deliver(measured, title=f"Neural collapse of {features.name}", folder=output, html=html, as_json=as_json)


@app.command(short_help="Measure the token collapse of a language model on disk.")
def lm(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Folder of a Hugging Face causal LM, or with a GGUF file, or such a file."),
    ],
    text: Annotated[list[str], Option("--text", metavar="FILE...", help=f"After MODEL: {TEXT}.")],
    held_out: Annotated[
        list[str] | None,
        Option("--held-out", metavar="FILE...", help="Held-out part, read as --text, which is all train part then."),
    ] = None,
    text_field: Annotated[str, Option(help="Name of the text in records of .jsonl, .parquet and data sets.")] = "text",
    encoding_errors: Annotated[
        EncodingErrors, Option(help="Bytes that are not UTF-8 are an error, become U+FFFD, or are left out.")
    ] = EncodingErrors.strict,
    tokens: Annotated[
        int | None, Option(min=4, help="Tokens of --text to read, both parts together [default: all].")
    ] = None,
    window: Annotated[
        int | None, Option(min=2, help="Tokens seen together [default: 256, or what the model takes].")
    ] = None,
    stride: Annotated[
        int | None,
        Option(min=1, help="Tokens from one window to the next; what overlaps is context [default: WINDOW]."),
    ] = None,
    bos: Annotated[Bos, Option(help="BOS before every window; auto: where the tokenizer puts one.")] = Bos.auto,
    documents: Annotated[
        Documents, Option(help="Windows of one document each, or of all of them, joined by EOS.")
    ] = Documents.separate,
    batch_size: Annotated[int, Option(min=1, help="Windows per forward pass.")] = 8,
    layers: Annotated[
        str | None, Option(help="Hidden layers to measure too: 0,6,12 or all; 0 is the embedding, -1 the last.")
    ] = None,
    min_count: Annotated[int, MinCount] = 10,
    dtype: Annotated[Dtype, Option(help="Numeric type of the model; auto: as stored.")] = Dtype.float32,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")] = "",
    device_map: Annotated[
        DeviceMap | None, Option(help="Spread the model over the GPUs of this machine, in accelerate's words.")
    ] = None,
    adapter: Annotated[
        Path | None, Option(help="Folder of an adapter (LoRA, ...) saved by PEFT; merged into the model in memory.")
    ] = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Run code that lies in MODEL, where the model needs it.")
    ] = False,
    gguf: Annotated[str | None, Option(help="GGUF file in MODEL, where there are several.")] = None,
    ignore_softcap: Annotated[
        bool, Option("--ignore-softcap", help="Leave out the model's soft cap: measure the logits before it.")
    ] = False,
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
    every: Annotated[int, Option(min=1, help="Batches between two checkpoints.")] = 100,
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
    """
    need("cli", "tqdm")
    from ..report.console import say
    from ..report.output import check_file, check_folder, deliver

    for option, folder in (("--output", output), ("--save", save), ("--checkpoint", checkpoint)):
        check_folder(folder, option)
    check_file(tokens_csv, "--tokens-csv")
    if held_out and statistics is not None:
        raise CommandError("--held-out: beside --statistics all of --text is held out; give the one or the other")
    with _clean_stdout(as_json), _resumable(checkpoint):
        from .. import lm as work
        from ..lm.ranks import join
        from ..lm.text import few_names
        from ..measuring.saved import read_saved

        given = origin = None
        if statistics is not None:
            given, origin = read_saved(statistics, "--statistics", "ClassStatistics")
        source = work.find_source(model, gguf)
        name = Path(model).name or source.folder.name
        spread = None if device_map is None else device_map.value
        if spread and (device or "RANK" in os.environ):
            other = f"--device {device}" if device else "torchrun"
            raise CommandError(f"--device-map: {spread} takes all devices in one process, and {other} gives it one")
        with join(_device(device)) as (ranks, here):
            options = {"field": text_field, "errors": encoding_errors.value, "processes": ranks.size}
            options["told"] = say if ranks.speaks else lambda _: None
            texts = work.read_texts(text, **options)
            others = work.read_texts(held_out, **options, option="--held-out") if held_out else None
            loaded = work.load(
                source, dtype=dtype.value, device=here, adapter=adapter, device_map=spread,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
            measured = work.measure(
                loaded, texts, held_out=others, tokens=tokens, window=window, stride=stride, bos=bos.value,
                documents=documents.value, batch_size=batch_size, layers=layers, min_count=min_count,
                ignore_softcap=ignore_softcap, given=given, given_origin=origin, save=save, checkpoint=checkpoint,
                every=every, tokens_csv=tokens_csv, ranks=ranks,
                facts={
                    "model_name": name, "data": few_names(text), "held_out_data": few_names(held_out or []) or None,
                    "text_field": text_field, "encoding_errors": encoding_errors.value,
                },
            )  # fmt: skip
    if measured is not None:
        deliver(measured, title=f"Token collapse of {name}", folder=output, as_json=as_json)


@app.command(short_help="Add up statistics that several jobs have saved.")
def merge(
    files: Annotated[
        list[Path], Argument(metavar="FILE...", help="Files written by save, of one kind, or folders of --save.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="File for the statistics of all of them.")],
) -> None:
    """Add up statistics that jobs sharing nothing have saved: class statistics, or decision statistics.

    The files are read one after the other, so that memory holds two at a time; the output is written whole or not at
    all.
    """
    from ..measuring.saved import add_up
    from ..report.console import say

    say(f"wrote {output}: {add_up(files, output)!r}")


def _device(name: str) -> str:
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device: {name!r} is not a device here: {str(error).splitlines()[0]}") from None
    return str(device)


@app.command(short_help="See it work on a real language model.")
def demo(
    model: Annotated[
        DemoModel, Option(help="smollm2: a real language model; tiny: one trained here; digits: ten classes.")
    ] = DemoModel.smollm2,
    tokens: Annotated[int, Option(min=1024, help="Tokens of text, train and held-out part together.")] = 16384,
    steps: Annotated[int, Option(min=1, help="Training steps of the tiny model.")] = 800,
    seed: Annotated[int, Option(help="Seed of the training runs.")] = 0,
    output: Output = Path("ncops-demo"),
    as_json: Json = False,
) -> None:
    """See it work: SmolLM2-135M on Python's own documentation, or a network that collapses while you watch."""
    need("cli", "tqdm", "matplotlib")
    from ..demo import run
    from ..report.output import check_folder, deliver

    check_folder(output)
    with _clean_stdout(as_json):
        measured, title = run(model.value, tokens=tokens, steps=steps, seed=seed, quiet=as_json)
    deliver(measured, title=title, folder=output, as_json=as_json)


@app.command(short_help="Measure speed, memory and accuracy on this machine.")
def bench(
    full: Annotated[
        bool, Option("--full/--quick", help="Sweeps over sizes, dtypes, labels and threads; or the goals only.")
    ] = False,
    ops: Annotated[str | None, Option(help="Only these: linear_stats,class_moments,... [default: all]")] = None,
    threads: Annotated[int | None, Option(min=1, help="Threads of torch [default: as torch has it]")] = None,
    device: Annotated[str, Option(help="cpu, or cuda (cuda:1, ...) for the cases of a GPU.")] = "cpu",
    output: Annotated[Path | None, Option("--output", "-o", help="Folder for the CSV file and the plots.")] = None,
    as_json: Json = False,
) -> None:
    """Measure every op against the machine's limits and against what a user would pick instead, in one run.

    Speed by ratio with alternating contestants, peak memory in fresh processes, errors against float64. The quick run
    takes about two minutes on two cores, the full one many times that.
    """
    need("cli", "tqdm", *(["matplotlib"] if output is not None else []))
    from ..bench import OPS, plan, records, runner
    from ..report.console import say
    from ..report.output import check_folder

    check_folder(output)
    chosen = list(OPS) if ops is None else [name.strip() for name in ops.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in OPS]
    if unknown or not chosen:
        raise CommandError(f"--ops: expected some of {', '.join(OPS)}, got {', '.join(unknown) or 'none'}")
    device = _device(device)
    if not device.startswith(("cpu", "cuda")):
        raise CommandError(f"--device: expected cpu or cuda, got {device!r}")
    with _clean_stdout(as_json):
        if device == "cpu":
            cases = plan.full(chosen) if full else plan.quick(chosen)
        else:
            cases = plan.cuda(chosen, full, device)

        def keep(machine, results):
            records.write_csv(output / records.NAME, list(records.rows(machine, results)))

        def keep_one(machine, result):
            try:
                keep(machine, [result])
            except OSError as error:  # the others are measured all the same, and all of them written in the end
                say(f"{output / records.NAME}: {error.strerror}")

        machine, results = runner.run(
            cases, everything=full, threads=threads, say=say, keep=None if output is None else keep_one
        )
    if as_json:
        print(json.dumps(records.document(machine, results), indent=1))
    else:
        from ..bench.table import show

        show(machine, results)
    if output is not None:
        from ..bench.plots import save_plots

        keep(machine, results)
        say("wrote " + ", ".join(str(path) for path in [output / records.NAME, *save_plots(results, output)]))


@app.command("report", short_help="Put several runs beside each other: trajectories, table, plots.")
def compare_runs(
    runs: Annotated[
        list[Path],
        Argument(metavar="RUN...", help="report.json, saved class statistics, or a folder that holds one."),
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for report.html, comparison.json and the figure.")],
    labels: Annotated[
        str | None, Option(help="Names of the runs: a,b,c [default: what differs in their paths].")
    ] = None,
    axis: Annotated[
        str | None, Option(help="What the numbers in the names count: step, epoch, ... [default: as named]")
    ] = None,
    classifier: Annotated[
        Path | None,
        Option(help="For saved statistics: weight (C, D) and bias (C); a file, or its name beside each run."),
    ] = None,
    min_count: Annotated[
        int | None,
        Option(min=1, help="For saved statistics: samples a class needs [default: as in the decisions, else 1]."),
    ] = None,
    convention: Annotated[
        Preset | None, Option(help="For saved statistics [default: that of the decisions, else ncops].")
    ] = None,
    title: Annotated[str | None, Option(help="Heading of the page.")] = None,
    panels: Annotated[
        Panels, Option(help="What the figure shows; papyan: the six plots of that paper, of runs of its convention.")
    ] = Panels.ncops,
    as_json: Json = False,
) -> None:
    """Put several runs beside each other: NC1 to NC4, accuracy and NLL over checkpoints or models, on one page.

    Runs whose names hold a number (step-1000) lie on an axis and are sorted by it; others keep their order. Decision
    statistics are read from decision_statistics.safetensors beside saved class statistics.
    """
    from ..report.comparison import compare
    from ..report.output import check_folder, deliver_comparison

    check_folder(output)
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    with _clean_stdout(as_json), _plain_errors():
        comparison = compare(
            runs, labels=names, axis=axis, classifier=classifier, min_count=min_count,
            convention=None if convention is None else convention.value,
        )  # fmt: skip
        comparison.check_panels(panels.value)
    deliver_comparison(comparison, folder=output, title=title, panels=panels.value, as_json=as_json)
