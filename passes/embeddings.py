"""int8 embeddings: the table that tokens are looked up in, each row to the nearest codes of a scale of its own.

A head that is tied to the table shares the very same integers. In small models the table is much of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from compressor.architecture import EMBEDDING, Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.pass_ import BlockPass, PassContext
from compressor.quantized import QuantizedWeight, Scheme, stack_rows
from passes.grid import fit_grid, quantize

SCHEME = Scheme(8, None, table=True)
ELEMENTS_AT_ONCE = 1 << 22  # a table is rounded in parts, so that float32 copies of it stay small


def round_rows(table: torch.Tensor) -> QuantizedWeight:
    """Round a table [vocab_size, hidden_size] to int8 with one scale a row."""
    parts = []
    for rows in table.split(max(1, ELEMENTS_AT_ONCE // table.shape[1])):
        values = rows.float()
        parts.append(quantize(values, SCHEME, fit_grid(values, SCHEME, None, search=False)))
    return stack_rows(parts)


@dataclass(frozen=True)
class Embeddings(BlockPass):
    """Round the embedding table to int8."""

    name: ClassVar[str] = "embeddings"
    summary: ClassVar[str] = "round the embedding table to int8, one scale a token; a tied head shares its integers"

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if EMBEDDING in schemes:
            raise InputError(f"{EMBEDDING} is already {schemes[EMBEDDING]}; a weight is rounded once.")
        return {**schemes, EMBEDDING: SCHEME}

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        table = block.weights.get(f"{EMBEDDING}.weight")
        if not isinstance(table, torch.Tensor):
            return block
        return block.with_weights({f"{EMBEDDING}.weight": round_rows(table)})
