"""How much of a model is zero."""

from __future__ import annotations

from compressor.checkpoint import Checkpoint
from compressor.decoder import dense


def share_of_zeros(checkpoint: Checkpoint) -> float:
    """Of the weights of the decoder's linears, read one block at a time."""
    zeros = entries = 0
    for index in range(checkpoint.architecture.layers):
        linears = checkpoint.architecture.block_linears(index)
        for name in linears:
            weight = checkpoint.read([f"{name}.weight"])[f"{name}.weight"]
            values = dense(weight)
            zeros += values.numel() - int(values.count_nonzero())
            entries += values.numel()
    return zeros / entries
