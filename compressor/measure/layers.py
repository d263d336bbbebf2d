"""Where in the model a pass's rounding shows: every decoder layer before and after it, on the same text."""

from __future__ import annotations

import torch

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.measure.accuracy import Report
from compressor.measure.scores import LayerError

WINDOWS, LENGTH = 4, 256  # of the text that is used, at most; medians over that many tokens are steady


def layer_errors(before: Checkpoint, after: Checkpoint, tokens: torch.Tensor, progress: Report) -> list[LayerError]:
    """The error of every layer. Memory is a block of each, and the hidden states of at most WINDOWS windows.

    Args:
        before, after: the same architecture, with the same residual stream: a pass that only rounds leaves it so.
        tokens: int64 [windows, length].
    """
    tokens = tokens[:WINDOWS, :LENGTH]
    old, new = Decoder(before), Decoder(after)
    exact, drifted = old.embed(tokens), new.embed(tokens)
    found = []
    for index in range(before.architecture.layers):
        rounded = new.layer(after.block(f"layers.{index}"))
        new.run(rounded, index, drifted)
        alone = exact.clone()
        new.run(rounded, index, alone)
        read = exact.clone()
        old.run(old.layer(before.block(f"layers.{index}")), index, exact)
        found.append(LayerError(index, relative(alone - exact, exact - read), relative(drifted - exact, exact)))
        progress(index + 1, before.architecture.layers)
    return found


def relative(difference: torch.Tensor, reference: torch.Tensor) -> float:
    """Median over tokens of the ratio of norms of states [windows, length, hidden_size]; 0 where both are nothing."""
    ratios = difference.norm(dim=-1) / reference.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(ratios.median())
