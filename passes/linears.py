"""Which linears a pass changes: all of the decoder but those that its option `skip` names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import Pass


@dataclass(frozen=True)
class ChosenLinears(Pass):
    """Base of passes that change the weights of linears. Its field says which; subclasses say how."""

    skip: tuple[str, ...] = option((), "layers to leave as they are: names or patterns such as *.down_proj")

    def changeable(self, architecture: Architecture) -> list[str]:
        """The linears that it changes when nothing is skipped."""
        return [name for name in architecture.linears() if name != "lm_head"]

    def chosen(self, architecture: Architecture) -> list[str]:
        """The linears that it changes.

        Raises:
            InputError: a pattern matches none.
        """
        candidates = self.changeable(architecture)
        check_patterns("skip", self.skip, candidates)
        return [name for name in candidates if not matches(name, self.skip)]

    def stored_weights(self, block: Block, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The chosen weights of `block` by layer name, [out_features, in_features] as stored and not copied."""
        chosen = set(self.chosen(checkpoint.architecture))
        weights = dict(block.weights)
        if block.name == "head" and "lm_head" in chosen and checkpoint.architecture.tied_embeddings:
            embedding = f"{checkpoint.architecture.embedding}.weight"
            weights["lm_head.weight"] = checkpoint.read([embedding])[embedding]
        return {
            name.removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.removesuffix(".weight") in chosen and isinstance(weight, torch.Tensor)
        }


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns names a layer, whole or from a dot on."""
    return any(fnmatchcase(name, pattern) or name.endswith("." + pattern) for pattern in patterns)


def check_patterns(option: str, patterns: Iterable[str], layers: Sequence[str]) -> None:
    """See that each pattern names a layer.

    Raises:
        InputError: one names none.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in layers):
            hint = f"Layers are named like {layers[0]}." if layers else "No layer is left."
            raise InputError(f"The {option} pattern {pattern!r} matches no layer.", hint)
