"""Options of verbs that ask runtimes: where those are that live in environments of their own, and how much at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from compressor.measure import BATCH_SIZE

if TYPE_CHECKING:
    from compressor.engine import Engine


def engine_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the option, which is taken before the verb runs."""
    return click.option(
        "--engine",
        "engines",
        multiple=True,
        metavar="NAME=PLACE",
        expose_value=False,
        callback=lambda context, option, given: _take(given),
        help="A runtime's environment (folder or interpreter), vLLM's URL, or none; repeat for several.",
    )(command)


def batch_size_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb that asks tasks the option."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=BATCH_SIZE,
        show_default=True,
        help="Texts in a batch, if the runtime takes batches.",
    )(command)


def known_engines() -> list[Engine]:
    """The engines that targets run in or that passes work with."""
    from compressor.registry import PASSES, TARGETS, load, names

    kinds = ((TARGETS, "target"), (PASSES, "pass"))
    found = {load(group, kind, name).engine for group, kind in kinds for name in names(group)}
    return sorted(filter(None, found), key=lambda engine: engine.name)


def _take(given: tuple[str, ...]) -> None:
    if given:
        from compressor.engine import choose

        choose(given, known_engines())
