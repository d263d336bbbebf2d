"""What attention has to know of lengths and padding, computed by the graph from `attention_mask` [batch, total].

Padding in front (transformers) is hidden by a bias. Padding behind a prompt (onnxruntime-genai) needs none: the kernel
takes each row's own length and overwrites the padding with the tokens that follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto

from targets.onnx.nodes import Nodes

# Added to the score of a padding position. Finite, and so is the sum, since a row that is all padding would turn
# into NaN.
LOWEST = {torch.float32: np.float32(np.finfo(np.float32).min), torch.float16: np.float16(-(2.0**15))}


@dataclass(frozen=True)
class Lengths:
    """Names of values. `current` counts the tokens of this step, `total` those in the cache too.

    Attributes:
        current: int64 [1].
        total: int64 [1].
        last: index of each row's last token among all, int64 [batch, 1].
    """

    current: str
    total: str
    last: str
    front_padding: str

    @classmethod
    def measure(cls, nodes: Nodes) -> Lengths:
        one = nodes.constant([1])
        current = nodes.add("Shape", ["input_ids"], "lengths/current", start=1, end=2)
        total = nodes.add("Shape", ["attention_mask"], "lengths/total", start=1, end=2)
        padding = nodes.add("ArgMax", ["attention_mask"], "lengths/front_padding", axis=1, keepdims=1)
        tokens = nodes.add("ReduceSum", ["attention_mask", one], "lengths/tokens", keepdims=1)
        end = nodes.add("Add", [padding, tokens], "lengths/end")
        return cls(current, total, nodes.add("Sub", [end, one], "lengths/last"), padding)

    def of_attention(self, nodes: Nodes) -> list[str]:
        """`seqlens_k` int32 [batch] and `total_sequence_length` int32 [] as GroupQueryAttention wants them."""
        flat = nodes.add("Squeeze", [self.last, nodes.constant([1])], "lengths/last_flat")
        scalar = nodes.add("Squeeze", [self.total], "lengths/total_scalar")
        casts = {"lengths/seqlens_k": flat, "lengths/total_int32": scalar}
        return [nodes.add("Cast", [value], name, to=TensorProto.INT32) for name, value in casts.items()]

    def padding_bias(self, nodes: Nodes, dtype: torch.dtype) -> str:
        """[batch, 1, current, total] in `dtype` that hides the padding in front of each row."""
        one = nodes.constant([1])
        total = nodes.add("Squeeze", [self.total], "padding/total")
        positions = nodes.add("Range", [nodes.constant(0), total, nodes.constant(1)], "padding/positions")
        hidden = nodes.add("Less", [positions, self.front_padding], "padding/hidden")
        lowest = LOWEST[dtype]
        values = [nodes.constant(lowest, type(lowest)), nodes.constant(0, type(lowest))]
        row = nodes.add("Where", [hidden, *values], "padding/row")
        matrix = nodes.add("Unsqueeze", [row, nodes.constant([1, 2])], "padding/matrix")
        shape = nodes.add("Concat", [one, one, self.current, one], "padding/shape", axis=0)
        return nodes.add("Expand", [matrix, shape], "padding/bias")

    def positions(self, nodes: Nodes) -> str:
        """Rotary position of each token, int64 [batch, current]."""
        zero, one = nodes.constant(0), nodes.constant(1)
        count = nodes.add("Squeeze", [self.current], "positions/count")
        steps = nodes.add("Range", [zero, count, one], "positions/steps")
        before = nodes.add("Sub", [self.last, count], "positions/before")
        unclipped = nodes.add("Add", [before, one], "positions/unclipped")
        # A row padded behind its prompt has its last token before the step's end; its prompt begins at 0.
        return nodes.add("Add", [nodes.add("Max", [unclipped, zero], "positions/first"), steps], "positions")

    def learned_positions(self, nodes: Nodes) -> str:
        """Position of each token in its text, padding in front not counted, int64 [batch, current]."""
        among_all = self.positions(nodes)
        within = nodes.add("Sub", [among_all, self.front_padding], "positions/within")
        return nodes.add("Max", [within, nodes.constant(0)], "positions/learned")

    def last_of_step(self, nodes: Nodes) -> str:
        """Index of each row's last token among those of this step, int64 [batch, 1, 1]."""
        past = nodes.add("Sub", [self.total, self.current], "last_token/past")
        within = nodes.add("Sub", [self.last, past], "last_token/within")
        position = nodes.add("Max", [within, nodes.constant(0)], "last_token/position")
        return nodes.add("Unsqueeze", [position, nodes.constant([1])], "last_token/index")
