"""ModelOpt's unified checkpoints, as TensorRT-LLM reads them: int4, int8, fp8 and NVFP4, scales of an fp8 cache.

    W4A16_AWQ                   `weight` uint8 [N/2, K]: the low nibble of row r is row 2r, the high one 2r + 1
    W8A16                       `weight` int8 [N, K], `weight_scale` [N]
    FP8                         `weight` e4m3 [N, K], `weight_scale` and `input_scale` a number each
    FP8_PER_CHANNEL_PER_TOKEN   `weight` e4m3 [N, K], `weight_scale` [N]
    NVFP4, W4A16_NVFP4          `weight` uint8 [N, K/2], `weight_scale` e4m3 [N, K/16], `weight_scale_2` a number,
                                and of the first `input_scale`, a number

int4 scales are [N, K/g]. `pre_quant_scale` [K] multiplies the layer's inputs.
Sources: NVIDIA/Model-Optimizer, modelopt/torch/export/quant_utils.py and convert_hf_config.py;
NVIDIA/TensorRT-LLM, tensorrt_llm/quantization/modelopt_config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass

from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.layout.nvfp4 import unpack_e2m1
from compressor.nvfp4 import BLOCK, SCALE_DTYPE, BlockScales
from compressor.prequantized.parts import HALVES, REMEDY, Part
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme

MIXED = "MIXED_PRECISION"
INT4 = "W4A16_AWQ"
SCHEMES = {
    "W8A16": Scheme(8, None),
    "FP8": Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme(8, None, type="float", activations=Activations(8, "float")),
    "NVFP4": Scheme(4, BLOCK, type="float", activations=Activations(4, "float", dynamic=False)),
    "W4A16_NVFP4": Scheme(4, BLOCK, type="float"),
}
BYTES = (torch.uint8, torch.int8)
CODES = {"int4": BYTES, "int8": (torch.int8,), "fp8": (FP8,), "nvfp4": BYTES}
SCALE, TENSOR_SCALE, INPUT_SCALE, ACTIVATION_SCALE = "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"


@dataclass(frozen=True)
class _Layer:
    """What the settings say of one layer, or of all."""

    quant_algo: str
    group_size: int | None = None
    has_zero_point: bool = False


@dataclass(frozen=True)
class ModelOptLayout:
    """How one folder is packed: `uniform` holds for all layers, or else `layers` has each by its name."""

    packed: ClassVar[str] = SCALE
    only_values: ClassVar[bool] = False

    uniform: _Layer | None
    layers: dict[str, _Layer] = field(default_factory=dict)
    kv_cache: bool = False

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> ModelOptLayout:
        """The layout that hf_quant_config.json, or its flat copy in config.json, describes.

        Raises:
            InputError: a variant that cannot be read.
        """
        cache = config.get("kv_cache_quant_algo")
        if cache not in (None, "FP8"):
            raise InputError(f"The ModelOpt folder has a key-value cache in {cache}, of which FP8 can be read.")
        if config.get("quant_algo") == MIXED:
            return cls(None, config.get("quantized_layers") or {}, cache == "FP8")
        algorithm, group_size = config.get("quant_algo", ""), config.get("group_size")
        return cls(_Layer(algorithm, group_size, bool(config.get("has_zero_point"))), {}, cache == "FP8")

    def __str__(self) -> str:
        return "ModelOpt"

    def scheme(self, layer: str) -> Scheme:
        """How a layer that is stored packed is quantized.

        Raises:
            InputError: its algorithm cannot be read, or the settings do not name it.
        """
        settings = self.uniform or self.layers.get(layer)
        if settings is None:
            raise InputError(f"{layer} is stored quantized, but the settings of the ModelOpt folder do not name it.")
        if settings.quant_algo != INT4:
            return _scheme_of(layer, settings.quant_algo)
        if settings.has_zero_point or not settings.group_size:
            raise InputError(f"{layer} is int4 with zero points or of no known group size, which cannot be read.")
        return Scheme(4, settings.group_size)

    def parts(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors that store one weight, by their suffix."""
        kind, groups = scheme.kind, in_features // scheme.group_width(in_features)
        rows = out_features // 2 if kind == "int4" else out_features
        columns = in_features // 2 if kind == "nvfp4" else in_features
        scales = () if scheme.per_tensor else (out_features, groups) if scheme.bits == 4 else (out_features,)
        scale_dtypes = (SCALE_DTYPE,) if kind == "nvfp4" else HALVES
        parts = {"weight": Part((rows, columns), CODES[kind]), SCALE: Part(scales, scale_dtypes)}
        if kind == "nvfp4":
            parts[TENSOR_SCALE] = Part((), HALVES)
        return parts | {INPUT_SCALE: Part((), HALVES)} if _is_static(scheme) else parts

    def optional_parts(self, in_features: int) -> dict[str, Part]:
        """Tensors that may lie beside them."""
        return {ACTIVATION_SCALE: Part((in_features,), HALVES)}

    def decode(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The weight that `parts` store."""
        weight, factors = self._decode_core(parts, scheme), parts.get(ACTIVATION_SCALE)
        if factors is None or bool((factors == 1).all()):
            return weight
        return replace(weight, scheme=replace(scheme, input_factors=True), input_factors=factors.float())

    def _decode_core(self, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        inputs = parts[INPUT_SCALE].float().reshape(()) if _is_static(scheme) else None
        if scheme.kind == "nvfp4":
            return _nvfp4(parts, scheme, inputs)
        codes = _unpacked(parts["weight"]) if scheme.kind == "int4" else parts["weight"]
        scales = parts[SCALE].float()
        if scheme.kind != "int4":
            scales = scales.reshape(-1, 1).expand(len(codes), 1).contiguous()
        return QuantizedWeight(codes, scales, None, scheme, inputs)

    def values(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """The values that `parts` store, float32 [out_features, in_features]."""
        return self.decode(layer, parts, scheme).dequantize()

    def zero_points(self, layer: str, parts: Mapping[str, torch.Tensor], scheme: Scheme) -> torch.Tensor:
        """Asked of asymmetric weights, which this layout cannot hold."""
        raise AssertionError(f"{layer} is symmetric")


def check_reciprocals(name: str, weight: Weight) -> None:
    """See that the tensor scales of an NVFP4 weight can be held: steps store their reciprocals.

    Raises:
        InputError: one would change in its last bit.
    """
    if not isinstance(weight, QuantizedWeight) or weight.tensor_scale is None:
        return
    for scale in (weight.tensor_scale, weight.input_scale):
        if scale is not None and not (scale > 0 and 1 / (1 / scale) == scale):
            what = f"A tensor scale of {name}, {float(scale):.9g},"
            raise InputError(f"{what} is not the same after two reciprocals, and steps store the reciprocal.", REMEDY)


def _scheme_of(layer: str, algorithm: str) -> Scheme:
    if algorithm not in SCHEMES:
        readable = ", ".join((INT4, *SCHEMES))
        raise InputError(f"{layer} is stored as {algorithm}, which cannot be read; {readable} can.")
    return SCHEMES[algorithm]


def _is_static(scheme: Scheme) -> bool:
    return scheme.activations is not None and not scheme.activations.dynamic


def _nvfp4(parts: Mapping[str, torch.Tensor], scheme: Scheme, inputs: torch.Tensor | None) -> QuantizedWeight:
    scales = BlockScales(parts[SCALE], parts[TENSOR_SCALE].float().reshape(()))
    codes = unpack_e2m1(parts["weight"].view(torch.uint8))
    return QuantizedWeight(codes, scales.values(), None, scheme, inputs, scales)


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """Bytes [N/2, K] to int8 codes [N, K]: arithmetic shifts bring each nibble's sign along."""
    signed = words.view(torch.int8)
    return torch.stack(((signed << 4) >> 4, signed >> 4), dim=1).flatten(0, 1)
