"""Rounding what linears read: the option, and the scales that are found on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from calibration.ranges import Ranges, RangeStream
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Activations, QuantizedWeight, Scheme, shared_scale
from compressor.rounding import activation_scale
from passes.quantizing import QuantizingPass


def chosen_activations(choice: str, kind: Literal["int", "float"]) -> Activations | None:
    """What an option asks for that is none, dynamic or static."""
    return None if choice == "none" else Activations(8, kind, dynamic=choice == "dynamic")


def static_scale(largest: torch.Tensor, activations: Activations, what: str, notes: list[str]) -> torch.Tensor:
    """The scale, float32 [], of values whose absolute maximum on the calibration text was `largest`.

    Args:
        what: they are, for the note and the error: `inputs of ...`.
        notes: told if all of them were zero, which says nothing of their range; it is then taken as 1.

    Raises:
        RunError: a value was NaN or infinite.
    """
    if not bool(torch.isfinite(largest)):
        raise RunError(f"The {what} hold NaN or Inf on the calibration text.", "The model overflows on it.")
    if float(largest) == 0:
        notes.append(f"{what} were all zero on the calibration text; their range is taken as 1")
        largest = torch.ones(())
    return shared_scale(activation_scale(largest.float(), activations), 8)


def with_input_scales(
    weights: Mapping[str, Weight], largest: Mapping[str, torch.Tensor], context: PassContext
) -> dict[str, Weight]:
    """The weights, those of static activations with the scale of their inputs.

    Args:
        weights: by parameter name.
        largest: absolute maximum of the inputs on the calibration text, by layer name.
    """
    scaled: dict[str, Weight] = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        activations = weight.scheme.activations if isinstance(weight, QuantizedWeight) else None
        scaled[name] = weight
        if isinstance(weight, QuantizedWeight) and activations is not None and not activations.dynamic:
            scale = static_scale(largest[layer], activations, f"inputs of {layer}", context.notes)
            scaled[name] = replace(weight, input_scale=scale)
    return scaled


def rewrite_with_ranges(
    name: str, checkpoint: Checkpoint, context: PassContext, edit: Callable[[Block, Ranges], Block]
) -> Checkpoint:
    """Stream every block through `edit`, with the largest values that it makes on the calibration text.

    The text runs through the model as it is before the pass: eight bits move a range by less than a step.
    """
    assert context.tokens is not None  # `needs` says so
    stream = RangeStream(Decoder(checkpoint), context.tokens)

    def observed(block: Block) -> Block:
        edited = edit(block, stream.observe(block))
        if block.index is not None:
            context.progress(name, block.index + 1, checkpoint.architecture.layers)
        return edited

    return checkpoint.rewrite(context.out, observed, context.provenance)


@dataclass(frozen=True)
class InputRoundingPass(QuantizingPass):
    """Base of integer passes that can have linears round what they read too (W8A8)."""

    activations: Literal["none", "dynamic", "static"] = option(
        "none", "round what the layers read to int8: dynamic, one scale a token; static, one a layer, from the text"
    )

    @property
    def scheme(self) -> Scheme:
        return replace(super().scheme, activations=chosen_activations(self.activations, "int"))

    def scheme_of(self, layer: str) -> Scheme:
        scheme = super().scheme_of(layer)
        return scheme if scheme.bits == 8 else replace(scheme, activations=None)

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        fits = self.bits == 8 and self.group_size == "channel" and self.symmetric
        if self.activations != "none" and not fits:
            raise InputError(
                f"activations={self.activations} needs int8 weights with one scale a channel and no zero points.",
                f"{self.name}:bits=8,group_size=channel,activations={self.activations} works.",
            )
        return super().plan_layers(shapes)
