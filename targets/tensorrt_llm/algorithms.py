"""The quantization algorithms that TensorRT-LLM and our schemes have in common: what each takes, how it is stored.

    W4A16_AWQ                   int4, symmetric, groups of 64 or 128; named after AWQ, but any such integers fit
    W8A16                       int8, symmetric, one scale a channel
    FP8                         e4m3, one scale a tensor, inputs rounded with a stored scale
    FP8_PER_CHANNEL_PER_TOKEN   e4m3, one scale a channel, inputs rounded with a scale found for each token
    NVFP4                       e2m1, a scale for every 16 and one a tensor, inputs rounded in the same way
    W4A16_NVFP4                 the same, inputs as they are

Sources: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/modules/linear.py (`get_quant_method` and the methods it returns);
NVIDIA/Model-Optimizer, modelopt/torch/export/quant_utils.py (`process_layer_quant_config`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from compressor.layout import pack_e2m1
from compressor.quantized import QuantizedWeight, Scheme
from targets.packing.output_pairs import pack_output_pairs

RUNTIME = "TensorRT-LLM"
GROUP_SIZES = (128, 64)
# What widths must be multiples of, (output channels, inputs): preprocess_weights_for_mixed_gemm
# (tensorrt_llm/quantization/functional.py) asserts it of integers, cublas_scaled_mm (cpp/tensorrt_llm/thop) of fp8.
# NVFP4 is padded to its multiples by newer versions (`NVFP4LinearMethod.post_load_weights`), and by older ones not.
MULTIPLES = {"int4": (16, 64), "int8": (8, 64), "fp8": (16, 16), "nvfp4": (32, 32)}
# Linears that the runtime does not fuse: int4 ones read an activation scale and fail without one.
UNFUSED = ("self_attn.o_proj", "mlp.down_proj")


def layer_config(scheme: Scheme) -> dict[str, Any]:
    """What hf_quant_config.json says of a layer with this scheme."""
    if scheme.kind == "int4":
        awq = {"quant_algo": "W4A16_AWQ", "group_size": scheme.group_size}
        return awq | {"has_zero_point": False, "pre_quant_scale": True}
    if scheme.kind == "int8":
        return {"quant_algo": "W8A16"}
    if scheme.kind == "nvfp4":
        return {"quant_algo": "NVFP4" if scheme.activations else "W4A16_NVFP4", "group_size": scheme.group_size}
    return {"quant_algo": "FP8" if scheme.per_tensor else "FP8_PER_CHANNEL_PER_TOKEN"}


def stored_linear(layer: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors, by full name, of a linear that is served in `dtype`."""
    parts = _stored_parts(weight)
    if weight.scheme.kind == "int4" and layer.endswith(UNFUSED):
        factors = weight.input_factors
        parts["pre_quant_scale"] = torch.ones(weight.codes.shape[1]).to(dtype) if factors is None else factors.to(dtype)
    if weight.input_scale is not None:
        parts["input_scale"] = weight.input_scale
    # Layers may share the very tensor of a scale, which a shard does not store twice.
    return {f"{layer}.{part}": tensor if tensor.dim() else tensor.clone() for part, tensor in parts.items()}


def _stored_parts(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    kind = weight.scheme.kind
    if kind == "int4":
        return {"weight": pack_output_pairs(weight.codes), "weight_scale": weight.scales}
    if kind == "nvfp4":
        scales = weight.block_scales
        packed = pack_e2m1(weight.codes)
        return {"weight": packed, "weight_scale": scales.codes, "weight_scale_2": scales.tensor_scale}
    return {
        "weight": weight.codes,
        "weight_scale": weight.scales[0, 0] if weight.scheme.per_tensor else weight.scales[:, 0].clone(),
    }


def layer_reasons(scheme: Scheme, out_features: int, in_features: int) -> Iterable[str]:
    """Why none of the algorithms holds a linear of this shape and scheme, whose kind is one of theirs."""
    if scheme.kind != "nvfp4":
        yield from _fp8_reasons(scheme) if scheme.kind == "fp8" else _integer_reasons(scheme)
    outputs, inputs = MULTIPLES[scheme.kind]
    if in_features % inputs:
        yield f"the input width {in_features} is no multiple of {inputs}, which {RUNTIME} needs; skip these layers"
    elif scheme.type == "int":
        yield from _group_reasons(scheme, in_features)
    if out_features % outputs:
        yield f"the output width {out_features} is no multiple of {outputs}, which {RUNTIME} needs; skip these layers"


def _integer_reasons(scheme: Scheme) -> Iterable[str]:
    if scheme.activations is not None:
        yield f"{scheme.activations} are not what this target computes with; activations=none works, or the target hf"
    if not scheme.symmetric:
        yield f"zero points are not read by {RUNTIME}; symmetric=true works"


def _group_reasons(scheme: Scheme, in_features: int) -> Iterable[str]:
    size = "one scale per channel" if scheme.group_size is None else f"group {scheme.group_size}"
    if scheme.bits == 8 and scheme.group_size is not None:
        yield f"{size} is not served by {RUNTIME} in int8; group_size=channel works"
    if scheme.bits == 4 and scheme.group_size not in GROUP_SIZES:
        fitting = " or ".join(str(size) for size in GROUP_SIZES if in_features % size == 0)
        yield f"{size} is not served by {RUNTIME}; group_size {fitting} works"


def _fp8_reasons(scheme: Scheme) -> Iterable[str]:
    activations = scheme.activations
    if activations is None or activations.dynamic == scheme.per_tensor:
        yield (
            f"{scheme} is not served by {RUNTIME}; fp8:scales=tensor,activations=static works, "
            "and fp8:scales=channel,activations=dynamic"
        )
