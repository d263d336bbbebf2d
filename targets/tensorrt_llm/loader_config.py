"""What TensorRT-LLM's loader makes of a folder's quantization settings: the algorithm of every linear.

Sources, NVIDIA/TensorRT-LLM: tensorrt_llm/quantization/modelopt_config.py (nested and flat form),
tensorrt_llm/_torch/model_config.py (mixed precision), tensorrt_llm/_torch/models/modeling_utils.py (which layer gets
which settings), tensorrt_llm/models/modeling_utils.py (excluded modules).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture
from compressor.errors import InputError
from compressor.json_file import read_object
from compressor.patterns import matches

AWQ, INT8, FP8, ROWWISE = "W4A16_AWQ", "W8A16", "FP8", "FP8_PER_CHANNEL_PER_TOKEN"
NVFP4, NVFP4_WEIGHTS = "NVFP4", "W4A16_NVFP4"
ALGORITHMS = (AWQ, INT8, FP8, ROWWISE, NVFP4, NVFP4_WEIGHTS)
MIXED = "MIXED_PRECISION"
GROUP_SIZES = {AWQ: (64, 128), NVFP4: (16,), NVFP4_WEIGHTS: (16,)}  # the others have no groups
CACHE_ALGORITHMS = (None, "FP8", "INT8", "NVFP4")


@dataclass(frozen=True)
class Layer:
    """A linear as the loader builds it: [out_features, in_features], and what multiplies it."""

    shape: tuple[int, int]
    algorithm: str
    group_size: int | None


def read_quantization(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The nested form of hf_quant_config.json, which decides; without that file, of the flat copy in config.json.

    Raises:
        InputError: neither is ModelOpt's.
    """
    path = folder / "hf_quant_config.json"
    raw = read_object(path) if path.is_file() else config.get("quantization_config") or {}
    if "quantization" in raw:
        return raw["quantization"]
    marked = (
        str(raw.get("quant_method", "")).startswith("modelopt") or (raw.get("producer") or {}).get("name") == "modelopt"
    )
    if not marked:
        raise InputError(f"{folder} has no quantization that the loader knows as ModelOpt's.")
    cache = raw.get("kv_cache_scheme")
    is_fp8 = isinstance(cache, dict) and cache.get("type") == "float" and cache.get("num_bits") == 8
    return raw | {"exclude_modules": raw.get("ignore"), "kv_cache_quant_algo": "FP8" if is_fp8 else None}


def quantized_layers(quantization: Mapping[str, Any], architecture: Architecture) -> dict[str, Layer]:
    """The linears that the loader takes for quantized."""
    kept = _excluded_layers(quantization, architecture)
    layers = {}
    for name, shape in architecture.linears().items():
        settings = _settings(quantization, name)
        if name not in kept and settings is not None:
            layers[name] = Layer(shape, settings["quant_algo"], settings.get("group_size"))
    return layers


def quantization_rules(quantization: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    """What the loader does not take, or takes for something else, in the settings."""
    if quantization.get("kv_cache_quant_algo") not in CACHE_ALGORITHMS:
        yield f"kv_cache_quant_algo {quantization['kv_cache_quant_algo']} is unknown."
    excluded = quantization.get("exclude_modules") or ()
    for pattern in excluded:
        if pattern.startswith("re:"):
            yield f"exclude_modules holds {pattern!r}, which older versions take for a plain name."
    if quantization.get("quant_algo") == MIXED:
        yield from _mixed_rules(quantization.get("quantized_layers") or {}, architecture)
        return
    yield from _settings_rules("", quantization)
    if not is_excluded("lm_head", excluded):
        yield "exclude_modules does not list lm_head, which the loader never quantizes."


def is_excluded(module: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or a module above it, is listed in `exclude_modules`."""
    parts = module.split(".")
    chain = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for pattern in patterns:
        if pattern.startswith("re:"):
            found = any(matches(pattern[3:], name, "exclude_modules", whole=True) for name in chain)
        else:
            parent = pattern.removesuffix(".*")
            found = any(fnmatchcase(name, pattern) or fnmatchcase(name, parent) for name in chain)
        if found:
            return True
    return False


def _settings(quantization: Mapping[str, Any], layer: str) -> Mapping[str, Any] | None:
    if quantization.get("quant_algo") != MIXED:
        return quantization
    # A fused matrix has the settings of its first part; whatever is not listed stays float.
    for part, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
        layer = layer.removesuffix(part) + first if layer.endswith(part) else layer
    return quantization["quantized_layers"].get(layer)


def _excluded_layers(quantization: Mapping[str, Any], architecture: Architecture) -> set[str]:
    excluded = quantization.get("exclude_modules") or ()
    kept = {name for name in architecture.linears() if name == "lm_head" or is_excluded(name, excluded)}
    for index in range(architecture.layers):
        for group in architecture.fused_linears(index):
            # One excluded shard makes the whole fused matrix a float one.
            kept |= set(group) if kept & set(group) else set()
    return kept


def _mixed_rules(listed: Mapping[str, Mapping[str, Any]], architecture: Architecture) -> Iterator[str]:
    if not listed:
        yield f"quant_algo is {MIXED}, but quantized_layers lists none."
    for name, settings in listed.items():
        if name not in architecture.linears() or name == "lm_head":
            yield f"quantized_layers lists {name}, which is no linear that the loader quantizes."
        yield from _settings_rules(f" of {name}", settings)
    for index in range(architecture.layers):
        for first, *others in architecture.fused_linears(index):
            for name in others:
                if listed.get(name) != listed.get(first):
                    yield f"quantized_layers says otherwise of {name} than of {first}, which decides for both."


def _settings_rules(of_layer: str, settings: Mapping[str, Any]) -> Iterator[str]:
    algorithm, group_size = settings.get("quant_algo"), settings.get("group_size")
    if algorithm not in ALGORITHMS:
        yield f"quant_algo{of_layer} is {algorithm}, not one of {', '.join(ALGORITHMS)}."
    elif group_size not in GROUP_SIZES.get(algorithm, (group_size,)):
        taken = " and ".join(str(size) for size in GROUP_SIZES[algorithm])
        yield f"group_size{of_layer} is {group_size}; the kernels take {taken}."
    if settings.get("has_zero_point"):
        yield f"has_zero_point{of_layer} is true, but zero points are never read."
