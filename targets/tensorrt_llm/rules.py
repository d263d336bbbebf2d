"""A model of TensorRT-LLM's checkpoint loader (PyTorch backend), for where no GPU can ask the real one.

Each rule is something the loader raises on, asserts, or gets silently wrong.
Sources, NVIDIA/TensorRT-LLM: tensorrt_llm/_torch/modules/linear.py (W4A16_AWQ_LinearMethod,
WeightOnlyQuantLinearMethod, FP8QDQLinearMethod, FP8RowwiseLinearMethod, NVFP4LinearMethod),
tensorrt_llm/quantization/functional.py (preprocess_weights_for_mixed_gemm), cpp/tensorrt_llm/thop/cublasScaledMM.cpp;
loader_config.py has those of settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.architecture import Architecture, read_config, resolve
from compressor.errors import InputError
from compressor.json_file import read_object
from targets.tensorrt_llm.loader_config import (
    AWQ,
    FP8,
    INT8,
    NVFP4,
    NVFP4_WEIGHTS,
    ROWWISE,
    Layer,
    quantization_rules,
    quantized_layers,
    read_quantization,
)
from targets.tensorrt_llm.reader import Header, read_headers

SAFETENSORS_NAMES = {"float16": "F16", "bfloat16": "BF16"}
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38}
PACKED_BYTES, FLOAT8, FLOATS = ("U8", "I8"), ("F8_E4M3",), ("F32", "F16", "BF16")
# What the widths of one GPU's share must be multiples of: output channels, inputs.
MULTIPLES = {AWQ: (16, 64), INT8: (8, 64), FP8: (16, 16), ROWWISE: (16, 16), NVFP4: (32, 32), NVFP4_WEIGHTS: (32, 32)}
COLUMN_PARALLEL = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "qkv_proj",
    "gate_up_proj",
)  # the fused ones; the others split their inputs
CACHE_SCALES = ("k_proj.k_scale", "v_proj.v_scale")
SCALAR = ()  # may be stored as [1] too
# Scales that a fused matrix has one of.
TENSOR_SCALES = {
    FP8: ("weight_scale", "input_scale"),
    NVFP4: ("weight_scale_2", "input_scale"),
    NVFP4_WEIGHTS: ("weight_scale_2",),
}

Wanted = tuple[tuple[str, ...], tuple[int, ...]]  # dtypes that are taken, shape


@dataclass(frozen=True)
class Folder:
    """What the loader sees of a checkpoint before it loads a weight."""

    architecture: Architecture
    dtype: str
    layers: Mapping[str, Layer]
    tensors: Mapping[str, Header]
    tp_size: int

    def fused(self, *algorithms: str) -> Iterator[tuple[str, ...]]:
        """Groups of layers, with one of these algorithms, that become one matrix."""
        for index in range(self.architecture.layers):
            for group in self.architecture.fused_linears(index):
                if group[0] in self.layers and self.layers[group[0]].algorithm in algorithms:
                    yield group


def check_loadable(folder: Path, tp_size: int = 1) -> list[str]:
    """Every rule of the loader that the folder breaks when served on `tp_size` GPUs; empty when it would load."""
    try:
        config = read_config(folder)
        architecture = resolve(config)
        quantization = read_quantization(folder, config)
    except InputError as error:
        return [str(error)]
    dtype = config.get("torch_dtype") or config.get("dtype") or "bfloat16"  # the loader's own default
    broken = [*_dtype_rules(config, dtype), *quantization_rules(quantization, architecture)]
    if broken:
        return broken
    tensors: dict[str, Header] = {}
    broken = list(_gather_tensors(folder, tensors))
    seen = Folder(architecture, dtype, quantized_layers(quantization, architecture), tensors, tp_size)
    return [
        *broken,
        *_index_rules(folder, seen),
        *_tensor_rules(seen),
        *_size_rules(seen),
        *_scale_rules(seen),
        *_fused_rules(seen),
    ]


def _dtype_rules(config: Mapping[str, Any], dtype: str) -> Iterator[str]:
    if dtype not in SAFETENSORS_NAMES:
        yield f"config.json says dtype {dtype}; quantized weights are multiplied in float16 or bfloat16 only."
    if config.get("dtype", dtype) != dtype:
        yield f"config.json says torch_dtype {dtype} and dtype {config['dtype']}."


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
    places = read_object(path)["weight_map"]
    for name, shard in places.items():
        if name not in seen.tensors or seen.tensors[name].path.name != shard:
            yield f"The index places {name} in {shard}, which does not hold it."


def _tensor_rules(seen: Folder) -> Iterator[str]:
    expected = _expected_tensors(seen)
    optional = _cache_scales(seen)
    if optional.keys() & seen.tensors.keys():
        expected |= optional  # with one of them, all of them
    for name, (dtypes, shape) in expected.items():
        found = seen.tensors.get(name)
        if found is None:
            yield f"{name} is missing."
        elif found.dtype not in dtypes:
            yield f"{name} is stored as {found.dtype}; the loader wants {' or '.join(dtypes)}."
        elif found.shape != shape and not (shape == SCALAR and found.shape == (1,)):
            yield f"{name} has shape {list(found.shape)}; the loader wants {list(shape)}."
    for name in seen.tensors.keys() - expected.keys():
        if name == "lm_head.weight" and seen.architecture.tied_embeddings:
            continue
        yield f"{name} is never read{_why_not_read(name)}."


def _why_not_read(name: str) -> str:
    if name.endswith("pre_quant_scale"):
        return ", since the layer is fused; it has to be folded into the norm before it"
    return f", since the layer is neither {FP8} nor {NVFP4}" if name.endswith(CACHE_SCALES) else ""


def _expected_tensors(seen: Folder) -> dict[str, Wanted]:
    """All tensors that the loader asks for."""
    served = (SAFETENSORS_NAMES[seen.dtype],)
    expected: dict[str, Wanted] = {}
    for name, shape in seen.architecture.tensor_shapes().items():
        layer = name.removesuffix(".weight")
        if layer == name or layer not in seen.layers:
            expected[name] = (served, shape)
            continue
        parts = _parts(seen.layers[layer], served, not layer.endswith(COLUMN_PARALLEL))
        expected |= {f"{layer}.{part}": wanted for part, wanted in parts.items()}
    return expected


def _parts(layer: Layer, served: tuple[str, ...], unfused: bool) -> dict[str, Wanted]:
    rows, columns = layer.shape
    if layer.algorithm == AWQ:
        assert layer.group_size is not None  # a rule of the settings
        scale = (FLOATS, (rows, columns // layer.group_size))
        parts: dict[str, Wanted] = {"weight": (PACKED_BYTES, (rows // 2, columns)), "weight_scale": scale}
        if unfused:
            parts["pre_quant_scale"] = (served, (columns,))
        return parts
    if layer.algorithm in (NVFP4, NVFP4_WEIGHTS):
        return _nvfp4_parts(layer)
    if layer.algorithm == INT8:
        return {"weight": (("I8",), (rows, columns)), "weight_scale": (FLOATS, (rows,))}
    if layer.algorithm == ROWWISE:
        return {"weight": (FLOAT8, (rows, columns)), "weight_scale": (FLOATS, (rows,))}
    # Without input_scale the loader rounds all tokens at once with a scale that it finds while running.
    return {
        "weight": (FLOAT8, (rows, columns)),
        "weight_scale": (FLOATS, SCALAR),
        "input_scale": (FLOATS, SCALAR),
    }


def _nvfp4_parts(layer: Layer) -> dict[str, Wanted]:
    rows, columns = layer.shape
    parts: dict[str, Wanted] = {
        "weight": (("U8",), (rows, columns // 2)),
        "weight_scale": (FLOAT8, (rows, columns // 16)),
        "weight_scale_2": (FLOATS, SCALAR),
    }
    return parts | {"input_scale": (FLOATS, SCALAR)} if layer.algorithm == NVFP4 else parts


def _cache_scales(seen: Folder) -> dict[str, Wanted]:
    """Scales of a key-value cache, which the loader reads where q, k and v are FP8 or NVFP4, if they are stored."""
    groups = (group[0] for group in seen.fused(FP8, NVFP4))
    attentions = [first.removesuffix("q_proj") for first in groups if first.endswith("q_proj")]
    return {f"{attention}{scale}": (FLOATS, SCALAR) for attention in attentions for scale in CACHE_SCALES}


def _size_rules(seen: Folder) -> Iterator[str]:
    tp, heads, kv_heads = seen.tp_size, seen.architecture.heads, seen.architecture.kv_heads
    if heads % tp or (kv_heads % tp and tp % kv_heads):
        yield f"{heads} query and {kv_heads} key-value heads cannot be split over {tp} GPUs."
        return
    for name, layer in seen.layers.items():
        if name.endswith(COLUMN_PARALLEL):
            # Fewer key-value heads than GPUs are repeated, a head to each.
            parts = min(tp, kv_heads) if name.endswith(("k_proj", "v_proj")) else tp
            yield from _rank_rules(name, layer, parts, 1)
        else:
            yield from _rank_rules(name, layer, 1, tp)


def _rank_rules(name: str, layer: Layer, out_parts: int, in_parts: int) -> Iterator[str]:
    """What one GPU's share of a linear must divide by: the kernel's widths, and whole groups."""
    outs, ins = layer.shape
    if outs % out_parts or ins % in_parts:
        yield f"{name}: [{outs}, {ins}] cannot be split evenly."
        return
    outs, ins = outs // out_parts, ins // in_parts
    out_multiple, in_multiple = MULTIPLES[layer.algorithm]
    in_multiple = max(in_multiple, layer.group_size or 0)
    if outs % out_multiple:
        yield f"{name}: {outs} output channels a GPU are no multiple of {out_multiple}."
    if ins % in_multiple:
        yield f"{name}: {ins} inputs a GPU are no multiple of {in_multiple}."


def _scale_rules(seen: Folder) -> Iterator[str]:
    for name, layer in seen.layers.items():
        # Those of integers are cast to the model's dtype, those of fp8 stay float32.
        held_in = seen.dtype if layer.algorithm in (AWQ, INT8) else "float32"
        for part in ("weight_scale", "weight_scale_2", "input_scale"):
            scales = _numbers(seen, f"{name}.{part}")
            if not bool((np.isfinite(scales) & (np.abs(scales) <= LARGEST[held_in])).all()):
                yield f"{name}.{part} holds a value that {held_in} does not."


def _fused_rules(seen: Folder) -> Iterator[str]:
    """A fused matrix has one scale: fp8 parts with a smaller one are rounded again, NVFP4 parts have to agree."""
    for group in seen.fused(*TENSOR_SCALES):
        algorithm = seen.layers[group[0]].algorithm
        for part in TENSOR_SCALES[algorithm]:
            found = [_numbers(seen, f"{name}.{part}") for name in group]
            if not all(np.array_equal(scale.ravel(), found[0].ravel()) for scale in found):
                names = "/".join(name.rpartition(".")[2] for name in group)
                then = "takes the largest and rounds the others again" if algorithm == FP8 else "wants one for all"
                yield f"{group[0]}.{part}: {names} differ; the loader {then}."
    for group in seen.fused(FP8):
        for scale in _numbers(seen, f"{group[0]}.weight_scale").ravel():
            if seen.dtype == "float16" and not 2**-14 <= scale <= 65504 / 448:
                yield f"{group[0]}.weight_scale is {scale:.3g}; fusing rounds in float16, which loses bits there."


def _numbers(seen: Folder, name: str) -> np.ndarray:
    """A tensor of scales; nothing, where it is not there or not of a float dtype, which other rules say."""
    header = seen.tensors.get(name)
    return header.numbers() if header is not None and header.dtype in FLOATS else np.zeros(0, np.float32)
