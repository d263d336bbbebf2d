"""Reads compressed-tensors folders through the compressed-tensors library, not through our layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compressor.architecture import read_config, resolve
from compressor.checkpoint import Weight
from compressor.errors import RunError
from compressor.families import HEAD
from compressor.nvfp4 import BlockScales
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme
from targets.packing.stored import read_tensor, tensor_holders

READER = "compressed-tensors"
PACKED, NVFP4 = "pack-quantized", "nvfp4-pack-quantized"
PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale",
         "weight_global_scale", "input_global_scale")  # fmt: skip


def read_folder(root: Path) -> Iterator[tuple[str, Weight]]:
    """Every weight of a folder by its parameter name, one at a time.

    Raises:
        RunError: config.json gives no scheme for a layer that is stored quantized, or the library decompresses it to
            other values than its codes and scales mean.
    """
    config = _Config(root)
    holders = tensor_holders(root)
    for name in sorted(holders):
        layer, _, part = name.rpartition(".")
        if f"{layer}.weight_scale" not in holders or part not in PARTS:
            yield name, read_tensor(name, holders)
        elif part in ("weight", "weight_packed"):
            parts = {part: read_tensor(f"{layer}.{part}", holders) for part in PARTS if f"{layer}.{part}" in holders}
            yield f"{layer}.weight", _restored(layer, parts, config)
        elif not {f"{layer}.weight", f"{layer}.weight_packed"} & holders.keys():
            _check_shared(name, resolve(read_config(root)).embedding, holders)


def _check_shared(name: str, embedding: str, holders: Mapping[str, Any]) -> None:
    """A head that is tied to a quantized embedding has nothing of its own but copies of scales and zero points."""
    original = name.replace(HEAD, embedding)
    if not torch.equal(read_tensor(name, holders), read_tensor(original, holders)):
        raise RunError(f"{name} differs from {original}, whose integers it shares.")


class _Config:
    """config.json as the library understands it."""

    def __init__(self, root: Path) -> None:
        from compressed_tensors.quantization import QuantizationConfig

        raw = json.loads((root / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        config = None if raw is None else QuantizationConfig.model_validate(raw)
        self._format = None if config is None else config.format
        self._ignored = [] if config is None else list(config.ignore or ())
        groups = [] if config is None else list(config.config_groups.values())
        self._targets = {target: group for group in groups for target in group.targets}

    def group(self, layer: str) -> tuple[Any, str]:
        """The library's scheme of a layer, and the format it is stored in."""
        from compressed_tensors.utils.match import is_match, match_targets

        linear = torch.nn.Linear(1, 1, device="meta")
        matched = match_targets(layer, linear, self._targets)
        if not matched or not is_match(layer, linear, matched, self._ignored):
            raise RunError(f"{layer} is stored quantized, but config.json gives no scheme for it.")
        group = self._targets[matched[0]]
        return group, str(group.format or self._format)


def _restored(layer: str, parts: Mapping[str, torch.Tensor], config: _Config) -> QuantizedWeight:
    group, stored_as = config.group(layer)
    restore = {PACKED: _unpacked, NVFP4: _nvfp4}.get(stored_as, _plain)
    weight = restore(parts, group)
    if not torch.equal(_decompressed(parts, group, stored_as), _values(weight)):
        raise RunError(f"{READER} decompresses {layer} to other values than its codes and scales mean.")
    return weight


def _unpacked(parts: Mapping[str, torch.Tensor], group: Any) -> QuantizedWeight:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    scale, bits = parts["weight_scale"], group.weights.num_bits
    shape = torch.Size(parts["weight_shape"].tolist())
    zero_points = None
    if not group.weights.symmetric:
        per_group = torch.Size((shape[0], scale.shape[1]))
        zero_points = unpack_from_int32(parts["weight_zero_point"], bits, per_group, packed_dim=0)
    codes = unpack_from_int32(parts["weight_packed"], bits, shape)
    return QuantizedWeight(codes, scale.float(), zero_points, _scheme(group))


def _plain(parts: Mapping[str, torch.Tensor], group: Any) -> QuantizedWeight:
    input_scale = parts["input_scale"].float().reshape(()) if "input_scale" in parts else None
    scheme, scales = _scheme(group), parts["weight_scale"].float()
    if scheme.per_tensor:
        scales = scales.expand(len(parts["weight"]), 1)
    return QuantizedWeight(parts["weight"], scales, parts.get("weight_zero_point"), scheme, input_scale)


def _nvfp4(parts: Mapping[str, torch.Tensor], group: Any) -> QuantizedWeight:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    packed, input_scale = parts["weight_packed"], parts.get("input_global_scale")
    codes = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], torch.float32).to(FP8)
    scales = BlockScales(parts["weight_scale"], 1 / parts["weight_global_scale"].reshape(()))
    inputs = None if input_scale is None else 1 / input_scale.reshape(())
    return QuantizedWeight(codes, scales.values(), None, _scheme(group), inputs, scales)


def _decompressed(parts: Mapping[str, torch.Tensor], group: Any, stored_as: str) -> torch.Tensor:
    """The library's own value of the weight, in float32 so that nothing is rounded on the way.

    It gives NVFP4 in bfloat16, which holds the product of a code and its block's scale, but with the tensor's scale
    only if that is a power of two: it is left out.
    """
    from compressed_tensors.compressors import BaseCompressor

    library = BaseCompressor.get_value_from_registry(stored_as)
    given = {**parts, "weight_scale": parts["weight_scale"].float()}
    if stored_as == NVFP4:
        given["weight_global_scale"] = torch.ones(1)
    return library.decompress(given, group)["weight"].float()


def _values(weight: QuantizedWeight) -> torch.Tensor:
    scales = weight.rounded_scales
    return weight.dequantize() if scales is None else replace(weight, scales=scales.codes.float()).dequantize()


def _scheme(group: Any) -> Scheme:
    weights, inputs = group.weights, group.input_activations
    # "local" has block scales that are found while running, under a stored one.
    activations = None if inputs is None else Activations(inputs.num_bits, inputs.type, inputs.dynamic is True)
    whole = weights.strategy == "tensor"
    return Scheme(weights.num_bits, weights.group_size, weights.symmetric, weights.type, activations, per_tensor=whole)
