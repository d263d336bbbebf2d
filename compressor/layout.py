"""The compressed-tensors `pack-quantized` layout, in which quantized weights are stored between passes.

Integers are stored offset-binary (code + 2^(bits-1)), packed low bits first into int32 words: weights along the
input features, zero points along the output features.
Source: vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from compressor.errors import InputError
from compressor.quantized import QuantizedWeight, Scheme

PACKED, SCALE, SHAPE, ZERO_POINT = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes [rows, n] to int32 words [rows, ceil(n * bits / 32)], offset-binary, first element lowest."""
    unsigned = (codes + 2 ** (bits - 1)).view(torch.uint8)  # int8 wraps round to the same eight bits
    padding = -codes.shape[1] % (32 // bits)
    if padding:
        unsigned = torch.nn.functional.pad(unsigned, (0, padding))
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    # A word's lowest byte comes first on every machine that torch is built for.
    return unsigned.flatten().contiguous().view(torch.int32).view(codes.shape[0], unsigned.shape[1] // 4)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack_words`: int8 codes [rows, count]."""
    unsigned = words.flatten().contiguous().view(torch.uint8).view(words.shape[0], 4 * words.shape[1])
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=-1).flatten(1)
    return unsigned[:, :count].view(torch.int8) - 2 ** (bits - 1)


def encode(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors that store `weight`, by their suffix; scales in the model's `dtype`, which holds them exactly."""
    bits = weight.scheme.bits
    tensors = {
        PACKED: pack_words(weight.codes, bits),
        SCALE: weight.scales.to(dtype),
        SHAPE: torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero_points is not None:
        tensors[ZERO_POINT] = pack_words(weight.zero_points.T.contiguous(), bits).T.contiguous()
    return tensors


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
    """The weight that `encode` stored."""
    rows, columns = tensors[SHAPE].tolist()
    zero_points = None
    if not scheme.symmetric:
        packed = tensors[ZERO_POINT].T.contiguous()
        zero_points = unpack_words(packed, scheme.bits, rows).T.contiguous()
    codes = unpack_words(tensors[PACKED], scheme.bits, columns)
    return QuantizedWeight(codes, tensors[SCALE].float(), zero_points, scheme)


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    """Suffixes of the tensors that store one weight of this scheme."""
    return (PACKED, SCALE, SHAPE) if scheme.symmetric else (PACKED, SCALE, SHAPE, ZERO_POINT)


def quantization_config(schemes: Mapping[str, Scheme], linears: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json for the quantized layers `schemes` out of all `linears`."""
    distinct = list(dict.fromkeys(schemes.values()))
    groups = {}
    for number, scheme in enumerate(distinct):
        names = [name for name in schemes if schemes[name] == scheme]
        groups[f"group_{number}"] = {
            # One scheme is written the way every reader expects it; several need the layers' names.
            "targets": ["Linear"] if len(distinct) == 1 else names,
            "weights": _weight_arguments(scheme),
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in linears if name not in schemes],
        "config_groups": groups,
    }


def _weight_arguments(scheme: Scheme) -> dict[str, Any]:
    arguments = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "dynamic": False,
    }
    return arguments if scheme.group_size is None else arguments | {"group_size": scheme.group_size}


def read_schemes(config: Mapping[str, Any], linears: Iterable[str]) -> dict[str, Scheme]:
    """Which of `linears` are quantized, and how, according to config.json's `quantization_config`.

    Raises:
        InputError: the folder is quantized in a way that is not integer pack-quantized compressed-tensors.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return {}
    method = quantization.get("quant_method")
    if method != "compressed-tensors" or quantization.get("format") != "pack-quantized":
        raise InputError(
            f"The model is already quantized ({method}, {quantization.get('format')}), which cannot be read.",
            "Start from the float checkpoint, or from a compressed-tensors pack-quantized folder.",
        )
    schemes: dict[str, Scheme] = {}
    for name in linears:
        if any(_matches(name, pattern) for pattern in quantization.get("ignore") or ()):
            continue
        for group in quantization["config_groups"].values():
            if any(target == "Linear" or _matches(name, target) for target in group["targets"]):
                schemes[name] = _scheme(group)
    return schemes


def _matches(name: str, pattern: str) -> bool:
    import re

    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern) or name.endswith("." + pattern)


def _scheme(group: Mapping[str, Any]) -> Scheme:
    weights = group["weights"]
    supported = (
        weights.get("type") == "int"
        and weights.get("num_bits") in (4, 8)
        and weights.get("strategy") in ("group", "channel")
        and weights.get("actorder") in (None, "static", "weight")
        and not group.get("input_activations")
    )
    if not supported:
        raise InputError("Only weight-only int4 and int8 compressed-tensors folders can be read; this one is not.")
    group_size = weights.get("group_size") if weights["strategy"] == "group" else None
    return Scheme(weights["num_bits"], group_size, weights["symmetric"])
