"""A model of TensorRT-LLM's checkpoint loader (PyTorch backend), for where no GPU can ask the real one.

Each rule is something the loader raises on, asserts, or gets silently wrong for a W4A16_AWQ folder.
Sources, NVIDIA/TensorRT-LLM: tensorrt_llm/_torch/modules/linear.py (W4A16_AWQ_LinearMethod),
tensorrt_llm/quantization/functional.py (preprocess_weights_for_mixed_gemm),
tensorrt_llm/quantization/modelopt_config.py, tensorrt_llm/models/modeling_utils.py (excluded modules).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architecture import Architecture, read_config, resolve
from compressor.errors import InputError
from targets.tensorrt_llm.reader import Header, read_headers

SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16"}
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
KV_CACHE_KINDS = (None, "FP8", "INT8", "NVFP4")
PACKED_BYTES = ("U8", "I8")
FLOATS = ("F32", "F16", "BF16")
COLUMN_PARALLEL = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
)  # the fused ones; the others split their inputs


@dataclass(frozen=True)
class Folder:
    """What the loader sees of a checkpoint before it loads a weight."""

    architecture: Architecture
    dtype: str
    quantization: Mapping[str, Any]
    tensors: Mapping[str, Header]
    tp_size: int

    @property
    def excluded(self) -> Sequence[str]:
        return self.quantization.get("exclude_modules") or ()

    @property
    def group_size(self) -> int:
        return self.quantization["group_size"]

    def quantized_linears(self) -> dict[str, tuple[int, int]]:
        """Linears that the loader takes for int4, with their [out_features, in_features]."""
        linears = self.architecture.linears()
        kept = {name for name in linears if name == "lm_head" or is_excluded(name, self.excluded)}
        for index in range(self.architecture.layers):
            for group in self.architecture.fused_linears(index):
                # One excluded shard makes the whole fused matrix a float one.
                kept |= set(group) if kept & set(group) else set()
        return {name: shape for name, shape in linears.items() if name not in kept}


def check_loadable(folder: Path, tp_size: int = 1) -> list[str]:
    """Every rule of the loader that the folder breaks when served on `tp_size` GPUs; empty when it would load."""
    try:
        config = read_config(folder)
        architecture = resolve(config)
        quantization = _read_quantization(folder, config)
    except InputError as error:
        return [str(error)]
    except json.JSONDecodeError as error:
        return [f"hf_quant_config.json is not valid JSON (line {error.lineno})."]
    dtype = config.get("torch_dtype") or config.get("dtype") or "bfloat16"  # the loader's own default
    broken = [*_dtype_rules(config, dtype), *_quantization_rules(quantization)]
    if broken:
        return broken
    tensors: dict[str, Header] = {}
    broken = list(_gather_tensors(folder, tensors))
    seen = Folder(architecture, dtype, quantization, tensors, tp_size)
    return [*broken, *_index_rules(folder, seen), *_tensor_rules(seen), *_size_rules(seen), *_scale_rules(seen)]


def is_excluded(module: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or a module above it, is listed in `exclude_modules`."""
    parts = module.split(".")
    chain = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for pattern in patterns:
        if pattern.startswith("re:"):
            found = any(re.fullmatch(pattern[3:], name) for name in chain)
        else:
            parent = pattern.removesuffix(".*")
            found = any(fnmatchcase(name, pattern) or fnmatchcase(name, parent) for name in chain)
        if found:
            return True
    return False


