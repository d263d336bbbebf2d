"""`llmc track`: a finished run in MLflow or Weights & Biases."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.paths import RunPath, UserPath
from compressor.cli.say import say
from compressor.errors import InputError


@click.command("track")
@click.argument("run", type=RunPath())
@click.option("--mlflow", "uri", metavar="URI", help="Log to MLflow here: sqlite:///mlflow.db, or a server's address.")
@click.option("--wandb", "folder", type=UserPath(), help="Write an offline run of wandb here.")
@click.option("--experiment", default="llmc", show_default=True, help="MLflow's experiment, or the project of wandb.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def track_command(run: Path, uri: str | None, folder: Path | None, experiment: str, as_json: bool) -> None:
    """Log the run in folder RUN (or a ledger.json) to MLflow or Weights & Biases: the recipe as parameters, a step for
    each row, the reports as files. Nothing is sent anywhere but to the address given.

    \b
    llmc track out --mlflow sqlite:///mlflow.db
    llmc track out --wandb tracked              # and then, if wanted: wandb sync tracked/wandb/offline-run-...
    """
    if uri is None and folder is None:
        raise InputError("Where to? Give --mlflow URI or --wandb FOLDER.")
    from compressor.cli import emit_json
    from compressor.tracking.content import Content

    content, written = Content.of(run), {}
    if uri is not None:
        from compressor.tracking import mlflow

        written["mlflow"] = mlflow.write(content, uri, experiment)
    if folder is not None:
        from compressor.tracking import wandb

        written["wandb"] = str(wandb.write(content, folder, experiment))
    if as_json:
        emit_json(written)
        return
    for tracker, place in written.items():
        say(f"{tracker}: {place}")
