"""Nodes and small constants of a graph under construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

CONTRIB = "com.microsoft"
CONTRIB_OPERATORS = {
    "FusedMatMul",
    "GatherBlockQuantized",
    "GroupQueryAttention",
    "MatMulNBits",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}
ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
}


class Nodes:
    """A list of nodes in running order, and the constants they use."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    @property
    def constants(self) -> list[TensorProto]:
        return list(self._constants.values())

    def add(
        self, operator: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Append a node and return the name of its first output, which is the node's own if none are named."""
        outputs = outputs or [name]
        domain = CONTRIB if operator in CONTRIB_OPERATORS else ""
        self.nodes.append(helper.make_node(operator, _trimmed(inputs), outputs, name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """The name of a small constant, made once."""
        name = f"constant.{np.dtype(dtype).name}.{value}".replace(" ", "")
        self._constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype), name))
        return name


def _trimmed(inputs: Sequence[str]) -> list[str]:
    """Inputs without the absent optional ones at the end."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return names
