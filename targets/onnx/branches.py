"""Finds linears of low rank in a graph: features multiplied by two stored factors, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import GraphProto

DOWN, UP = ".low_rank_down", ".low_rank_up"


@dataclass(frozen=True)
class Branch:
    """Two factors as a graph uses them.

    Attributes:
        down, up: names of the stored tensors.
        features: name of what is multiplied by them.
        added_to: name of what their product is added to, alone or put together with that of other factors; None is
            nothing that a node makes.
        place: among the factors that it is put together with.
    """

    down: str
    up: str
    features: str
    added_to: str | None
    place: int = 0


def find_branches(graph: GraphProto, casts: Mapping[str, str]) -> dict[str, Branch]:
    """All of a graph, by the linear that they are called after.

    Args:
        casts: the source of each value that is a cast of another.
    """
    products = [node for node in graph.node if node.op_type == "FusedMatMul"]
    made_by_down = {node.output[0]: node for node in products if casts.get(node.input[1], node.input[1]).endswith(DOWN)}
    sums, places = _sums(graph), _places(graph)
    branches = {}
    for node in products:
        up, first = casts.get(node.input[1], node.input[1]), made_by_down.get(node.input[0])
        if up.endswith(UP) and first is not None:
            down = casts.get(first.input[1], first.input[1])
            branches[up.removesuffix(UP)] = Branch(
                down, up, first.input[0], sums.get(node.output[0]), places.get(node.output[0], 0)
            )
    return branches


def _sums(graph: GraphProto) -> dict[str, str]:
    """What each value is added to, or the concatenation that it goes into, where another node makes that."""
    joined = {name: node.output[0] for node in graph.node if node.op_type == "Concat" for name in node.input}
    made = {name for node in graph.node for name in node.output}
    added = {node.input[1]: node.input[0] for node in graph.node if node.op_type == "Add" and node.input[0] in made}
    return added | {name: added[whole] for name, whole in joined.items() if whole in added}


def _places(graph: GraphProto) -> dict[str, int]:
    """Where each value lies in the concatenation that it goes into."""
    return {name: place for node in graph.node if node.op_type == "Concat" for place, name in enumerate(node.input)}
