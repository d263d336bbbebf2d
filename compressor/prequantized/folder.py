"""A folder that another tool quantized, as a value: known from JSON and headers, read one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from compressor.architecture import Architecture
from compressor.checkpoint import FLOATS, Weight
from compressor.errors import InputError
from compressor.prequantized.autoround import auto_round
from compressor.prequantized.awq import AwqLayout
from compressor.prequantized.folding import fold
from compressor.prequantized.gptq import GptqLayout
from compressor.prequantized.modelopt import ACTIVATION_SCALE, ModelOptLayout, check_reciprocals
from compressor.prequantized.parts import HALVES, Layout, Part
from compressor.prequantized.settings import read_settings
from compressor.prequantized.values import bits_and_bytes, compressed_blocks, fp8_blocks, has_blocks
from compressor.quantized import Scheme
from compressor.shards import TensorInfo, read_tensors
from compressor.stored import read_stored

LAYOUTS: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
    "gptq": GptqLayout.parse,
    "awq": AwqLayout.parse,
    "modelopt": ModelOptLayout.parse,
    "auto-round": auto_round,
    "fp8": fp8_blocks,
    "compressed-tensors": compressed_blocks,
    "bitsandbytes": bits_and_bytes,
}


@dataclass(frozen=True)
class PackedFolder:
    """A folder in a foreign layout. What the file holds packed is quantized; everything else is float."""

    root: Path
    config: Mapping[str, Any]
    architecture: Architecture
    layout: Layout
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    schemes: Mapping[str, Scheme] = field(repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, root: Path) -> PackedFolder:
        """Open a folder for which `is_prequantized` holds.

        Raises:
            InputError: it cannot be read, or holds other tensors than its config.json calls for.
        """
        layout, found = _layout(root, read_settings(root)), read_stored(root)
        architecture, tensors = found.architecture, found.tensors
        packed = [layer for layer in architecture.linears() if f"{layer}.{layout.packed}" in tensors]
        schemes = {layer: layout.scheme(layer) for layer in packed}
        folder = cls(root, found.config, architecture, layout, tensors, schemes, found.notes)
        folder._check_tensors()
        return folder

    @property
    def shards(self) -> list[str]:
        """File names of the weights."""
        return sorted({info.shard for info in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the float parameters, as the embedding has it."""
        return self.tensors[f"{self.architecture.embedding}.weight"].dtype

    @property
    def kv_cache(self) -> bool:
        """Whether there are scales of an fp8 key-value cache."""
        return self.layout.kv_cache

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.architecture.tensor_shapes()

    @cached_property
    def _linears(self) -> dict[str, tuple[int, int]]:
        return self.architecture.linears()

    @cached_property
    def _cache_scales(self) -> list[str]:
        layers = range(self.architecture.layers if self.kv_cache else 0)
        return [name for index in layers for name in self.architecture.cache_scales(index)]

    def settled(self) -> PackedFolder:
        """This folder, taken for symmetric where every zero point in it is the middle of its range.

        AutoAWQ stores zero points always. All layers or none: runtimes want one scheme of layers that they fuse.
        """
        if any(scheme.symmetric or self._zero_points(layer).any() for layer, scheme in self.schemes.items()):
            return self
        return replace(self, schemes={layer: replace(one, symmetric=True) for layer, one in self.schemes.items()})

    def blocks(self) -> Iterator[dict[str, Weight]]:
        """The weights of the embedding, of every decoder block, and of the head, by full parameter name.

        Raises:
            InputError: a tensor is damaged, or a layer is stored in a way that cannot be held.
        """
        for weights in self._blocks():
            for name, weight in weights.items():
                check_reciprocals(name, weight)
            folded = fold(weights, self.architecture) if self.factors == "folded" else None
            yield weights if folded is None else folded

    def dequantized_blocks(self) -> Iterator[dict[str, Weight]]:
        """The same with the values of quantized weights, float32, in their place, and no scales of a cache."""
        for weights in self._blocks(values=True):
            yield {name: weight for name, weight in weights.items() if name not in self._cache_scales}

    @property
    def with_factors(self) -> list[str]:
        """Layers that have factors of their inputs, which may be ones."""
        ending = f".{ACTIVATION_SCALE}"
        return [name.removesuffix(ending) for name in self.tensors if name.endswith(ending)]

    @cached_property
    def factors(self) -> Literal["none", "folded", "held"]:
        """What becomes of factors of inputs: folded into the layers before where all of them can be, exactly."""
        named = [f"{layer}.{ACTIVATION_SCALE}" for layer in self.with_factors]
        if all(bool((scale == 1).all()) for scale in read_tensors(self.root, self.tensors, named).values()):
            return "none"
        return "held" if any(fold(weights, self.architecture) is None for weights in self._blocks()) else "folded"

    def _blocks(self, values: bool = False) -> Iterator[dict[str, Weight]]:
        """The weights of each block as they are stored, factors of their inputs among them, or the values of all."""
        names = self._parameters()
        for block in self.architecture.block_names:
            prefixes = self.architecture.modules.prefixes(block)
            yield self._read([name for name in names if name.startswith(prefixes)], values)

    def _parameters(self) -> list[str]:
        names = list(self.architecture.tensor_shapes())
        names += self._cache_scales
        return names if "lm_head.weight" in names or "lm_head" not in self.schemes else [*names, "lm_head.weight"]

    def _read(self, parameters: list[str], values: bool) -> dict[str, Weight]:
        stored = {name: list(self._stored(name)) for name in parameters}
        raw = read_tensors(self.root, self.tensors, [part for parts in stored.values() for part in parts])
        return {name: self._assemble(name, parts, raw, values) for name, parts in stored.items()}

    def _assemble(self, parameter: str, stored: list[str], raw: Mapping[str, torch.Tensor], values: bool) -> Weight:
        if parameter in self._cache_scales:
            return raw[stored[0]].reshape(1)
        if stored == [parameter]:
            return raw[parameter].T if self.architecture.is_transposed(parameter) else raw[parameter]
        layer = parameter.removesuffix(".weight")
        read = self.layout.values if values else self.layout.decode
        return read(layer, {name.removeprefix(f"{layer}."): raw[name] for name in stored}, self.schemes[layer])

    def _zero_points(self, layer: str) -> torch.Tensor:
        name = f"{layer}.qzeros"
        raw = read_tensors(self.root, self.tensors, [name])
        return self.layout.zero_points(layer, {"qzeros": raw[name]}, self.schemes[layer])

    def _stored(self, parameter: str) -> dict[str, Part]:
        """The tensors that store a parameter, by their full name."""
        if parameter in self._cache_scales:
            attention, _, scale = parameter.rpartition(".")
            return {f"{attention}.{scale[0]}_proj.{scale}": Part((), HALVES)}
        layer = parameter.removesuffix(".weight")
        if layer == parameter or layer not in self.schemes:
            shape = self._shapes[parameter]
            return {parameter: Part(shape[::-1] if self.architecture.is_transposed(parameter) else shape, FLOATS)}
        out_features, in_features = self._linears[layer]
        parts = self.layout.parts(self.schemes[layer], out_features, in_features)
        optional = self.layout.optional_parts(in_features)
        parts |= {part: spec for part, spec in optional.items() if f"{layer}.{part}" in self.tensors}
        return {f"{layer}.{part}": spec for part, spec in parts.items()}

    def _check_tensors(self) -> None:
        expected: dict[str, Part] = {}
        for parameter in self._parameters():
            expected |= self._stored(parameter)
        for name, part in expected.items():
            if name not in self.tensors:
                raise InputError(f"{self.root} has no tensor {name}, which its config.json calls for.")
            found = self.tensors[name]
            if part.shape not in (None, found.shape) and not (part.shape == () and found.shape == (1,)):
                where = self.root / "config.json"
                raise InputError(f"Tensor {name} has shape {list(found.shape)}; {where} says {list(part.shape or ())}.")
            if found.dtype not in part.dtypes:
                wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in part.dtypes)
                raise InputError(f"Tensor {name} is stored as {str(found.dtype).removeprefix('torch.')}, not {wanted}.")
        self._check_left_over([name for name in self.tensors if name not in expected])

    def _check_left_over(self, names: list[str]) -> None:
        """Nothing is dropped that means something: AutoGPTQ gives every packed linear a bias, of zeros if need be."""
        for name in names:
            layer, _, part = name.rpartition(".")
            zeros = layer in self.schemes and part == "bias"
            if not zeros or bool(read_tensors(self.root, self.tensors, [name])[name].any()):
                kind = self.architecture.model_type
                raise InputError(f"Tensor {name} has no place in a {kind} model; nothing is dropped silently.")


def is_prequantized(root: Path) -> bool:
    """Whether a model folder says that it is quantized in one of these layouts."""
    settings = read_settings(root)
    method = settings.get("quant_method")
    if method == "compressed-tensors":
        return has_blocks(settings)
    if method == "bitsandbytes":
        return bool(settings.get("load_in_8bit")) or settings.get("bnb_4bit_quant_type", "fp4") == "fp4"
    return method in LAYOUTS


def _layout(root: Path, settings: Mapping[str, Any]) -> Layout:
    try:
        return LAYOUTS[settings["quant_method"]](settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"The quantization settings of {root} cannot be read: "
            f"{'.'.join(map(str, first['loc']))}={first['input']!r}. {first['msg']}."
        ) from error
