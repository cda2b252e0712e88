"""The command ``ncops plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import need
from .commands import Dtype, Json, MinCount, _clean_stdout, _device, app


@app.command(short_help="Predict what `ncops lm` takes for a corpus of any size.")
def plan(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Folder of a Hugging Face causal LM, or with a GGUF file, or such a file."),
    ],
    tokens: Annotated[int, Option(min=4, help="Tokens of the job, train and held-out part together.")],
    ranks: Annotated[int, Option(min=1, help="Processes that share it, each with a machine or GPU like this one.")] = 1,
    text: Annotated[
        list[str] | None,
        Option("--text", metavar="FILE...", help="A sample of the text [default: tokens as frequent as words are]."),
    ] = None,
    window: Annotated[
        int | None, Option(min=2, help="Tokens seen together [default: 256, or what the model takes].")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Windows per forward pass.")] = 8,
    min_count: Annotated[int, MinCount] = 10,
    every: Annotated[int, Option(min=1, help="Batches between two checkpoints.")] = 100,
    seconds: Annotated[float, Option(min=0, help="To spend on running batches, about.")] = 20.0,
    dtype: Annotated[Dtype, Option(help="Numeric type of the model; auto: as stored.")] = Dtype.float32,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")] = "",
    gguf: Annotated[str | None, Option(help="GGUF file in MODEL, where there are several.")] = None,
    as_json: Json = False,
) -> None:
    """Predict time, memory, traffic and disk of `ncops lm` for a job of any size, from a few batches run here.

    Starting Python is not in the time, nor what the network takes for the traffic.
    """
    need("cli", "tqdm")
    from ..report.console import emit, show_table

    with _clean_stdout(as_json):
        from .. import lm as work
        from ..lm.plan import plan as predict

        source = work.find_source(model, gguf)
        texts = None if text is None else work.read_texts([Path(name) for name in text], processes=1)
        loaded = work.load(source, dtype=dtype.value, device=_device(device))
        found = predict(
            loaded, tokens, texts=texts, ranks=ranks, window=window, batch_size=batch_size, min_count=min_count,
            every=every, seconds=seconds,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    title = f"{Path(model).name or source.folder.name}: {tokens:,} tokens on {ranks} rank(s)"
    times = [*found.seconds.items(), ("total", found.total_seconds)]
    show_table(title, ("time", ""), [(part, duration(taken)) for part, taken in times])
    rates = ", ".join(f"{part} {rate:,.0f}" for part, rate in found.tokens_per_second.items())
    emit(f"\ntokens a second of a rank: {rates}; {found.kept:,} classes will be kept\n")
    held = [*found.memory.items(), ("total", sum(found.memory.values()))]
    show_table("", ("memory of a rank", ""), [(part, size(number)) for part, number in held])
    emit(f"\nsent by a rank: {size(found.traffic)}")
    save, checkpoint = (size(found.disk[name]) for name in ("save", "checkpoint"))
    emit(
        f"on disk: --save {save}; --checkpoint {checkpoint} of all ranks, {found.writes:,} time(s), each beside the last"
    )


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
