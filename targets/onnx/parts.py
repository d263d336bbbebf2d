"""What both decoder graphs are made of: activation functions, soft caps, parts of stacked features, rotary tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import rotary_tables
from targets.onnx.nodes import Nodes

# Operators of activation functions, with their attributes. SiLU is two nodes.
ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}


def number(nodes: Nodes, value: float, compute: torch.dtype) -> str:
    """A constant in the dtype that the graph computes in."""
    return nodes.constant(value, np.float16 if compute == torch.float16 else np.float32)


def activated(nodes: Nodes, activation: str, features: str, prefix: str) -> str:
    """The activation function of features."""
    if activation == "silu":
        # onnxruntime makes one node of these two, its sign of SiLU.
        return nodes.add("Mul", [features, nodes.add("Sigmoid", [features], prefix + "sigmoid")], prefix + "activated")
    operator, attributes = ACTIVATIONS[activation]
    return nodes.add(operator, [features], prefix + "activated", **attributes)


def soft_capped(nodes: Nodes, values: str, cap: float | None, compute: torch.dtype, prefix: str) -> str:
    """c tanh(x / c), or the values themselves where there is no cap."""
    if cap is None:
        return values
    limit = number(nodes, cap, compute)
    small = nodes.add("Div", [values, limit], prefix + "small")
    return nodes.add("Mul", [nodes.add("Tanh", [small], prefix + "tanh"), limit], prefix + "capped")


def split(nodes: Nodes, features: str, rows: Sequence[int], prefix: str, parts: Sequence[str]) -> list[str]:
    """Parts of so many features each, called after `prefix`."""
    outputs = [prefix + part for part in parts]
    nodes.add("Split", [features, nodes.constant(list(rows))], prefix + "split", outputs, axis=-1)
    return outputs


def rotary_names(kind: str) -> tuple[str, str]:
    """Names of the tables of one kind of rotary embedding: cosines, sines."""
    return (f"rotary.{kind}.cosines", f"rotary.{kind}.sines") if kind else ("rotary.cosines", "rotary.sines")


def stored_rotary_tables(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Every rotary table of a model by its name, float32 [max_positions, rotary_dim / 2]."""
    architecture = checkpoint.architecture
    for kind in dict.fromkeys(architecture.rotary_kinds) if architecture.rotary_dim else ():
        yield from zip(
            rotary_names(kind), rotary_tables(checkpoint.config, architecture.max_positions, kind), strict=True
        )
