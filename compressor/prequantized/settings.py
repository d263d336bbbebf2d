"""Where foreign folders say how they are quantized, and what their layouts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from compressor.architecture import read_config
from compressor.errors import InputError
from compressor.json_file import read_object

GroupSize = Literal[-1, 16, 32, 64, 128, 256, 512, 1024]  # -1: one scale per output channel
OLD_CONFIG = "quantize_config.json"  # AutoGPTQ's, from before transformers knew the format
MODELOPT_CONFIG, MODELOPT = "hf_quant_config.json", "modelopt"
CONFIGS = ("config.json", OLD_CONFIG, MODELOPT_CONFIG)


def width(group_size: GroupSize) -> int | None:
    """A group size as a `Scheme` has it."""
    return None if group_size == -1 else group_size


def read_settings(root: Path) -> dict[str, Any]:
    """The quantization settings of a model folder; empty when it has none.

    Raises:
        InputError: they are not JSON objects.
    """
    settings = read_config(root).get("quantization_config")
    if not isinstance(settings or {}, dict):
        raise InputError(f"The quantization_config of {root} is not a JSON object.")
    settings = dict(settings or {})
    if (root / MODELOPT_CONFIG).is_file() or str(settings.get("quant_method")).startswith(MODELOPT):
        return _modelopt_settings(root, settings)
    if not settings and (root / OLD_CONFIG).is_file():
        return {"quant_method": "gptq", **read_object(root / OLD_CONFIG)}
    return settings


def _modelopt_settings(root: Path, flat: dict[str, Any]) -> dict[str, Any]:
    """The nested form of ModelOpt's own file, which decides; without it, of the flat copy in config.json."""
    path = root / MODELOPT_CONFIG
    own = read_object(path) if path.is_file() else flat
    nested = own.get("quantization")
    if isinstance(nested, dict):
        return {**nested, "quant_method": MODELOPT}
    cache = own.get("kv_cache_scheme") or {}
    is_fp8 = cache.get("type") == "float" and cache.get("num_bits") == 8
    algorithm = "FP8" if is_fp8 else str(cache) if cache else None
    return {"kv_cache_quant_algo": algorithm, **own, "quant_method": MODELOPT}
