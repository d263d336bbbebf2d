"""`llmc completion`: what a shell needs to complete verbs, options, targets and passes."""

from __future__ import annotations

from typing import Any

import click

INTO = {
    "bash": 'eval "$(llmc completion bash)"  # into ~/.bashrc',
    "zsh": 'eval "$(llmc completion zsh)"  # into ~/.zshrc',
    "fish": "llmc completion fish > ~/.config/fish/completions/llmc.fish",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(INTO)))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def completion_command(shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL.

    \b
    eval "$(llmc completion bash)"      # into ~/.bashrc
    eval "$(llmc completion zsh)"       # into ~/.zshrc
    llmc completion fish > ~/.config/fish/completions/llmc.fish
    """
    from click.shell_completion import get_completion_class

    from compressor.cli import cli, emit_json

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "llmc", "_LLMC_COMPLETE").source()
    if as_json:
        emit_json({"shell": shell, "script": script, "install": INTO[shell]})
    else:
        click.echo(script)


def targets(context: click.Context, parameter: click.Parameter, begun: str) -> list[Any]:
    """Targets that begin so."""
    from compressor.registry import TARGETS

    return _names(TARGETS, begun)


def passes(context: click.Context, parameter: click.Parameter, begun: str) -> list[Any]:
    """Passes that begin so."""
    from compressor.registry import PASSES

    return _names(PASSES, begun)


def _names(group: str, begun: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from compressor.registry import names

    return [CompletionItem(name) for name in names(group) if name.startswith(begun)]
