"""`llmc inspect`: what a model, an adapter, a .gguf file, an artifact or a run's folder is, from headers only."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.paths import UserPath
from compressor.cli.say import say


@click.command("inspect")
@click.argument("path", type=UserPath())
@click.option("--allow-pickle", is_flag=True, help="Open an adapter's pickle (.bin), which can run code when opened.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(path: Path, allow_pickle: bool, as_json: bool) -> None:
    """Say what PATH is: a model folder, an adapter, a .gguf file, an artifact or a run's folder. Reads no weights."""
    from compressor.cli import emit_json
    from compressor.inspection import describe

    facts = describe(path, allow_pickle)
    if as_json:
        emit_json(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        shown = ", ".join(f"{count} × {name}" for name, count in value.items()) if isinstance(value, dict) else value
        say(f"{key:{width}}  {shown}")
