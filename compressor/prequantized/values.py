"""Layouts whose numbers have no other form here: what they stand for is read, in float32, and rounded anew.

    fp8 in blocks     weight float8_e4m3fn [N, K]; a scale for each block of b rows and c columns, [N / b, K / c]
                      rounded up: weight_scale_inv of the method fp8, weight_scale of compressed-tensors.
                      value = code * scale
    bitsandbytes int8 weight int8 [N, K], SCB float32 [N]: value = code * SCB / 127
    bitsandbytes fp4  two codes a byte, the first in the high bits; value = quant_map[code] * absmax of its block, which
                      may itself be nested_quant_map[absmax] * nested_absmax + offset

Source: transformers 5.17, integrations/finegrained_fp8.py and integrations/bitsandbytes.py; compressed-tensors 0.19,
quantization/lifecycle/forward.py; bitsandbytes 0.50, functional.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch

from compressor.errors import InputError
from compressor.json_file import parse_object
from compressor.prequantized.parts import HALVES, Part
from compressor.quantized import FP8, QuantizedWeight, Scheme

FP4_STATE = "weight.quant_state.bitsandbytes__fp4"
SCB_STEP = 7.874015718698502e-3  # 1 / 127, as bitsandbytes multiplies by it


class ValuesOnly:
    """What these layouts share: there are values to ask for, and no codes to keep."""

    kv_cache: ClassVar[bool] = False
    only_values: ClassVar[bool] = True

    def scheme(self, layer: str) -> Scheme:
        """The width of a layer's codes; what else they are no `Scheme` says."""
        return Scheme(8, None, type="float")

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Tensors that may lie beside them."""
        return {}

    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """Nothing: such a folder is refused before, unless its values are wanted."""
        self._no_codes(layer)

    def zero_points(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """Nothing, as above."""
        self._no_codes(layer)

    def _no_codes(self, layer: str) -> NoReturn:
        raise AssertionError(f"{layer} has values only")


@dataclass(frozen=True)
class Fp8Blocks(ValuesOnly):
    """fp8 with a scale for each block of so many rows and columns, or one for the whole tensor (None).

    Attributes:
        packed: what the scale is called.
        inputs: what a scale of the layer's inputs is called, which values do without.
    """

    block: tuple[int, int] | None
    packed: str
    inputs: str

    def __str__(self) -> str:
        return "fp8 with one scale a tensor" if self.block is None else f"fp8 in blocks of {self._size}"

    @property
    def _size(self) -> str:
        return " x ".join(map(str, self.block or ()))

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        blocks = self.block and (-(-out_features // self.block[0]), -(-in_features // self.block[1]))
        return {"weight": Part((out_features, in_features), (FP8,)), self.packed: Part(blocks or (), HALVES)}

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Scales of inputs, where these were not found while running."""
        return {self.inputs: Part((), HALVES)}

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values of a weight, float32 [out_features, in_features]."""
        values, scales = parts["weight"].float(), parts[self.packed].float()
        if self.block is None:
            return values * scales
        rows, columns = values.shape
        for number, row in enumerate(scales):  # by rows of blocks, to take no memory of the weight's size
            first = number * self.block[0]
            wide = row.repeat_interleave(self.block[1])[:columns]
            values[first : min(first + self.block[0], rows)] *= wide
        return values


@dataclass(frozen=True)
class BitsAndBytesInt8(ValuesOnly):
    """LLM.int8(): integers with one scale a row."""

    packed: ClassVar[str] = "SCB"

    def __str__(self) -> str:
        return "bitsandbytes int8"

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        return {
            "weight": Part((out_features, in_features), (torch.int8,)),
            "SCB": Part((out_features,), (torch.float32,)),
        }

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """A number that says how rows are laid out."""
        return {"weight_format": Part((), (torch.uint8,))}

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values of a weight, float32 [out_features, in_features].

        Raises:
            InputError: its rows are laid out for a GPU.
        """
        if int(parts.get("weight_format", torch.tensor(0))) != 0:
            raise InputError(f"{layer} is laid out for a GPU's int8 kernels, which cannot be read; rows can.")
        return parts["weight"].float() * parts["SCB"].unsqueeze(1) * SCB_STEP


