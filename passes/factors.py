"""The best factors of low rank for a linear, weighed by what it reads.

A linear W that reads x with second moments H = Uᵀ U makes outputs of energy ‖W Uᵀ‖². Its best replacement of rank r
keeps the outputs in the r directions in which they have most energy, Ŵ = P Pᵀ W with the left singular vectors P of
W Uᵀ, and loses the energy of the others. That is the truncated singular value decomposition in the space of whitened
inputs, (P Pᵀ W Uᵀ) U⁻ᵀ, without the inverse. Papers: Wang et al., "SVD-LLM", 2024; for the error of a rounded weight,
Zhang et al., "QERA", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calibration.moments import SecondMoments
from compressor.errors import RunError
from passes.cholesky import Factor
from passes.hessian import RESCUES

ROWS_AT_ONCE = 512  # of a product in float64


@dataclass(frozen=True)
class Directions:
    """Directions of a linear's outputs, those with most energy first.

    Attributes:
        vectors: P, orthonormal columns, float32 [out_features, min(out_features, in_features)].
        energies: mean square of the outputs along each, float64.
    """

    vectors: torch.Tensor
    energies: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, factor: Factor | None) -> Directions:
        """Those of a weight.

        Args:
            weight: float32 [out_features, in_features].
            factor: U, of the second moments of its inputs in their natural order; None takes these for white, which is
                a plain singular value decomposition.
        """
        whitened = weight if factor is None else _times_transposed(weight, factor)
        if weight.shape[0] <= weight.shape[1]:
            energies, vectors = torch.linalg.eigh(_gram(whitened))
            return cls(vectors.flip(1).float(), energies.flip(0).clamp(min=0))
        energies, turned = torch.linalg.eigh(_gram(whitened.T))
        # The columns are orthogonal but for rounding, which weighs in those without energy.
        vectors, _ = torch.linalg.qr(whitened.double() @ turned.flip(1))
        return cls(vectors.float(), energies.flip(0).clamp(min=0))

    def lost(self, rank: int) -> float:
        """Share of the energy that is lost at this rank."""
        total = self.energies.sum()
        return float(self.energies[rank:].sum() / total) if total else 0.0


def damped_factor(moments: SecondMoments, damping: float) -> Factor:
    """U of second moments in their natural order; inputs that were never active weigh as much as the damping.

    Args:
        moments: mean of x xᵀ; used up.
        damping: fraction of the mean diagonal that is added to the diagonal.

    Raises:
        RunError: the matrix cannot be made positive definite.
    """
    energy = moments.diagonal()
    mean = energy.mean().clamp(min=1e-12)
    for rescue in RESCUES:
        damped = moments.clone()
        damped.set_diagonal(energy + damping * mean + rescue * energy)
        factor = Factor.of(damped)
        if factor is not None:
            return factor
    raise RunError(
        "The calibration statistics of a layer cannot be made positive definite.", "Use more calibration text."
    )


def energies(weight: torch.Tensor, factor: Factor | None) -> torch.Tensor:
    """Those of `Directions.of` alone, which is half of the work."""
    whitened = weight if factor is None else _times_transposed(weight, factor)
    gram = _gram(whitened if weight.shape[0] <= weight.shape[1] else whitened.T)
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def factors(weight: torch.Tensor, directions: Directions, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What stands for a weight at this rank.

    Args:
        weight: float32 [out_features, in_features].
        directions: those of its outputs.

    Returns:
        down [rank, in_features] and up [out_features, rank], float32. Each of the `rank` features has an equal norm in
        both, so that neither needs more range than the other.
    """
    up = directions.vectors[:, :rank]
    down = up.T @ weight
    size = down.norm(dim=1).sqrt()
    size = torch.where(size == 0, 1.0, size)
    return down / size.unsqueeze(1), up * size


def even_rank(shape: tuple[int, int]) -> int:
    """The highest rank at which factors are smaller than a weight [out_features, in_features]; 0 is none."""
    rows, columns = shape
    return (rows * columns - 1) // (rows + columns)


def rank_of_share(shape: tuple[int, int], share: float) -> int:
    """The rank at which factors have this share of the parameters of a weight [out_features, in_features]."""
    rows, columns = shape
    return int(share * rows * columns / (rows + columns))


def ranks_of_least_loss(
    shapes: Sequence[tuple[int, int]], spectra: Sequence[torch.Tensor], share: float
) -> list[int | None]:
    """Ranks at which weights lose the least together, each relative to its own energy, within one budget.

    The energies of a weight only fall, so that taking whichever direction gains most for its parameters is optimal.

    Args:
        shapes: [out_features, in_features] of each.
        spectra: energies of its directions, the largest first.
        share: of all their parameters that may be taken.

    Returns:
        The rank of each, at least 1; None is a weight that stays whole, since its factors would not be smaller.
    """
    budget = share * sum(rows * columns for rows, columns in shapes)
    gains, owners, costs = [], [], []
    for number, ((rows, columns), energies) in enumerate(zip(shapes, spectra, strict=True)):
        highest = even_rank((rows, columns))
        count = min(highest + 1, len(energies))  # the last step makes it whole
        cost = torch.full((count,), rows + columns, dtype=torch.float64)
        cost[-1] = rows * columns - highest * (rows + columns) if count > highest else cost[-1]
        gain = energies[:count] / energies.sum().clamp(min=torch.finfo(torch.float64).tiny) / (rows + columns)
        gain[0] = float("inf")
        gains.append(gain)
        owners.append(torch.full((count,), number))
        costs.append(cost)
    order = torch.cat(gains).argsort(descending=True, stable=True)
    taken = order[torch.cat(costs)[order].cumsum(0) <= budget]
    counts = torch.bincount(torch.cat(owners)[taken], minlength=len(shapes)).tolist()
    return [None if count > even_rank(shape) else max(count, 1) for count, shape in zip(counts, shapes, strict=True)]


def _times_transposed(weight: torch.Tensor, factor: Factor) -> torch.Tensor:
    """W Uᵀ, float32 [out_features, in_features]."""
    product = torch.empty_like(weight)
    for start, strip in factor.strips_of(factor.width):
        product[:, start : start + len(strip)] = weight[:, start:] @ strip.T
    return product


def _gram(values: torch.Tensor) -> torch.Tensor:
    """A Aᵀ in float64: squares of small singular values are far below what float32 tells apart."""
    gram = torch.zeros(len(values), len(values), dtype=torch.float64)
    for part in values.split(ROWS_AT_ONCE, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    return gram
