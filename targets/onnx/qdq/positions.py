"""Where the tokens of a step stand and which others they see, computed by the graph from `attention_mask`.

The mask [batch, total] is 1 where there is a token and 0 where there is padding, which may lie in front of a row's
tokens or behind them. A token is hidden where the mask hides it, where it comes later, or where a window ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import TensorProto

from targets.onnx.lengths import LOWEST
from targets.onnx.nodes import Nodes


@dataclass(frozen=True)
class Positions:
    """Names of values. `current` counts the tokens of this step, `total` those in the cache too.

    Attributes:
        past: int64 [1], the tokens in the cache.
        columns: index of each token among all, int64 [total].
        rows: the same of this step's tokens, int64 [current, 1].
        of_all: how many tokens of its row come before each of all, int64 [batch, total].
        of_step: the same of this step's tokens, int64 [batch, current].
    """

    past: str
    columns: str
    rows: str
    of_all: str
    of_step: str

    @classmethod
    def measure(cls, nodes: Nodes) -> Positions:
        zero, one = nodes.constant(0), nodes.constant(1)
        current = nodes.add("Shape", ["input_ids"], "lengths/current", start=1, end=2)
        total = nodes.add("Shape", ["attention_mask"], "lengths/total", start=1, end=2)
        past = nodes.add("Sub", [total, current], "lengths/past")
        count = nodes.add("Squeeze", [total], "lengths/count")
        columns = nodes.add("Range", [zero, count, one], "positions/columns")
        own = nodes.add("Slice", [columns, past, total, nodes.constant([0])], "positions/own")
        rows = nodes.add("Unsqueeze", [own, nodes.constant([1])], "positions/rows")
        seen = nodes.add("CumSum", ["attention_mask", one], "positions/seen")
        before = nodes.add("Max", [nodes.add("Sub", [seen, one], "positions/before"), zero], "positions/of_all")
        of_step = nodes.add("Slice", [before, past, total, nodes.constant([1])], "positions/of_step")
        return cls(past, columns, rows, before, of_step)

    def mask(self, nodes: Nodes, dtype: torch.dtype, window: int | None) -> str:
        """[batch, 1, current, total] in `dtype`, added to scores: 0 for what is seen, and the lowest number."""
        name = f"mask/{window or 'whole'}/"
        visible = nodes.add("LessOrEqual", [self.columns, self.rows], name + "earlier")
        if window is not None:
            visible = nodes.add("And", [visible, self._near(nodes, window, name)], name + "visible")
        real = nodes.add("Cast", ["attention_mask"], name + "real", to=TensorProto.BOOL)
        by_row = nodes.add("Unsqueeze", [real, nodes.constant([1, 2])], name + "by_row")
        seen = nodes.add("And", [visible, by_row], name + "seen")
        lowest = LOWEST[dtype]
        return nodes.add(
            "Where", [seen, nodes.constant(0, type(lowest)), nodes.constant(lowest, type(lowest))], name + "bias"
        )

    def _near(self, nodes: Nodes, window: int, name: str) -> str:
        """Which tokens are within the window of each, bool [batch, 1, current, total]; padding is not counted.

        The token itself is, as transformers does: key j is seen from i if i - j < window.
        """
        start = nodes.add("Sub", [self.of_step, nodes.constant(window)], name + "start")
        by_row = nodes.add("Unsqueeze", [start, nodes.constant([1, 3])], name + "start_by_row")
        by_column = nodes.add("Unsqueeze", [self.of_all, nodes.constant([1, 2])], name + "by_column")
        return nodes.add("Greater", [by_column, by_row], name + "near")

    def last_of_step(self, nodes: Nodes) -> str:
        """Index of each row's last token among those of this step, int64 [batch, 1, 1]."""
        indices = nodes.add("Mul", ["attention_mask", self.columns], "last_token/indices")
        last = nodes.add("ReduceMax", [indices, nodes.constant([1])], "last_token/last", keepdims=1)
        within = nodes.add("Sub", [last, self.past], "last_token/within")
        position = nodes.add("Max", [within, nodes.constant(0)], "last_token/position")
        return nodes.add("Unsqueeze", [position, nodes.constant([1])], "last_token/index")