@dataclass(frozen=True)
class BitsAndBytesFp4(ValuesOnly):
    """FP4: indices into a table of 16 numbers, with a scale for each block."""

    packed: ClassVar[str] = FP4_STATE
    double_quant: bool

    def __str__(self) -> str:
        return "bitsandbytes fp4"

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix; how many scales there are the state says."""
        scales = (torch.uint8,) if self.double_quant else (torch.float32,)
        nested = ("weight.nested_absmax", "weight.nested_quant_map") if self.double_quant else ()
        return {
            "weight": Part((-(-out_features * in_features // 2), 1), (torch.uint8,)),
            "weight.absmax": Part(None, scales),
            "weight.quant_map": Part((16,), (torch.float32,)),
            FP4_STATE: Part(None, (torch.uint8,)),
        } | {name: Part(None, (torch.float32,)) for name in nested}

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values of a weight, float32 [out_features, in_features].

        Raises:
            InputError: its state is damaged or does not fit its tensors.
        """
        state = _state(layer, parts[FP4_STATE])
        scales, size = self._scales(parts, state), math.prod(state["shape"])
        width = int(state["blocksize"])
        if width < 1 or len(scales) != -(-size // width) or 2 * parts["weight"].numel() != size + size % 2:
            raise InputError(f"The quantization state of {layer} does not fit its tensors.", "The folder is damaged.")
        packed = parts["weight"].flatten()
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()[:size]
        values = parts["weight.quant_map"][codes.long()]
        return (values * scales.repeat_interleave(width)[:size]).view(state["shape"])

    def _scales(self, parts: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> torch.Tensor:
        stored = parts["weight.absmax"].flatten()
        if not self.double_quant:
            return stored
        block = parts["weight.nested_absmax"].repeat_interleave(int(state["nested_blocksize"]))[: len(stored)]
        return parts["weight.nested_quant_map"][stored.long()] * block + float(state["nested_offset"])


def fp8_blocks(config: Mapping[str, Any]) -> Fp8Blocks:
    """The layout of a `quantization_config` with the method fp8.

    Raises:
        InputError: its blocks cannot be read.
    """
    block = config.get("weight_block_size")
    return Fp8Blocks(None if block is None else _block(block), "weight_scale_inv", "activation_scale")


def has_blocks(config: Mapping[str, Any]) -> bool:
    """Whether a compressed-tensors `quantization_config` has weights in blocks."""
    groups = config.get("config_groups")
    weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)] if groups else []
    return any(isinstance(one, dict) and one.get("strategy") == "block" for one in weights)


def compressed_blocks(config: Mapping[str, Any]) -> Fp8Blocks:
    """The layout of a compressed-tensors `quantization_config` with weights in blocks.

    Raises:
        InputError: there are other weights too, or they are no fp8.
    """
    weights = [group.get("weights") or {} for group in config["config_groups"].values()]
    blocks = {json.dumps(one.get("block_structure")) for one in weights}
    kinds = {(one.get("strategy"), one.get("type"), one.get("num_bits")) for one in weights}
    if len(blocks) > 1 or kinds != {("block", "float", 8)}:
        raise InputError("The folder holds weights in blocks that are not fp8, or others beside them.")
    return Fp8Blocks(_block(json.loads(blocks.pop())), "weight_scale", "input_scale")


def bits_and_bytes(config: Mapping[str, Any]) -> BitsAndBytesInt8 | BitsAndBytesFp4:
    """The layout of a `quantization_config` with the method bitsandbytes, but for NF4."""
    if config.get("load_in_8bit"):
        return BitsAndBytesInt8()
    return BitsAndBytesFp4(bool(config.get("bnb_4bit_use_double_quant")))


def _block(size: Any) -> tuple[int, int]:
    parts = size.lower().split("x") if isinstance(size, str) else size  # "128x128" in older compressed-tensors
    try:
        rows, columns = map(int, parts)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise InputError(f"The folder is quantized in blocks of {size!r}; a number of rows and of columns can be read.")
    return rows, columns


def _state(layer: str, packed: torch.Tensor) -> dict[str, Any]:
    try:
        state = parse_object(bytes(packed.tolist()), f"The quantization state of {layer}")
        shape = [int(size) for size in state["shape"]]
        return {
            "nested_blocksize": 256,
            "nested_offset": 0.0,
            **state,
            "shape": shape,
            "blocksize": int(state["blocksize"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The quantization state of {layer} cannot be read.", "The folder is damaged.") from error