def _read_quantization(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The nested form of hf_quant_config.json, which decides; without that file, of the flat copy in config.json."""
    path = folder / "hf_quant_config.json"
    raw = json.loads(path.read_text()) if path.is_file() else config.get("quantization_config") or {}
    if "quantization" in raw:
        return raw["quantization"]
    marked = (
        str(raw.get("quant_method", "")).startswith("modelopt") or (raw.get("producer") or {}).get("name") == "modelopt"
    )
    if not marked:
        raise InputError(f"{folder} has no quantization that the loader knows as ModelOpt's.")
    return raw | {"exclude_modules": raw.get("ignore"), "kv_cache_quant_algo": None}


def _dtype_rules(config: Mapping[str, Any], dtype: str) -> Iterator[str]:
    if dtype not in SAFETENSORS_NAMES:
        yield f"config.json says dtype {dtype}; int4 weights are multiplied in float16 or bfloat16 only."
    if config.get("dtype", dtype) != dtype:
        yield f"config.json says torch_dtype {dtype} and dtype {config['dtype']}."


def _quantization_rules(quantization: Mapping[str, Any]) -> Iterator[str]:
    if quantization.get("quant_algo") != "W4A16_AWQ":
        yield f"quant_algo is {quantization.get('quant_algo')}, not W4A16_AWQ."
    if quantization.get("group_size") not in (64, 128):
        yield f"group_size is {quantization.get('group_size')}; the kernels take 64 and 128."
    if quantization.get("has_zero_point"):
        yield "has_zero_point is true, but zero points are never read."
    if quantization.get("kv_cache_quant_algo") not in KV_CACHE_KINDS:
        yield f"kv_cache_quant_algo {quantization['kv_cache_quant_algo']} is unknown."
    excluded = quantization.get("exclude_modules") or ()
    if not is_excluded("lm_head", excluded):
        yield "exclude_modules does not list lm_head, for which there is no int4 path."
    for pattern in excluded:
        if pattern.startswith("re:"):
            yield f"exclude_modules holds {pattern!r}, which older versions take for a plain name."


def _gather_tensors(folder: Path, tensors: dict[str, Header]) -> Iterator[str]:
    """Fill `tensors` from every safetensors file, as the loader does, which reads no index."""
    paths = [path for path in sorted(folder.glob("*.safetensors")) if "consolidated" not in path.name]
    if not paths:
        yield f"{folder} holds no safetensors file."
    for path in paths:
        try:
            headers = read_headers(path)
        except (ValueError, KeyError) as error:
            yield f"{error}."
            continue
        for name in headers.keys() & tensors.keys():
            yield f"{name} is in {tensors[name].path.name} and in {path.name}."
        tensors |= headers


def _index_rules(folder: Path, seen: Folder) -> Iterator[str]:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    places = json.loads(path.read_text())["weight_map"]
    for name, shard in places.items():
        if name not in seen.tensors or seen.tensors[name].path.name != shard:
            yield f"The index places {name} in {shard}, which does not hold it."


def _tensor_rules(seen: Folder) -> Iterator[str]:
    expected = _expected_tensors(seen)
    for name, (dtypes, shape) in expected.items():
        found = seen.tensors.get(name)
        if found is None:
            yield f"{name} is missing."
        elif found.dtype not in dtypes:
            yield f"{name} is stored as {found.dtype}; the loader wants {' or '.join(dtypes)}."
        elif found.shape != shape:
            yield f"{name} has shape {list(found.shape)}; the loader wants {list(shape)}."
    for name in seen.tensors.keys() - expected.keys():
        if name == "lm_head.weight" and seen.architecture.tied_embeddings:
            continue
        if name.endswith("pre_quant_scale"):
            yield f"{name} is never read, since the layer is fused; it has to be folded into the norm before it."
        else:
            yield f"{name} is never read."


def _expected_tensors(seen: Folder) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Name to (dtypes that are taken, shape) of all tensors that the loader asks for."""
    quantized, served = seen.quantized_linears(), (SAFETENSORS_NAMES[seen.dtype],)
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for name, shape in seen.architecture.tensor_shapes().items():
        layer = name.removesuffix(".weight")
        if layer == name or layer not in quantized:
            expected[name] = (served, shape)
            continue
        out_features, in_features = quantized[layer]
        expected[name] = (PACKED_BYTES, (out_features // 2, in_features))
        expected[f"{layer}.weight_scale"] = (FLOATS, (out_features, in_features // seen.group_size))
        if not layer.endswith(COLUMN_PARALLEL):
            expected[f"{layer}.pre_quant_scale"] = (served, (in_features,))
    return expected


def _size_rules(seen: Folder) -> Iterator[str]:
    tp, heads, kv_heads = seen.tp_size, seen.architecture.heads, seen.architecture.kv_heads
    if heads % tp or (kv_heads % tp and tp % kv_heads):
        yield f"{heads} query and {kv_heads} key-value heads cannot be split over {tp} GPUs."
        return
    for name, (out_features, in_features) in seen.quantized_linears().items():
        if name.endswith(COLUMN_PARALLEL):
            # Fewer key-value heads than GPUs are repeated, a head to each.
            parts = min(tp, kv_heads) if name.endswith(("k_proj", "v_proj")) else tp
            yield from _rank_rules(name, out_features, parts, in_features, 1, seen.group_size)
        else:
            yield from _rank_rules(name, out_features, 1, in_features, tp, seen.group_size)


def _rank_rules(name: str, outs: int, out_parts: int, ins: int, in_parts: int, group_size: int) -> Iterator[str]:
    """What one GPU's share of a linear must divide by: 16 output channels, 64 inputs, whole groups."""
    if outs % out_parts or ins % in_parts:
        yield f"{name}: [{outs}, {ins}] cannot be split evenly."
        return
    outs, ins = outs // out_parts, ins // in_parts
    if outs % 16:
        yield f"{name}: {outs} output channels a GPU are no multiple of 16."
    if ins % 64 or ins % group_size:
        yield f"{name}: {ins} inputs a GPU are no multiple of {max(64, group_size)}."


def _scale_rules(seen: Folder) -> Iterator[str]:
    for layer in seen.quantized_linears():
        header = seen.tensors.get(f"{layer}.weight_scale")
        if header is None or header.dtype not in FLOATS:
            continue
        scales = header.numbers()
        if not bool((np.isfinite(scales) & (np.abs(scales) <= LARGEST[seen.dtype])).all()):
            yield f"{layer}.weight_scale holds a value that {seen.dtype} does not."
