"""SparseGPT: set entries to zero column by column and let the columns still to come make up for the error.

Paper: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023. It is
GPTQ with zeros in place of integers, and has its Hessian and its order of going over a weight. In addition, what is
left of each row is then solved for all at once, which the paper finds too costly: by conjugate gradients, all rows
together, it is a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from calibration.activations import InputStatistics
from calibration.moments import SecondMoments, parts
from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.gptq import ELEMENTS_AT_ONCE, FEWEST_ORIGINALS, ORIGINALS_SHARE
from passes.hessian import Hessian
from passes.propagation import corrected
from passes.sequential import SequentialEdit
from passes.sparsity import LARGEST_GROUP, Pattern, SparsityPass, keep_anywhere, keep_of_neighbours


def prune(
    weight: torch.Tensor, hessian: Hessian, sparsity: float, pattern: Pattern | None, iterations: int
) -> torch.Tensor:
    """The weight with zeros where they cost least, and the rest changed to make up for them.

    Args:
        weight: float32 [out_features, in_features].
        hessian: of its inputs; in their natural order where there is a pattern.
        iterations: of conjugate gradients.
    """
    rows = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    return torch.cat([_prune_rows(part, hessian, sparsity, pattern, iterations) for part in weight.split(rows)])


def _prune_rows(
    weight: torch.Tensor, hessian: Hessian, sparsity: float, pattern: Pattern | None, iterations: int
) -> torch.Tensor:
    turned = weight.T.contiguous()
    pruned = torch.empty_like(turned)
    pruned[hessian.order] = _prune_columns(turned[hessian.order], hessian, sparsity, pattern)
    settle(turned, pruned, hessian.moments, iterations)
    return pruned.T.contiguous()


def _prune_columns(weight: torch.Tensor, hessian: Hessian, sparsity: float, pattern: Pattern | None) -> torch.Tensor:
    """A weight turned and in the Hessian's order, [in_features, out_features], pruned."""
    diagonal = hessian.factor.diagonal()
    pruned, errors = torch.empty_like(weight), torch.empty_like(weight)
    for start, strip in reversed(list(hessian.factor.strips_of(LARGEST_GROUP))):
        size = len(strip)
        corner, own = strip[:, :size], diagonal[start : start + size].tolist()
        among = corner.T.contiguous()
        # What those pruned before have left for each of these to make up for.
        owed = strip[:, size:] @ errors[start + size :]
        here, kept = weight[start : start + size], torch.empty(size, weight.shape[1], dtype=torch.bool)
        together = size if pattern is None else pattern.of
        for place in reversed(range(size)):
            if (place + 1) % together == 0:
                group = slice(place + 1 - together, place + 1)
                costs = _costs(here[group], owed[group], corner[group, group]).T
                kept[group] = (
                    keep_anywhere(costs, sparsity) if pattern is None else keep_of_neighbours(costs, pattern)
                ).T
            wanted = torch.add(here[place], owed[place], alpha=1 / own[place])
            torch.mul(wanted, kept[place], out=pruned[start + place])
            torch.sub(here[place], pruned[start + place], out=errors[start + place])
            owed[:place].addr_(among[place, :place], errors[start + place])
    return pruned


def _costs(weight: torch.Tensor, owed: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """What zeros in neighbours [inputs, out_features] would add to the error of the output.

    Args:
        owed: what those pruned before have left for each to make up for.
        factor: the Hessian's among them, upper triangular.
    """
    made_up = torch.linalg.solve_triangular(factor, owed, upper=True).add_(weight)
    return made_up.mul_(factor.diagonal().unsqueeze(1)).square_()


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
class SparseGPT(SequentialEdit, SparsityPass):
    """Zeros, and the other weights changed to make up for them."""

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = "zeros, and the other weights change to make up for them; needs calibration text"

    propagation: bool = option(True, "prune towards what the original model computes on its own activations")
    iterations: int = option(10, "of conjugate gradients, by which what is left of each row is solved for")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability")
    dtype: Literal["auto", "float32"] = option("auto", "auto rounds to what the checkpoint has; float32 does not round")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not 0 < self.damping <= 1:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        if self.iterations < 0:
            raise InputError(f"iterations={self.iterations} is negative.", "iterations=0 leaves what SparseGPT gives.")
        return super().plan(architecture, schemes)

    def stored_dtype(self, architecture: Architecture) -> torch.dtype | None:
        return None if self.dtype == "auto" else torch.float32

    def originals(self, samples: int) -> int:
        return max(samples // ORIGINALS_SHARE, min(samples, FEWEST_ORIGINALS)) if self.propagation else 0

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        names, dtypes = list(weights), [weight.dtype for weight in weights.values()]
        wanted = list(weights.values())
        drift = statistics.take_drift()
        wanted = [weight.float() for weight in wanted] if drift is None else corrected(wanted, drift)
        del drift  # as large as the Hessian
        weights.clear()
        hessian = Hessian.of(statistics.moments, self.damping, act_order=False)
        context.notes.extend(f"{names[0]}: {remark}" for remark in hessian.remarks())
        pruned: dict[str, Weight] = {}
        for name, dtype in zip(names, dtypes, strict=True):
            solved = prune(wanted.pop(0), hessian, self.sparsity, self.pattern_kept, self.iterations)
            pruned[f"{name}.weight"] = solved if self.dtype == "float32" else solved.to(dtype)
        return pruned
