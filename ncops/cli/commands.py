"""The commands that read no language model of the user's. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from ..errors import CommandError, need
from .options import (
    DemoModel,
    Json,
    MinCount,
    Nonfinite,
    Output,
    Panels,
    Preset,
    clean_stdout,
    device_of,
    plain_errors,
)


def info(as_json: Json = False) -> None:
    """Show the build, the backend of every op and why others are off, and torch's environment report."""
    from .info import collect, show

    facts = collect()
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show(facts)


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
    with clean_stdout(as_json), plain_errors():
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
    with clean_stdout(as_json):
        measured, title = run(model.value, tokens=tokens, steps=steps, seed=seed, quiet=as_json)
    deliver(measured, title=title, folder=output, as_json=as_json)


def bench(
    full: Annotated[
        bool, Option("--full/--quick", help="Sweeps over sizes, dtypes, labels and threads; or the goals only.")
    ] = False,
    ops: Annotated[str | None, Option(help="Only these: linear_stats,class_moments,... [default: all]")] = None,
    threads: Annotated[int | None, Option(min=1, help="Threads of torch [default: as torch has it]")] = None,
    device: Annotated[str, Option(help="cpu, or cuda (cuda:1, ...) for the cases of a GPU.")] = "cpu",
    output: Annotated[Path | None, Option("--output", "-o", help="Folder for the CSV file and the plots.")] = None,
    compare: Annotated[
        Path | None, Option(metavar="OLD.csv", help="Hold it against what an earlier --output has written.")
    ] = None,
    fail_slower: Annotated[
        bool, Option("--fail-slower", help="With --compare: exit status 1 if a case is slower, beyond the spreads.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure every op against the machine's limits and against what a user would pick instead, in one run.

    Speed by ratio with alternating contestants, peak memory in fresh processes, errors against float64. The quick run
    takes about six minutes on two cores, the full one many times that.
    """
    need("cli", "tqdm", *(["matplotlib"] if output is not None else []))
    from ..bench import OPS, plan, records, runner
    from ..bench import compare as comparing
    from ..report.console import say
    from ..report.output import check_folder

    check_folder(output)
    chosen = list(OPS) if ops is None else [name.strip() for name in ops.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in OPS]
    if unknown or not chosen:
        raise CommandError(f"--ops: expected some of {', '.join(OPS)}, got {', '.join(unknown) or 'none'}")
    device = device_of(device)
    if not device.startswith(("cpu", "cuda")):
        raise CommandError(f"--device: expected cpu or cuda, got {device!r}")
    if fail_slower and compare is None:
        raise CommandError("--fail-slower: needs --compare OLD.csv")
    earlier = None if compare is None else comparing.read(compare)  # before this run may write that very file
    with clean_stdout(as_json):
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
    comparison = None if earlier is None else comparing.compare(earlier, machine, results)
    if as_json:
        document = records.document(machine, results)
        if comparison is not None:
            document["comparison"] = comparing.document(compare, comparison)
        print(json.dumps(document, indent=1))
    else:
        from ..bench.table import show

        show(machine, results)
        if comparison is not None:
            comparing.show(compare, comparison)
    if output is not None:
        from ..bench.plots import save_plots

        keep(machine, results)
        say("wrote " + ", ".join(str(path) for path in [output / records.NAME, *save_plots(results, output)]))
    if fail_slower and comparison.slower:
        raise Exit(1)


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
    with clean_stdout(as_json), plain_errors():
        comparison = compare(
            runs, labels=names, axis=axis, classifier=classifier, min_count=min_count,
            convention=None if convention is None else convention.value,
        )  # fmt: skip
        comparison.check_panels(panels.value)
    deliver_comparison(comparison, folder=output, title=title, panels=panels.value, as_json=as_json)
