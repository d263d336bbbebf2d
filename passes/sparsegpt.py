"""SparseGPT: set entries to zero column by column and let the columns still to come make up for the error.

Paper: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023. It is
GPTQ with zeros in place of integers, and has its Hessian and its order of going over a weight. In addition, what is
left of each row is then solved for all at once, which the paper finds too costly: by conjugate gradients, all rows
together, it is a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.fitting import Fitting, settle
from passes.gptq import ELEMENTS_AT_ONCE
from passes.hessian import Hessian
from passes.sequential import SequentialEdit
from passes.sparsity import LARGEST_GROUP, Pattern, SparsityPass, keep, keep_anywhere


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
                kept[group] = keep(costs, sparsity, pattern, keep_anywhere).T
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


@dataclass(frozen=True)
class SparseGPT(Fitting, SequentialEdit, SparsityPass):
    """Zeros, and the other weights changed to make up for them."""

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = (
        "SparseGPT (arXiv 2301.00774): zero weights, the others compensate the error; needs calibration text"
    )

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        self.check_fitting()
        return super().plan(architecture, schemes)

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        names, dtypes = list(weights), [weight.dtype for weight in weights.values()]
        wanted = self.wanted(list(weights.values()), statistics)
        weights.clear()
        hessian = Hessian.of(statistics.moments, self.damping, act_order=False)
        context.notes.extend(f"{names[0]}: {remark}" for remark in hessian.remarks())
        pruned: dict[str, Weight] = {}
        for name, dtype in zip(names, dtypes, strict=True):
            solved = prune(wanted.pop(0), hessian, self.sparsity, self.pattern_kept, self.iterations)
            pruned[f"{name}.weight"] = solved if self.dtype == "float32" else solved.to(dtype)
        return pruned
