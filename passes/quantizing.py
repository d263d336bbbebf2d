"""What all weight-only integer passes share: their options, and which linears they touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import Pass
from compressor.quantized import Scheme

GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class QuantizingPass(Pass):
    """Base of passes that quantize the weights of linears. Its fields are their common options."""

    bits: Literal[4, 8] = option(4, "bits per weight")
    group_size: Literal[32, 64, 128, "channel"] = option(128, "input features that share a scale, or 'channel'")
    symmetric: bool = option(True, "no zero points; needed by TensorRT-LLM")
    skip: tuple[str, ...] = option((), "layers to leave as they are: names or patterns such as *.down_proj")
    lm_head: bool = option(False, "quantize lm_head too; a tied one is untied, the embedding stays as it is")

    @property
    def scheme(self) -> Scheme:
        group_size = None if self.group_size == "channel" else int(self.group_size)
        return Scheme(self.bits, group_size, self.symmetric)

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        chosen = self._chosen(architecture)
        rounded = [name for name in chosen if name in schemes]
        if rounded:
            raise InputError(
                f"{rounded[0]} is already {schemes[rounded[0]]}; a weight is rounded once.",
                f"Remove the pass {self.name}, or start from the float checkpoint.",
            )
        self._check_group_size({name: architecture.linears()[name][1] for name in chosen})
        return {**schemes, **dict.fromkeys(chosen, self.scheme)}

    def weights_to_quantize(self, block: Block, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The weights of `block` that this pass quantizes, float32 [out_features, in_features], by layer name."""
        chosen = set(self._chosen(checkpoint.architecture))
        weights = dict(block.weights)
        if block.name == "head" and "lm_head" in chosen and checkpoint.architecture.tied_embeddings:
            embedding = "model.embed_tokens.weight"
            weights["lm_head.weight"] = checkpoint.read([embedding])[embedding]
        return {
            name.removesuffix(".weight"): weight.float()
            for name, weight in weights.items()
            if name.removesuffix(".weight") in chosen and isinstance(weight, torch.Tensor)
        }

    def _chosen(self, architecture: Architecture) -> list[str]:
        candidates = [name for name in architecture.linears() if self.lm_head or name != "lm_head"]
        for pattern in self.skip:
            if not any(_matches(name, pattern) for name in candidates):
                raise InputError(
                    f"The skip pattern {pattern!r} matches no layer.", f"Layers are named like {candidates[0]}."
                )
        return [name for name in candidates if not any(_matches(name, pattern) for pattern in self.skip)]

    def _check_group_size(self, widths: Mapping[str, int]) -> None:
        size = self.scheme.group_size
        misfits = [name for name, width in widths.items() if size and width % size]
        if not misfits:
            return
        fitting = [str(other) for other in GROUP_SIZES if all(width % other == 0 for width in widths.values())]
        first = misfits[0]
        raise InputError(
            f"group_size={size} does not divide the input width {widths[first]} of {first}"
            + (f" (and of {len(misfits) - 1} more layers)." if len(misfits) > 1 else "."),
            f"{self.name}:group_size={fitting[0] if fitting else 'channel'} works for every layer.",
        )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.endswith("." + pattern)
