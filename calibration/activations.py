"""Statistics of what a linear reads."""

from __future__ import annotations

import torch


class InputStatistics:
    """Statistics of the inputs x [..., in_features] of a linear, taken batch by batch.

    Attributes:
        gram: mean of x xᵀ, float32 [in_features, in_features].
        drift: mean of (r - x) xᵀ over the inputs that came with a reference r, which is what the original model has in
            place of x; float32 of the same shape, or None when none did.
        largest: absolute maximum of each feature, float32 [in_features].
        rows: how many inputs were seen.
    """

    def __init__(self, in_features: int) -> None:
        self.gram = torch.zeros(in_features, in_features)
        self.drift: torch.Tensor | None = None
        self.largest = torch.zeros(in_features)
        self.rows = 0
        self._paired_rows = 0

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs, and what the original model has in their place.

        A product of 16-bit inputs comes out in 16 bits and is averaged in float32: its rounding is far below the
        sampling error of the calibration text.
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(flat)
        torch.maximum(self.largest, torch.maximum(flat.amax(0), -flat.amin(0)).float(), out=self.largest)
        _average(self.gram, flat.T @ flat, len(flat) / self.rows, len(flat))
        if references is not None:
            self.drift = torch.zeros_like(self.gram) if self.drift is None else self.drift
            self._paired_rows += len(flat)
            change = (references.reshape(flat.shape) - flat).T @ flat
            _average(self.drift, change, len(flat) / self._paired_rows, len(flat))


def _average(mean: torch.Tensor, product: torch.Tensor, share: float, rows: int) -> None:
    """Take a sum over `rows` into a running mean, of which they make up `share`."""
    mean.mul_(1 - share).add_(product, alpha=share / rows)
