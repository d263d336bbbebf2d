"""YAML whose aliases stay small: nine lists of nine aliases each stand for 387 million values."""

from __future__ import annotations

from typing import Any

import yaml

MOST = 100_000  # values, each counted as often as it is referred to
DEEPEST = 100  # levels


class ExpansionError(yaml.YAMLError):
    """Read as an error of the text."""


def compose(text: str) -> yaml.Node | None:
    """The nodes of a text.

    Raises:
        yaml.YAMLError: it is no YAML, or stands for more values or levels than a person writes.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise ExpansionError(f"it has more than {DEEPEST} levels") from error
    if node is not None and _size(node, {}, DEEPEST) > MOST:
        raise ExpansionError(f"its aliases stand for more than {MOST:,} values")
    return node


def load(text: str) -> Any:
    """The plain values of a text.

    Raises:
        yaml.YAMLError: as `compose`.
    """
    compose(text)
    return yaml.safe_load(text)


def _size(node: yaml.Node, known: dict[int, int], left: int) -> int:
    """Values that a node stands for, itself among them."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if left == 0:  # an alias within what it refers to never ends
        raise ExpansionError(f"it has more than {DEEPEST} levels")
    if id(node) not in known:
        inside = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in node.value for one in pair]
        known[id(node)] = 1 + sum(_size(one, known, left - 1) for one in inside)
    return known[id(node)]
