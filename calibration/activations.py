"""Statistics of what a linear reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FEATURES_AT_ONCE = 256


@dataclass(frozen=True)
class Drift:
    """How far inputs x are from what the original model has in their place, r.

    Attributes:
        cross: mean of (r - x) xᵀ, float32 [in_features, in_features].
        gram: mean of x xᵀ over the same inputs.
    """

    cross: torch.Tensor
    gram: torch.Tensor


class InputStatistics:
    """Statistics of the inputs x [..., in_features] of a linear, taken batch by batch.

    Attributes:
        gram: mean of x xᵀ, float32 [in_features, in_features].
        drift: over the inputs that came with references, or None when none did.
        largest: absolute maximum of each feature, float32 [in_features].
        rows: how many inputs were seen.
    """

    def __init__(self, in_features: int) -> None:
        self.gram = torch.zeros(in_features, in_features)
        self.drift: Drift | None = None
        self.largest = torch.zeros(in_features)
        self.rows = 0

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs, and what the original model has in their place; those with references come first.

        A product of 16-bit inputs comes out in 16 bits and is averaged in float32: its rounding is far below the
        sampling error of the calibration text.
        """
        if references is None and self.drift is not None and self.drift.gram is self.gram:
            self.gram = self.gram.clone()  # the drift keeps the one of the inputs that it belongs to
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.rows += len(flat)
        torch.maximum(self.largest, torch.maximum(flat.amax(0), -flat.amin(0)).float(), out=self.largest)
        _average(self.gram, _moments(flat), len(flat) / self.rows, len(flat))
        if references is not None:
            cross = torch.zeros_like(self.gram) if self.drift is None else self.drift.cross
            _average(cross, (references.reshape(flat.shape) - flat).T @ flat, len(flat) / self.rows, len(flat))
            self.drift = Drift(cross, self.gram)


def _moments(flat: torch.Tensor) -> torch.Tensor:
    """flat.T @ flat, of which one half mirrors the other and is not computed."""
    width = flat.shape[1]
    product = flat.new_empty(width, width)
    for start in range(0, width, FEATURES_AT_ONCE):
        end = start + FEATURES_AT_ONCE
        part = flat[:, start:end].T @ flat[:, start:]
        product[start:end, start:] = part
        product[start:, start:end] = part.T
    return product


def _average(mean: torch.Tensor, product: torch.Tensor, share: float, rows: int) -> None:
    """Take a sum over `rows` into a running mean, of which they make up `share`."""
    mean.mul_(1 - share).add_(product, alpha=share / rows)
