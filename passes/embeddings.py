"""Quantized embeddings: the table that tokens are looked up in, each row to the nearest codes of its own grid.

A head that is tied to the table shares the very same integers. In small models the table is much of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import BlockPass, PassContext
from compressor.quantized import QuantizedWeight, Scheme, stack_rows
from passes.grid import fit_grid, quantize

ELEMENTS_AT_ONCE = 1 << 22  # a table is rounded in parts, so that float32 copies of it stay small


def round_rows(table: torch.Tensor, scheme: Scheme, search: bool = False) -> QuantizedWeight:
    """Round a table [vocab_size, hidden_size]; `search` as in `fit_grid`."""
    parts = []
    for rows in table.split(max(1, ELEMENTS_AT_ONCE // table.shape[1])):
        values = rows.float()
        parts.append(quantize(values, scheme, fit_grid(values, scheme, None, search)))
    return stack_rows(parts)


@dataclass(frozen=True)
class Embeddings(BlockPass):
    """Round the embedding table to integers."""

    name: ClassVar[str] = "embeddings"
    changes_floats: ClassVar[bool] = False
    summary: ClassVar[str] = "round the embedding table to int8 or int4; a tied lm_head shares its integers"

    bits: Literal[4, 8] = option(8, "bits per weight")
    group_size: Literal[32, 64, 128, "channel"] = option(
        "channel", "features that share a scale, or 'channel': one scale a token"
    )
    symmetric: bool = option(True, "no zero points")
    scale_search: bool = option(False, "try clipping each group's range, and keep what has the least squared error")

    @property
    def scheme(self) -> Scheme:
        """The scheme that its options spell."""
        group_size = None if self.group_size == "channel" else int(self.group_size)
        return Scheme(self.bits, group_size, self.symmetric, table=True)

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        table = architecture.embedding
        if table in schemes:
            raise InputError(
                f"{table} is already {schemes[table]}; a weight is rounded once.", "Leave out the pass embeddings."
            )
        self.scheme.group_width(architecture.hidden_size)  # refuses what does not divide
        return {**schemes, table: self.scheme}

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        name = f"{checkpoint.architecture.embedding}.weight"
        table = block.weights.get(name)
        if not isinstance(table, torch.Tensor):
            return block
        return block.with_weights({name: round_rows(table, self.scheme, self.scale_search)})
