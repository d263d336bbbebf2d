"""Width pruning: fewer MLP channels and fewer heads in every layer; what is left makes up for what went.

A channel of the MLP, or a group of heads that share a key and value, is judged by what its outputs contribute to the
residual stream on calibration text: tr(W H Wᵀ) over its inputs of the linear that writes there, H their second moments.
The least go. That linear is then solved for what is left by least squares, as `passes.fitting` does for what is left
of a row, and the next layer is judged on what comes out. Papers: An et al., "Fluctuation-based Adaptive Structured
Pruning for Large Language Models" (FLAP), 2023, for judging channels by what they contribute; Kurtic et al.,
"ZipLM", 2023, for solving for the rest.

What is left is an ordinary dense model: all layers have the same widths, since config.json has one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from compressor.architecture import Architecture
from compressor.checkpoint import Checkpoint
from compressor.options import option
from compressor.pass_ import Pass, PassContext
from compressor.quantized import Scheme
from passes.fitting import FittingOptions
from passes.narrowing import Narrowing
from passes.pruning import refuse_cache_scales, refuse_rounded
from passes.width import Widths, candidates, narrowed, share_left_out
from passes.width_search import compare


@dataclass(frozen=True)
class _Size(Pass):
    """Apart from `PruneWidth` only so that listings show them first."""

    fraction: float = option(0.2, "of the parameters of the decoder's layers, that is left out")
    parts: Literal["both", "mlp", "heads"] = option(
        "both", "what may go: MLP channels, heads by the groups that share a key and value; both searches the split"
    )
    multiple: int | Literal["auto"] = option(
        "auto",
        "widths are multiples of this; auto: of 128, 64 or 32, as the model's are, so that group sizes still fit",
    )


@dataclass(frozen=True)
class PruneWidth(FittingOptions, _Size):
    """Fewer MLP channels and heads in every layer."""

    name: ClassVar[str] = "prune-width"
    summary: ClassVar[str] = (
        "FLAP, ZipLM (arXiv 2312.11983, 2302.04089): fewer MLP channels and heads; needs calibration text"
    )

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_rounded(schemes)
        self.check_fitting()
        self._candidates(architecture)
        return {}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return refuse_cache_scales(present)

    def reshaped(self, architecture: Architecture) -> Architecture:
        # Of several splits the one with the fewest heads: a target that cannot take that refuses before work.
        return narrowed(architecture, self._candidates(architecture)[-1])

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        architecture = checkpoint.architecture
        found = self._candidates(architecture)
        options = {one.name: getattr(self, one.name) for one in fields(FittingOptions)}
        ways = {widths: Narrowing(**options, widths=widths) for widths in found}
        widths = compare(checkpoint, ways, context) if len(found) > 1 else found[0]
        share = share_left_out(architecture, widths)
        context.notes.append(f"{widths}: {share:.1%} of the layers' parameters left out, {self.fraction:.1%} asked for")
        return ways[widths].apply(checkpoint, context)

    def _candidates(self, architecture: Architecture) -> list[Widths]:
        return candidates(architecture, self.fraction, self.parts, self.multiple)
