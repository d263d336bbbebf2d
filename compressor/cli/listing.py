"""`llmc passes` and `llmc targets`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli.say import say


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def passes_command(name: str | None, as_json: bool) -> None:
    """List the passes, or the options of the pass NAME."""
    from compressor.registry import PASSES

    _list(PASSES, "pass", name, as_json)


@click.command("targets")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets_command(name: str | None, as_json: bool) -> None:
    """List the targets, or the options of the target NAME."""
    from compressor.registry import TARGETS

    _list(TARGETS, "target", name, as_json)


def _list(group: str, kind: str, name: str | None, as_json: bool) -> None:
    from compressor import registry
    from compressor.cli import emit_json

    chosen = [name] if name else list(registry.names(group))
    found = [_describe(registry.load(group, kind, one)) for one in chosen]
    if as_json:
        emit_json(found[0] if name else found)
        return
    for entry in found:
        say(entry["name"], bold=True, nl=False)
        say(f"  {entry['summary']}")
        if "preset" in entry:
            say(f"    runs on {entry['runtime']}; default passes: {', '.join(entry['preset']) or 'none'}")
        for option in entry["options"] if name else ():
            say(f"    {option['name']} = {option['default']}  ({option['type']})  {option['help']}")
    if not name:
        say()
        say(f"`llmc {group.removeprefix('llmc.')} NAME` shows the options of one.")


def _describe(cls: Any) -> dict[str, Any]:
    entry = {"name": cls.name, "summary": cls.summary, "options": cls.describe_options()}
    if hasattr(cls, "preset"):
        entry |= {"runtime": cls.runtime, "preset": cls.preset, "reader": cls.reader}
    return entry
