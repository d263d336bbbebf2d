"""What all passes that round weights share: which linears they touch, and the options of integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.families import HEAD
from compressor.options import option
from compressor.quantized import Scheme
from passes.linears import ChosenLinears, check_patterns, matches

GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class LinearPass(ChosenLinears):
    """Base of passes that round the weights of linears. Its fields say which; subclasses say how."""

    changes_floats: ClassVar[bool] = False

    lm_head: Literal[4, 8] | bool = option(
        False, "quantize lm_head too, true with the pass's bits or in 4 or 8; a tied one is untied from the embedding"
    )

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """The scheme that its options spell."""

    def scheme_of(self, layer: str) -> Scheme:
        """The scheme that the pass gives a layer; layers that a runtime fuses must get the same."""
        return self.scheme

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        chosen = self.chosen(architecture)
        rounded = [name for name in chosen if name in schemes]
        if rounded and schemes[rounded[0]].type == "low-rank":
            raise InputError(
                f"{rounded[0]} is {schemes[rounded[0]]}, and {self.name} rounds no factors.",
                f"skip={rounded[0]} leaves it out; low-rank:form=dense before {self.name} leaves an ordinary weight.",
            )
        if rounded:
            raise InputError(
                f"{rounded[0]} is already {schemes[rounded[0]]}; a weight is rounded once.",
                f"Leave out {self.name}, or start from the float checkpoint; --requantize dequantizes this one.",
            )
        table = schemes.get(architecture.embedding)
        if "lm_head" in chosen and architecture.tied_embeddings and table is not None:
            raise InputError(
                f"lm_head is tied to the embedding, which is already {table}; a weight is rounded once.",
                "lm_head=false works, and so does leaving out the pass embeddings.",
            )
        return {**schemes, **self.plan_layers({name: architecture.linears()[name] for name in chosen})}

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        """The schemes that layers of these shapes, (out_features, in_features), will have.

        Raises:
            InputError: the options do not fit them.
        """
        return {name: self.scheme_of(name) for name in shapes}

    def weights_to_quantize(self, block: Block, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The weights of `block` that this pass quantizes, float32 [out_features, in_features], by layer name."""
        return {name: weight.float() for name, weight in self.stored_weights(block, checkpoint).items()}

    def changeable(self, architecture: Architecture) -> list[str]:
        return [name for name in architecture.linears() if self.lm_head or name != "lm_head"]


@dataclass(frozen=True)
class _IntegerOptions:
    """Apart from `QuantizingPass` only so that listings show them before the options of `LinearPass`."""

    bits: Literal[4, 8] = option(4, "bits per weight")
    group_size: Literal[32, 64, 128, "channel"] = option(128, "input features that share a scale, or 'channel'")
    symmetric: bool = option(True, "no zero points; needed by TensorRT-LLM")
    int8: tuple[str, ...] = option((), "decoder layers that get 8 bits: names or patterns such as *.down_proj")


@dataclass(frozen=True)
class QuantizingPass(LinearPass, _IntegerOptions):
    """Base of passes that round weights to integers. Its fields are their common options."""

    @property
    def scheme(self) -> Scheme:
        group_size = None if self.group_size == "channel" else int(self.group_size)
        return Scheme(self.bits, group_size, self.symmetric)

    def scheme_of(self, layer: str) -> Scheme:
        if layer != HEAD:
            return replace(self.scheme, bits=8) if matches(layer, self.int8) else self.scheme
        return self.scheme if isinstance(self.lm_head, bool) else replace(self.scheme, bits=self.lm_head)

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        if self.int8 and self.bits == 8:
            raise InputError("bits=8 gives every layer 8 bits.", "Leave out int8, or give bits=4.")
        check_patterns("int8", self.int8, [name for name in shapes if name != HEAD])
        self._check_group_size({name: shape[1] for name, shape in shapes.items()})
        return super().plan_layers(shapes)

    def fitting_defaults(self, given: Collection[str], architecture: Architecture) -> dict[str, Any]:
        if "group_size" in given or self.group_size == "channel":
            return {}
        linears = architecture.linears()
        widths = {linears[name][1] for name in self.chosen(architecture)}
        largest = next((size for size in GROUP_SIZES if not any(width % size for width in widths)), self.group_size)
        return {} if largest == self.group_size else {"group_size": largest}

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
