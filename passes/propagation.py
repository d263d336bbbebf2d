"""Rounding towards what the original model computes, not only towards the weight.

A linear behind rounded ones reads x where the original model has r. Instead of W, the weight that is rounded is the
one that takes x closest to W r: W + W E[(r - x) xᵀ] (H + ridge)⁻¹, a least-squares problem with a ridge towards W.
Papers: Li et al., "GPTAQ", 2025, and Zhang et al., "Qronos", 2025, which correct column by column on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibration.activations import Drift
from compressor.errors import RunError

# Fraction of the mean second moment. Without a strong ridge the solution regresses to the mean, which shrinks the
# outputs of every layer a little and adds up over a deep model.
RIDGE = 1.0


@dataclass(frozen=True)
class Correction:
    """Makes weights make up for what their inputs have drifted.

    Attributes:
        cross: mean of (r - x) xᵀ, float32 [in_features, in_features].
        factor: lower Cholesky factor of H + ridge, of the same inputs: then too little text fits badly, not wildly.
    """

    cross: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, drift: Drift) -> Correction:
        """Factor the second moments once for all weights that read these inputs.

        Raises:
            RunError: they are not positive definite.
        """
        ridged = drift.gram.clone()
        ridged.diagonal().add_(RIDGE * drift.gram.diagonal().mean().clamp(min=1e-12))
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if failed:
            raise RunError(
                "The calibration statistics of a layer are not positive definite beside their ridge.",
                "precision=float32 computes them more exactly.",
            )
        return cls(drift.cross, factor)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight to round instead of `weight`, float32 [out_features, in_features]."""
        return weight + torch.cholesky_solve((weight @ self.cross).T, self.factor).T
