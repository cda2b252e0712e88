"""Where a measured report goes: the terminal, standard output as JSON, a folder with report.json and report.html."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CommandError
from ..names import Panels
from ..stats.files import check_target, replacing, try_folder, write_file
from .comparison import Comparison
from .console import emit, say, show_report, show_table
from .details import document
from .lens import by_layer, heading
from .lens import notes as lens_notes
from .measured import Measured
from .numbers import format_value, strict, strict_json


def check_folder(folder: Path | None, option: str = "--output") -> None:
    """Fails before the work starts, not after it, when the output folder cannot be had.

    Raises:
        CommandError: if ``folder`` cannot be made, is a file, or takes no file.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{option}: {folder} cannot be made: {error.strerror}") from None
    try:
        try_folder(folder)
    except OSError as error:
        raise CommandError(f"{option}: {folder} cannot be written: {error.strerror}") from None


def check_file(path: Path | None, option: str) -> None:
    """As :func:`check_folder`, for a file in a folder that is there."""
    if path is None:
        return
    try:
        check_target(path)
    except OSError as error:
        raise CommandError(f"{option}: {str(error).removeprefix('path: ')}") from None


def deliver(
    measured: Measured, *, title: str, folder: Path | None = None, html: Path | None = None, as_json: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Prints the report (or its JSON, or nothing if ``quiet``) and writes the files that were asked for."""
    from .page import render

    text = strict_json(document(measured.report, measured.details), 1)
    written = []
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / "report.json", text + "\n")
            written.append(folder / "report.json")
            html = html or folder / "report.html"
        if html is not None:
            write_file(html, render(measured.report, title=title, details=measured.details))
            written.append(html)
    finally:  # what cannot be written is told all the same
        if quiet:
            pass
        elif as_json:
            emit(text)
        else:
            show_report(measured.report, title)
            for note in [*measured.details.get("notes", []), *measured.report.caveats()]:
                emit(f"\n{note}")
    if written:
        say("wrote " + ", ".join(str(path) for path in written))


def figure_files(comparison: Comparison, panels: Panels = "ncops") -> dict[str, bytes]:
    """The figure of a comparison in vector formats, the same bytes for the same runs; none without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return {}
    from matplotlib import pyplot

    from .plots.style import PAPER
    from .plots.svg import presented

    # Type 42 fonts are what publishers ask for in a PDF.
    with matplotlib.rc_context({**PAPER, "pdf.fonttype": 42, "svg.hashsalt": "ncops", "backend": "agg"}):
        figure, _ = comparison.plot(panels=panels)
        files = {}
        for suffix, date in (("pdf", "CreationDate"), ("svg", "Date")):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata={date: None})
            files[f"trajectories.{suffix}"] = buffer.getvalue()
        files["trajectories.svg"] = presented(files["trajectories.svg"].decode()).encode()
        pyplot.close(figure)
    return files


def deliver_comparison(
    comparison: Comparison, *, folder: Path, title: str | None = None, panels: Panels = "ncops", as_json: bool = False
) -> None:
    """Prints the runs (or their JSON) and writes report.html, comparison.json and the figure of these panels.

    Raises:
        CommandError: where ``folder`` is one of the runs, whose own report.html this would replace.
    """
    if any(Path(run.source).absolute().parent == folder.absolute() for run in comparison.runs if run.source):
        raise CommandError(f"--output: {folder} is one of the runs; give another folder")
    text = comparison.to_json(indent=1)
    files = {"report.html": comparison.html(title=title), "comparison.json": text + "\n"}
    files |= figure_files(comparison, panels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_file(folder / name, content)
    finally:
        if as_json:
            emit(text)
        else:
            show_table(title or "Neural collapse, run by run", *comparison.rows())
            for note in comparison.caveats():
                emit(f"\n{note}")
    say("wrote " + ", ".join(str(folder / name) for name in files))


def deliver_lens(lens: Mapping[str, Any], *, title: str, folder: Path | None = None, as_json: bool = False) -> None:
    """Prints the means by layer (or the JSON), and writes lens.json and lens.html into the folder."""
    try:
        if folder is not None:
            written = write_lens(lens, folder, title)
    finally:  # what cannot be written is told all the same
        if as_json:
            emit(strict_json(lens, 1))
        else:
            columns = by_layer(lens)
            rows = [
                (str(layer), *(format_value(values[i]) for values in columns.values()))
                for i, layer in enumerate(lens["layers"])
            ]
            show_table(title, ("layer", *map(heading, columns)), rows, left=())
            for note in lens_notes(lens):
                emit(f"\n{note}")
    if folder is not None:
        say("wrote " + ", ".join(map(str, written)))


def write_lens(
    lens: Mapping[str, Any], folder: Path, title: str, tensors: Mapping[str, Tensor] | None = None,
    told: Mapping[str, Any] | None = None,
) -> list[Path]:  # fmt: skip
    """Writes lens.json and lens.html, and lens.safetensors where there are tensors; returns their paths."""
    from .page.lens import render_lens

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "lens.json", folder / "lens.html"]
    write_file(written[0], strict_json(lens, 1) + "\n")
    write_file(written[1], render_lens(lens, title=title))
    if tensors is not None:
        from safetensors.torch import save_file

        written.append(folder / "lens.safetensors")
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(written[-1]) as temporary:
            save_file(plain, temporary, metadata={"ncops-lens": json.dumps(strict(dict(told or {})))})
    return written
