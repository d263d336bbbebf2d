"""How strong each input of a linear is, where no more than that is asked: a pass over it, and no matrix product."""

from __future__ import annotations

import torch

from calibration.activations import InputStatistics


class InputEnergy(InputStatistics):
    """Statistics of inputs [..., in_features] without second moments of pairs.

    Attributes:
        energy: mean square of each feature, float32 [in_features].
    """

    def __init__(self, in_features: int, through: torch.Tensor | None = None, moments: bool = False) -> None:
        super().__init__(in_features, None, moments=False)
        self.energy = torch.zeros(in_features)

    def add(self, inputs: torch.Tensor, references: torch.Tensor | None = None) -> None:
        """Take a batch of inputs; references are not looked at."""
        super().add(inputs)
        flat = inputs.reshape(-1, inputs.shape[-1])
        mean = torch.linalg.vector_norm(flat, dim=0, dtype=torch.float32).square_() / len(flat)
        self.energy.lerp_(mean, len(flat) / self.rows)
