"""Rounding towards what the original model computes, not only towards the weight.

A linear behind rounded ones reads x where the original model has r. Instead of W, the weight that is rounded is the
one that takes x closest to W r: W + W E[(r - x) xᵀ] (H + ridge)⁻¹, a least-squares problem with a ridge towards W.
Papers: Li et al., "GPTAQ", 2025, and Zhang et al., "Qronos", 2025, which correct column by column on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calibration.activations import Drift
from compressor.errors import RunError
from passes.cholesky import Factor

# Fraction of the mean second moment. Without a strong ridge the solution regresses to the mean, which shrinks the
# outputs of every layer a little and adds up over a deep model.
RIDGE = 1.0

ROWS_AT_ONCE = 256  # of a weight in 16 bits, that are widened to meet float32


def corrected(weights: Sequence[torch.Tensor], drift: Drift) -> list[torch.Tensor]:
    """What to round instead of the weights, so that they make up for what their inputs have drifted.

    Args:
        weights: [out_features, in_features] each, any float dtype, of linears that read the same inputs.
        drift: of those; used up.

    Returns:
        float32 of the same shapes.

    Raises:
        RunError: the second moments are not positive definite beside their ridge.
    """
    targets = [drift.cross] if drift.applied else [_product(weight, drift.cross) for weight in weights]
    # H is of the same inputs as the drift: then too little text fits badly, not wildly.
    ridged, energy = drift.moments.clone(), drift.moments.diagonal()
    ridged.set_diagonal(energy + RIDGE * energy.mean().clamp(min=1e-12))
    factor = Factor.of(ridged)
    if factor is None:
        raise RunError(
            "The calibration statistics of a layer are not positive definite beside their ridge.",
            "precision=float32 computes them more exactly.",
        )
    for weight, target in zip(weights, targets, strict=True):
        factor.solve_(target)
        for rows, own in zip(target.split(ROWS_AT_ONCE), weight.split(ROWS_AT_ONCE), strict=True):
            rows.add_(own)
    return targets


def _product(weight: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    product = torch.empty(weight.shape)
    for rows, own in zip(product.split(ROWS_AT_ONCE), weight.split(ROWS_AT_ONCE), strict=True):
        torch.mm(own.float(), cross, out=rows)
    return product
