"""What is left of pruned weights is solved for: least squares on what the inputs were, towards the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from calibration.activations import InputStatistics
from calibration.moments import SecondMoments, parts
from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.options import option
from passes.calibrated import CalibratedPass, CalibrationOptions
from passes.gptq import FEWEST_ORIGINALS, ORIGINALS_SHARE
from passes.propagation import corrected


def settle(weight: torch.Tensor, pruned: torch.Tensor, moments: SecondMoments, iterations: int) -> None:
    """Change the entries of `pruned` that are not zero towards the least error of the outputs, in place.

    The error of a row is quadratic in them: conjugate gradients with the diagonal as preconditioner (Hestenes and
    Stiefel, 1952), a system for each row, none of which gets worse.

    Args:
        weight: the original one, [in_features, out_features].
        pruned: of the same shape.
        moments: H, of the inputs.
    """
    if not iterations:
        return
    kept, scale = pruned != 0, 1 / moments.diagonal().unsqueeze(1)
    residual = _times(moments, weight - pruned).mul_(kept)
    direction = residual * scale
    energy = (residual * direction).sum(0)
    for _ in range(iterations):
        turned = _times(moments, direction).mul_(kept)
        step = energy / (direction * turned).sum(0).clamp_(min=torch.finfo(torch.float32).tiny)
        pruned.addcmul_(direction, step)
        residual.addcmul_(turned, step, value=-1)
        ahead = residual * scale
        before, energy = energy, (residual * ahead).sum(0)
        direction = ahead.add_(direction * (energy / before.clamp(min=torch.finfo(torch.float32).tiny)))


def _times(moments: SecondMoments, values: torch.Tensor) -> torch.Tensor:
    product = torch.empty_like(values)
    for rows in parts(moments.width):
        torch.mm(moments.rows(rows.start, rows.stop), values, out=product[rows])
    return product


@dataclass(frozen=True)
class FittingOptions(CalibrationOptions):
    """Base of passes that have what is left fitted. Its fields say how."""

    propagation: bool = option(True, "fit what is left to what the original model computes on its own activations")
    iterations: int = option(10, "of conjugate gradients, by which what is left is solved for")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability")
    dtype: Literal["auto", "float32"] = option("auto", "auto rounds to what the checkpoint has; float32 does not round")

    def check_fitting(self) -> None:
        """See that the options make sense.

        Raises:
            InputError: one does not.
        """
        if not 0 < self.damping <= 1:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        if self.iterations < 0:
            raise InputError(f"iterations={self.iterations} is negative.", "iterations=0 solves for nothing.")


@dataclass(frozen=True)
class Fitting(FittingOptions, CalibratedPass):
    """Base of those that fit it themselves."""

    def stored_dtype(self, architecture: Architecture) -> torch.dtype | None:
        return None if self.dtype == "auto" else torch.float32

    def originals(self, samples: int) -> int:
        return max(samples // ORIGINALS_SHARE, min(samples, FEWEST_ORIGINALS)) if self.propagation else 0

    def wanted(self, weights: list[torch.Tensor], statistics: InputStatistics) -> list[torch.Tensor]:
        """What to prune in place of weights [out_features, in_features] that read the same input, float32.

        Args:
            statistics: of that input; the drift in it is used up.
        """
        drift = statistics.take_drift()
        return [weight.float() for weight in weights] if drift is None else corrected(weights, drift)
