"""Rounding towards what the original model computes, not only towards the weight.

A linear behind rounded ones reads x where the original model has r. Instead of W, the weight that is rounded is the
one that takes x closest to W r: W + W E[(r - x) xᵀ] (H + ridge)⁻¹, a least-squares problem with a ridge towards W.
Papers: Li et al., "GPTAQ", 2025, and Zhang et al., "Qronos", 2025, which correct column by column on the way.
"""

from __future__ import annotations

import torch

from calibration.activations import Drift

# Fraction of the mean second moment. Without a strong ridge the solution regresses to the mean, which shrinks the
# outputs of every layer a little and adds up over a deep model.
RIDGE = 1.0


def corrected(weight: torch.Tensor, drift: Drift) -> torch.Tensor:
    """The weight that makes up for what its inputs have drifted.

    Args:
        weight: float32 [out_features, in_features].
        drift: of its inputs. Both moments are of the same inputs: then too little text fits badly, not wildly.
    """
    ridged = drift.gram.clone()
    ridged.diagonal().add_(RIDGE * drift.gram.diagonal().mean().clamp(min=1e-12))
    return weight + torch.linalg.solve(ridged, weight @ drift.cross, left=False)
