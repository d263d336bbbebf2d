"""The two places in which a ModelOpt checkpoint says how it is quantized: hf_quant_config.json and config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor import __version__
from compressor.files import write_json
from compressor.quantized import Scheme
from targets.tensorrt_llm.algorithms import layer_config

PRODUCER = {"name": "llmc", "version": __version__}
FP8_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}


def write_config(schemes: Mapping[str, Scheme], linears: Iterable[str], kv_cache: bool, out: Path) -> dict[str, Any]:
    """Write hf_quant_config.json, which decides, and return the flat copy of it for config.json.

    Layers of one algorithm and group size are described once, layers of several each by its name.

    Args:
        kv_cache: scales of an fp8 key-value cache are stored.
    """
    left_float = [name for name in linears if name not in schemes]
    described = _described(schemes)
    nested = {**described, "kv_cache_quant_algo": "FP8" if kv_cache else None, "exclude_modules": left_float}
    write_json(out / "hf_quant_config.json", {"producer": PRODUCER, "quantization": nested})
    # The copy repeats what the loader compares with the file above; ModelOpt's own leaves group_size out.
    compared = ("quant_algo", "group_size", "quantized_layers")
    repeated: dict[str, Any] = {key: described[key] for key in compared if key in described}
    flat: dict[str, Any] = {"quant_method": "modelopt", **repeated, "ignore": left_float, "producer": PRODUCER}
    return flat | {"kv_cache_scheme": FP8_CACHE} if kv_cache else flat


def _described(schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    layers = {name: layer_config(scheme) for name, scheme in schemes.items()}
    first = next(iter(layers.values()))
    if all(config == first for config in layers.values()):
        return first
    return {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
