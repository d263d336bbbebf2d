"""A folder that another tool quantized, as a value: known from JSON and headers, read one block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError

from compressor.architecture import FAMILIES, Architecture, read_config, resolve
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.prequantized.awq import AwqLayout
from compressor.prequantized.gptq import GptqLayout
from compressor.prequantized.settings import read_settings
from compressor.quantized import QuantizedWeight, Scheme
from compressor.shards import TensorInfo, read_headers, read_tensors

LAYOUTS = {"gptq": GptqLayout, "awq": AwqLayout}
PACKED = "qweight"


class Layout(Protocol):
    """How one tool packs the weight of one linear into tensors."""

    def scheme(self, layer: str) -> Scheme: ...
    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]: ...
    def optional_parts(self, in_features: int) -> dict[str, tuple[int, ...]]: ...
    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight: ...


@dataclass(frozen=True)
class PackedFolder:
    """A folder in a foreign layout. What the file holds packed is quantized; everything else is float."""

    root: Path
    config: Mapping[str, Any]
    architecture: Architecture
    layout: Layout
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    schemes: Mapping[str, Scheme] = field(repr=False)

    @classmethod
    def open(cls, root: Path) -> PackedFolder:
        """Open a folder for which `is_prequantized` holds.

        Raises:
            InputError: it cannot be read, or holds other tensors than its config.json calls for.
        """
        config, settings = read_config(root), read_settings(root)
        architecture = resolve(config)
        layout = _layout(root, settings)
        tensors = read_headers(root)
        packed = [layer for layer in architecture.linears() if f"{layer}.{PACKED}" in tensors]
        folder = cls(root, config, architecture, layout, tensors, {layer: layout.scheme(layer) for layer in packed})
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

    def blocks(self) -> Iterator[dict[str, Weight]]:
        """The weights of the embedding, of every decoder block, and of the head, by full parameter name.

        Raises:
            InputError: a tensor is damaged, or a layer is stored in a way that cannot be held.
        """
        names = self._parameters()
        for block in self.architecture.block_names:
            prefixes = self.architecture.modules.prefixes(block)
            yield self._read([name for name in names if name.startswith(prefixes)])

    def _parameters(self) -> list[str]:
        names = list(self.architecture.tensor_shapes())
        return names if "lm_head.weight" in names or "lm_head" not in self.schemes else [*names, "lm_head.weight"]

    def _read(self, parameters: list[str]) -> dict[str, Weight]:
        stored = {name: list(self._stored(name)) for name in parameters}
        raw = read_tensors(self.root, self.tensors, [part for parts in stored.values() for part in parts])
        return {name: self._assemble(name, parts, raw) for name, parts in stored.items()}

    def _assemble(self, parameter: str, stored: list[str], raw: Mapping[str, torch.Tensor]) -> Weight:
        layer = parameter.removesuffix(".weight")
        if stored == [parameter]:
            return raw[parameter].T if self.architecture.is_transposed(parameter) else raw[parameter]
        parts = {name.rpartition(".")[2]: raw[name] for name in stored}
        return self.layout.decode(layer, parts, self.schemes[layer])

    def _stored(self, parameter: str) -> dict[str, tuple[int, ...]]:
        """Name and shape of the tensors that store a parameter."""
        layer = parameter.removesuffix(".weight")
        if layer == parameter or layer not in self.schemes:
            shape = self.architecture.tensor_shapes()[parameter]
            return {parameter: shape[::-1] if self.architecture.is_transposed(parameter) else shape}
        out_features, in_features = self.architecture.linears()[layer]
        parts = self.layout.parts(self.schemes[layer], out_features, in_features)
        optional = self.layout.optional_parts(in_features)
        parts |= {part: shape for part, shape in optional.items() if f"{layer}.{part}" in self.tensors}
        return {f"{layer}.{part}": shape for part, shape in parts.items()}

    def _check_tensors(self) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for parameter in self._parameters():
            expected |= self._stored(parameter)
        for name, shape in expected.items():
            if name not in self.tensors:
                raise InputError(f"{self.root} has no tensor {name}, which its config.json calls for.")
            if self.tensors[name].shape != shape:
                found = list(self.tensors[name].shape)
                raise InputError(f"Tensor {name} has shape {found}; {self.root / 'config.json'} says {list(shape)}.")
        self._check_left_over([name for name in self.tensors if name not in expected])

    def _check_left_over(self, names: list[str]) -> None:
        """Nothing is dropped that means something: AutoGPTQ gives every packed linear a bias, of zeros if need be."""
        for name in names:
            layer, _, part = name.rpartition(".")
            tied_head = name == "lm_head.weight" and self.architecture.tied_embeddings
            if name.endswith(FAMILIES[self.architecture.model_type].ignored) or tied_head:
                continue
            zeros = layer in self.schemes and part == "bias"
            if not zeros or bool(read_tensors(self.root, self.tensors, [name])[name].any()):
                kind = self.architecture.model_type
                raise InputError(f"Tensor {name} has no place in a {kind} model; nothing is dropped silently.")


def is_prequantized(root: Path) -> bool:
    """Whether a model folder says that it is quantized in one of these layouts."""
    return read_settings(root).get("quant_method") in LAYOUTS


def _layout(root: Path, settings: Mapping[str, Any]) -> Layout:
    try:
        return LAYOUTS[settings["quant_method"]].parse(settings)  # type: ignore[attr-defined]
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"The quantization settings of {root} cannot be read: "
            f"{'.'.join(map(str, first['loc']))}={first['input']!r}. {first['msg']}."
        ) from error
