"""The typer application: every command, in the order in which ``ncops --help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

from .._version import __version__
from . import commands, models

app = typer.Typer(
    help="Measures the geometry of trained classifiers and language models: neural collapse NC1 to NC4, in one pass.",
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
)


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


for _function, _name, _help in (
    (commands.info, "info", "Show the build and the backend of every op."),
    (commands.measure, "measure", "Measure features stored in a file."),
    (models.lm, "lm", "Measure the token collapse of a language model on disk."),
    (models.lens, "lens", "Read every layer of a language model through its own unembedding."),
    (models.plan, "plan", "Predict what `ncops lm` takes for a corpus of any size."),
    (commands.merge, "merge", "Add up statistics that several jobs have saved."),
    (commands.demo, "demo", "See it work on a real language model."),
    (commands.bench, "bench", "Measure speed, memory and accuracy on this machine."),
    (commands.compare_runs, "report", "Put several runs beside each other: trajectories, table, plots."),
):
    app.command(_name, short_help=_help)(_function)
