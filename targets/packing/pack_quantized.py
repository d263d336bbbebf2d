"""Reads compressed-tensors `pack-quantized` folders through the compressed-tensors library, not through our layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.quantized import QuantizedWeight, Scheme

READER = "compressed-tensors"
PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of a folder by its parameter name, one at a time.

    Raises:
        RunError: config.json gives no scheme for a layer that is stored packed.
    """
    groups, ignore = _parse_config(root)
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            for name in sorted(stored):
                layer, _, part = name.rpartition(".")
                if part == "weight_packed":
                    parts = {part: file.get_tensor(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in stored}
                    yield f"{layer}.weight", _unpack(parts, _arguments(layer, groups, ignore))
                elif part not in PARTS:
                    yield name, file.get_tensor(name)


def _parse_config(root: Path) -> tuple[list[Any], list[str]]:
    from compressed_tensors.quantization import QuantizationConfig

    raw = json.loads((root / "config.json").read_text()).get("quantization_config")
    if raw is None:
        return [], []
    config = QuantizationConfig.model_validate(raw)
    return list(config.config_groups.values()), list(config.ignore or ())


def _arguments(layer: str, groups: list[Any], ignore: list[str]) -> Any:
    from compressed_tensors.utils.match import is_match

    linear = torch.nn.Linear(1, 1, device="meta")
    for group in groups:
        if is_match(layer, linear, group.targets, ignore):
            return group.weights
    raise RunError(f"{layer} is stored packed, but config.json gives no scheme for it.")


def _unpack(parts: Mapping[str, torch.Tensor], arguments: Any) -> QuantizedWeight:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    scale, bits = parts["weight_scale"], arguments.num_bits
    shape = torch.Size(parts["weight_shape"].tolist())
    zero_points = None
    if not arguments.symmetric:
        per_group = torch.Size((shape[0], scale.shape[1]))
        zero_points = unpack_from_int32(parts["weight_zero_point"], bits, per_group, packed_dim=0)
    codes = unpack_from_int32(parts["weight_packed"], bits, shape)
    return QuantizedWeight(codes, scale.float(), zero_points, Scheme(bits, arguments.group_size, arguments.symmetric))
