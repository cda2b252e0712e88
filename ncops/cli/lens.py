"""The command ``ncops lens``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import CommandError, need
from .commands import Dtype, Json, _clean_stdout, _device, app


@app.command(short_help="Read every layer of a language model through its own unembedding.")
def lens(
    model: Annotated[
        str,
        Argument(metavar="MODEL", help="Folder of a Hugging Face causal LM, or with a GGUF file, or such a file."),
    ],
    text: Annotated[list[Path], Option("--text", metavar="FILE...", help="UTF-8 text files, after MODEL.")],
    tokens: Annotated[int | None, Option(min=2, help="Tokens to read [default: all].")] = None,
    window: Annotated[
        int | None, Option(min=2, help="Tokens seen together [default: 256, or what the model takes].")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Windows per forward pass.")] = 8,
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
    dtype: Annotated[Dtype, Option(help="Numeric type of the model; auto: as stored.")] = Dtype.float32,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")] = "",
    gguf: Annotated[str | None, Option(help="GGUF file in MODEL, where there are several.")] = None,
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
    for path, option in [*((path, "--text") for path in text), (translators, "--translators")]:
        if path is not None and not path.is_file():
            raise CommandError(f"{option}: no file {str(path)!r}")
    with _clean_stdout(as_json):
        from .. import lm as work
        from ..lm.lens import measure_lens

        source = work.find_source(model, gguf)
        name = Path(model).name or source.folder.name
        found = measure_lens(
            work.load(source, dtype=dtype.value, device=_device(device)), [work.read_chunks(path) for path in text],
            tokens=tokens, window=window, batch_size=batch_size, layers=layers, translators=translators,
            divergences=divergences, examples=examples, top=top,
            facts={"model_name": name, "data": ", ".join(path.name for path in text)},
        )  # fmt: skip
    deliver_lens(found, title=f"Logit lens of {name}", folder=output, as_json=as_json)


# Where --help lists the commands it stands beside ``lm``.
_order = [command.name or command.callback.__name__ for command in app.registered_commands]
app.registered_commands.insert(_order.index("lm") + 1, app.registered_commands.pop())
