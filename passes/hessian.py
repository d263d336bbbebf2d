"""What rounding a weight needs to know of its inputs: their second moments, damped, ordered and factored once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibration.moments import SecondMoments
from compressor.errors import RunError
from passes.cholesky import Factor

# Shares of each input's own second moment that are added when the matrix is not positive definite: relative to the
# input, so that weak inputs keep their correlations when strong ones are to blame.
RESCUES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Hessian:
    """Second moments of the inputs of a linear, made ready for rounding its weight.

    Attributes:
        moments: damped mean of x xᵀ.
        order: int64 [in_features], inputs in an order in which the last is the first whose weight is rounded.
        factor: U, upper triangular with Uᵀ U = `moments` in that order. Rounding weight j adds
            (Σ_{i>=j} U_ji (w_i - q_i))² to the squared error of the output, which depends on earlier ones only.
        dead_inputs: how many inputs were never active. They are independent of all others: rounded to nearest.
        rescue: share of its own second moment that each input was given to make the matrix positive definite.
    """

    moments: SecondMoments
    order: torch.Tensor
    factor: Factor
    dead_inputs: int
    rescue: float

    @classmethod
    def of(cls, moments: SecondMoments, damping: float, act_order: bool) -> Hessian:
        """Make second moments ready.

        Args:
            moments: mean of x xᵀ over the calibration inputs; its diagonal is raised in place.
            damping: fraction of the mean diagonal that is added to the diagonal.
            act_order: round the inputs with the largest second moment first.

        Raises:
            RunError: the matrix cannot be made positive definite.
        """
        energy = moments.diagonal()
        mean = energy.mean().clamp(min=1e-12)
        order = (torch.argsort(energy, descending=True, stable=True) if act_order else torch.arange(len(energy))).flip(
            0
        )
        for rescue in RESCUES:
            moments.set_diagonal(energy + torch.where(energy == 0, mean, damping * mean + rescue * energy))
            factor = Factor.of(moments.permuted(order))
            if factor is not None:
                return cls(moments, order, factor, int((energy == 0).sum()), rescue)
        raise RunError(
            "The calibration statistics of a layer cannot be made positive definite.", "Use more calibration text."
        )

    def remarks(self) -> list[str]:
        """What was met that a person should know."""
        found = []
        if self.dead_inputs:
            found.append(f"{self.dead_inputs} inputs were never active; rounded to nearest")
        if self.rescue:
            found.append(f"{self.rescue:g} of each input's own second moment was added to make statistics definite")
        return found
