"""Statistics of what a linear reads."""

from __future__ import annotations

import torch


class InputStatistics:
    """Statistics of the inputs x [..., in_features] of a linear, taken batch by batch.

    Attributes:
        gram: mean of x xᵀ, float32 [in_features, in_features].
        drift: mean of (r - x) xᵀ, float32 of the same shape, where r is what the original model has in place of x;
            None unless references were given.
        largest: absolute maximum of each feature, float32 [in_features].
        rows: how many inputs were seen.
    """

    def __init__(self, in_features: int) -> None:
        self.gram = torch.zeros(in_features, in_features)
        self.drift: torch.Tensor | None = None
        self.largest = torch.zeros(in_features)
        self.rows = 0

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs, and what the original model has in their place.

        A product of 16-bit inputs comes out in 16 bits and is averaged in float32: its rounding is far below the
        sampling error of the calibration text.
        """
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(flat)
        torch.maximum(self.largest, torch.maximum(flat.amax(0), -flat.amin(0)).float(), out=self.largest)
        self._average(self.gram, flat.T @ flat, len(flat))
        if references is not None:
            self.drift = torch.zeros_like(self.gram) if self.drift is None else self.drift
            self._average(self.drift, (references.reshape(flat.shape) - flat).T @ flat, len(flat))

    def _average(self, mean: torch.Tensor, product: torch.Tensor, rows: int) -> None:
        mean.mul_(1 - rows / self.rows).add_(product, alpha=1 / self.rows)
