"""What rounding a weight needs to know of its inputs: their second moments, damped, ordered and factored once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calibration.activations import SecondMoments
from compressor.errors import RunError

# Shares of each input's own second moment that are added when the matrix is not positive definite: relative to the
# input, so that weak inputs keep their correlations when strong ones are to blame.
RESCUES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Hessian:
    """Second moments of the inputs of a linear, made ready for rounding its weight.

    Attributes:
        moments: damped mean of x xᵀ.
        order: int64 [in_features], inputs in an order in which the last is the first whose weight is rounded.
        factor: L, lower triangular with L Lᵀ = `moments` in that order. Rounding weight j adds
            (Σ_{i>=j} L_ij (w_i - q_i))² to the squared error of the output, which depends on earlier ones only.
        dead_inputs: how many inputs were never active. They are independent of all others: rounded to nearest.
        rescue: share of its own second moment that each input was given to make the matrix positive definite.
    """

    moments: SecondMoments
    order: torch.Tensor
    factor: torch.Tensor
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
            factor = factor_in_place(moments.matrix(order))
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


def factor_in_place(matrix: torch.Tensor) -> torch.Tensor | None:
    """Lower Cholesky factor of a symmetric matrix, in its memory; None where it is not positive definite in float32."""
    columns = matrix.mT  # LAPACK works column by column
    failed = torch.zeros((), dtype=torch.int32)
    torch.linalg.cholesky_ex(columns, out=(columns, failed))
    return None if failed else columns
