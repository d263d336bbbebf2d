"""What the verbs print: a line is a line, whatever the names in it hold."""

from __future__ import annotations

from typing import Any

import click

from compressor.escaping import one_line


def say(line: object = "", **style: Any) -> None:
    """Print one line, styled as `click.secho` does."""
    click.secho(one_line(line), **style)
